"""One optimizer step: the same loss and gradients at any number of ranks and micro-batches."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from riftcli import dist
from riftcli.data.loader import Batch
from riftcli.protocols import FeaturePenalty, ObjectiveFn, Output, WeightPenalty


@dataclass
class StepResult:
    """What one step computed, before the optimizer moves."""

    task_loss: torch.Tensor  # () mean over the global batch
    penalty_loss: torch.Tensor  # ()
    features: torch.Tensor  # (n, D), detached: of the global batch with a penalty, else of this rank's share
    pretrained: torch.Tensor | None  # (n, D)


@dataclass
class Step:
    """Forward, objective, regularizer, backward. `module` is the (DDP-wrapped) classifier.

    prepare: this rank's raw inputs -> what the module takes (normalised images; features as they are).
    pretrained: positions in the split, inputs -> frozen pretrained features (n_local, D); only for penalties that need it.
    """

    module: nn.Module
    objective: ObjectiveFn
    prepare: Callable[[torch.Tensor], torch.Tensor]
    device: torch.device
    micro_batch_size: int
    optimizer: torch.optim.Optimizer | None = None
    penalty: FeaturePenalty | None = None
    weight_penalty: WeightPenalty | None = None
    pretrained: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None = None
    bf16: bool = False

    @property
    def regularizer(self) -> FeaturePenalty | WeightPenalty | None:
        """The bound regularizer, of whichever kind."""
        return self.penalty if self.penalty is not None else self.weight_penalty

    def penalty_parameters(self) -> list[nn.Parameter]:
        """What trains beside the network."""
        return self.penalty.parameters() if self.penalty is not None else []

    def diagnostics(self, result: StepResult) -> dict[str, float]:
        """What the regularizer has to say about a step."""
        if self.weight_penalty is not None:
            return self.weight_penalty.diagnostics()
        return self.penalty.diagnostics(result.features, result.pretrained) if self.penalty is not None else {}

    def __call__(self, streams: Mapping[str, Batch]) -> StepResult:
        """Accumulate gradients of the whole global batch. streams: name of a data stream -> this rank's share of its batch;
        `task` is the one that the objective is computed on.
        """
        inputs, targets, index = streams["task"]
        inputs = inputs.to(self.device, non_blocking=True)
        targets = targets.to(self.device, non_blocking=True)
        # Each rank's DDP gradient is divided by world_size, hence the factor: sum(losses) / sum(weights) over all ranks.
        scale = dist.world_size() / dist.sum_over_ranks(self.objective.weights(targets).sum())
        pretrained = None
        if self.penalty is not None and self.penalty.needs_pretrained:
            assert self.pretrained is not None
            chunks = zip(index.split(self.micro_batch_size), inputs.split(self.micro_batch_size), strict=True)
            pretrained = dist.gather_rows(torch.cat([self.pretrained(i, x) for i, x in chunks]))
        whole = inputs.shape[0] == self.micro_batch_size
        result = (self._whole if whole else self._accumulated)(inputs, targets, scale, pretrained)
        if self.weight_penalty is not None:
            result.penalty_loss = self.weight_penalty.add_gradient()
        return result

    def _forward(self, inputs: torch.Tensor) -> Output:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            return self.module(self.prepare(inputs))

    def _whole(self, inputs: torch.Tensor, targets: torch.Tensor, scale: torch.Tensor, pretrained: Any) -> StepResult:
        output = self._forward(inputs)
        task = self.objective.losses(output.logits, targets).sum() * scale
        features = output.features.float()
        added = task.new_zeros(())
        if self.penalty is not None:
            features = dist.gather_rows(features)
            added = self.penalty.loss(features, pretrained)
        (task + added).backward()
        return StepResult(task.detach(), added.detach(), features.detach(), pretrained)

    def _accumulated(self, inputs: torch.Tensor, targets: torch.Tensor, scale: torch.Tensor, pretrained: Any) -> StepResult:
        """Micro-batches. A penalty is not additive over them, so it takes two passes (GradCache): all features without a
        graph, the penalty's gradient with respect to them, then forward again with that gradient as a linear term.
        The random state is replayed, so that drop path hits the same samples in both passes.
        """
        chunks = list(zip(inputs.split(self.micro_batch_size), targets.split(self.micro_batch_size), strict=True))
        added, feature_gradient, features = scale.new_zeros(()), None, None
        if self.penalty is not None:
            state = _random_state(self.device)
            with torch.no_grad():
                local = torch.cat([self._forward(x).features.float() for x, _ in chunks])
            _set_random_state(self.device, state)
            leaf = local.requires_grad_()
            features = dist.gather_rows(leaf)
            added = self.penalty.loss(features, pretrained)
            added.backward()
            assert leaf.grad is not None
            feature_gradient = leaf.grad.split(self.micro_batch_size)
        task = scale.new_zeros(())
        kept = []
        for i, (x, y) in enumerate(chunks):
            wait = i < len(chunks) - 1 and isinstance(self.module, nn.parallel.DistributedDataParallel)
            with self.module.no_sync() if wait else nullcontext():  # type: ignore[operator]
                output = self._forward(x)
                loss = self.objective.losses(output.logits, y).sum() * scale
                task += loss.detach()
                if feature_gradient is not None:
                    loss = loss + (output.features.float() * feature_gradient[i]).sum()
                else:
                    kept.append(output.features.detach().float())
                loss.backward()
        whole = features.detach() if features is not None else torch.cat(kept)
        return StepResult(task, added.detach(), whole, pretrained)


def _random_state(device: torch.device) -> list[torch.Tensor]:
    states = [torch.get_rng_state()]
    return [*states, torch.cuda.get_rng_state(device)] if device.type == "cuda" else states


def _set_random_state(device: torch.device, states: list[torch.Tensor]) -> None:
    torch.set_rng_state(states[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(states[1], device)
