"""One optimizer step: the same loss and gradients at any number of ranks and micro-batches."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from riftcli import dist
from riftcli.protocols import ObjectiveFn, Output, Penalty


@dataclass
class StepResult:
    """What one step computed, before the optimizer moves."""

    task_loss: torch.Tensor  # () mean over the global batch
    penalty_loss: torch.Tensor  # ()
    features: torch.Tensor  # (n, D), detached: of the global batch with a penalty, else of this rank's share
    reference: torch.Tensor | None  # (n, D)


@dataclass
class Step:
    """Forward, objective, regularizer, backward. `module` is the (DDP-wrapped) classifier.

    prepare: this rank's raw inputs -> what the module takes (normalised images; features as they are).
    reference: positions in the split, inputs -> frozen pretrained features (n_local, D); only for penalties that need it.
    """

    module: nn.Module
    objective: ObjectiveFn
    penalty: Penalty | None
    prepare: Callable[[torch.Tensor], torch.Tensor]
    reference: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None
    device: torch.device
    bf16: bool
    micro_batch_size: int

    def __call__(self, inputs: torch.Tensor, targets: torch.Tensor, index: torch.Tensor) -> StepResult:
        """Accumulate gradients of the whole global batch; inputs, targets and index are this rank's share."""
        inputs = inputs.to(self.device, non_blocking=True)
        targets = targets.to(self.device, non_blocking=True)
        # Each rank's DDP gradient is divided by world_size, hence the factor: sum(losses) / sum(weights) over all ranks.
        scale = dist.world_size() / dist.sum_over_ranks(self.objective.weights(targets).sum())
        reference = None
        if self.penalty is not None and self.penalty.needs_reference:
            assert self.reference is not None
            chunks = zip(index.split(self.micro_batch_size), inputs.split(self.micro_batch_size), strict=True)
            reference = dist.gather_rows(torch.cat([self.reference(i, x) for i, x in chunks]))
        whole = inputs.shape[0] == self.micro_batch_size
        result = (self._whole if whole else self._accumulated)(inputs, targets, scale, reference)
        if self.penalty is not None and self.penalty.on_weights:
            result.penalty_loss = self.penalty.pull()
        return result

    def _forward(self, inputs: torch.Tensor) -> Output:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            return self.module(self.prepare(inputs))

    def _whole(self, inputs: torch.Tensor, targets: torch.Tensor, scale: torch.Tensor, reference: Any) -> StepResult:
        output = self._forward(inputs)
        task = self.objective.losses(output.logits, targets).sum() * scale
        features = output.features.float()
        added = task.new_zeros(())
        if self.penalty is not None and not self.penalty.on_weights:
            features = dist.gather_rows(features)
            added = self.penalty.loss(features, reference)
        (task + added).backward()
        return StepResult(task.detach(), added.detach(), features.detach(), reference)

    def _accumulated(self, inputs: torch.Tensor, targets: torch.Tensor, scale: torch.Tensor, reference: Any) -> StepResult:
        """Micro-batches. A penalty is not additive over them, so it takes two passes (GradCache): all features without a
        graph, the penalty's gradient with respect to them, then forward again with that gradient as a linear term.
        The random state is replayed, so that drop path hits the same samples in both passes.
        """
        chunks = list(zip(inputs.split(self.micro_batch_size), targets.split(self.micro_batch_size), strict=True))
        added, pull, features = scale.new_zeros(()), None, None
        if self.penalty is not None and not self.penalty.on_weights:
            state = _random_state(self.device)
            with torch.no_grad():
                local = torch.cat([self._forward(x).features.float() for x, _ in chunks])
            _set_random_state(self.device, state)
            leaf = local.requires_grad_()
            features = dist.gather_rows(leaf)
            added = self.penalty.loss(features, reference)
            added.backward()
            assert leaf.grad is not None
            pull = leaf.grad.split(self.micro_batch_size)
        task = scale.new_zeros(())
        kept = []
        for i, (x, y) in enumerate(chunks):
            wait = i < len(chunks) - 1 and isinstance(self.module, nn.parallel.DistributedDataParallel)
            with self.module.no_sync() if wait else nullcontext():  # type: ignore[operator]
                output = self._forward(x)
                loss = self.objective.losses(output.logits, y).sum() * scale
                task += loss.detach()
                if pull is not None:
                    loss = loss + (output.features.float() * pull[i]).sum()
                else:
                    kept.append(output.features.detach().float())
                loss.backward()
        whole = features.detach() if features is not None else torch.cat(kept)
        return StepResult(task, added.detach(), whole, reference)


def _random_state(device: torch.device) -> list[torch.Tensor]:
    states = [torch.get_rng_state()]
    return [*states, torch.cuda.get_rng_state(device)] if device.type == "cuda" else states


def _set_random_state(device: torch.device, states: list[torch.Tensor]) -> None:
    torch.set_rng_state(states[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(states[1], device)
