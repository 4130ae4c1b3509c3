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
    features: torch.Tensor  # (n, D), detached: what the penalty saw of the global batch; without one, this rank's share
    pretrained: torch.Tensor | None  # (n, D)
    gradient_norms: tuple[float, float] | None = None  # of task and penalty for the features, where they are measured


@dataclass
class Step:
    """Forward, objective, regularizer, backward. `module` is the (DDP-wrapped) classifier.

    prepare: this rank's raw inputs -> what the module takes (normalised images; features as they are).
    pretrained: positions in the split, inputs -> frozen pretrained features (n_local, D); only for penalties that need it.
    stream: the batches that the penalty looks at. Those of another stream than the task's go through the network in the same
    forward pass, behind the task's. by_layers: the penalty compares several depths, not the last features.
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
    stream: str = "task"
    by_layers: bool = False
    measure_gradients: bool = False

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
        inputs, targets, _ = streams["task"]
        inputs = inputs.to(self.device, non_blocking=True)
        targets = targets.to(self.device, non_blocking=True)
        # Each rank's DDP gradient is divided by world_size, hence the factor: sum(losses) / sum(weights) over all ranks.
        scale = dist.world_size() / dist.sum_over_ranks(self.objective.weights(targets).sum())
        parts = len(inputs) // self.micro_batch_size
        beside = None
        if self.penalty is not None and self.stream != "task":
            beside = streams[self.stream][0].to(self.device, non_blocking=True)
        local = self._pretrained_features(streams, inputs if beside is None else beside, parts)
        others = [None] * parts if beside is None else beside.chunk(parts)
        chunks = [_Chunk(*triple) for triple in zip(inputs.chunk(parts), targets.chunk(parts), others, strict=True)]
        two_passes = parts > 1 and self.penalty is not None and not getattr(self.penalty, "additive", False)
        result = (self._in_two_passes if two_passes else self._in_one_pass)(chunks, scale, local)
        if self.weight_penalty is not None:
            result.penalty_loss = self.weight_penalty.add_gradient()
        observe = getattr(self.penalty, "observe", None)
        if observe is not None:
            observe(result.features, result.pretrained)
        return result

    def _pretrained_features(self, streams: Mapping[str, Batch], inputs: torch.Tensor, parts: int) -> torch.Tensor | None:
        """Of what the penalty looks at; this rank's (n_local, D), or None where it needs none."""
        if self.penalty is None or not self.penalty.needs_pretrained:
            return None
        assert self.pretrained is not None
        index = streams[self.stream][2]
        pairs = zip(index.chunk(parts), inputs.chunk(parts), strict=True)
        return torch.cat([self.pretrained(i, x) for i, x in pairs])  # cat makes an ordinary tensor of inference ones

    def _forward(self, chunk: _Chunk) -> _Seen:
        """Both streams in one pass."""
        inputs = chunk.inputs if chunk.beside is None else torch.cat([chunk.inputs, chunk.beside])
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            output: Output = self.module(self.prepare(inputs))
        rows = output.features
        if self.by_layers:
            assert output.layers is not None
            rows = output.layers
        n = len(chunk.inputs)
        compared = (rows if chunk.beside is None else rows[n:]).float()
        return _Seen(output.features, output.logits[:n], compared)

    def _in_one_pass(self, chunks: list[_Chunk], scale: torch.Tensor, local: torch.Tensor | None) -> StepResult:
        """The whole batch, or micro-batches whose losses simply add up: of the task, and of a penalty that is a mean."""
        additive = getattr(self.penalty, "additive", False)
        parts = len(chunks)
        whole = local if additive or local is None else dist.gather_rows(local)
        pretrained = [None] * parts if whole is None else whole.chunk(parts)
        task, added, kept, norms = scale.new_zeros(()), scale.new_zeros(()), [], []
        for i, (chunk, pretrained_rows) in enumerate(zip(chunks, pretrained, strict=True)):
            with self._no_sync(last=i == parts - 1):
                seen = self._forward(chunk)
                loss = self.objective.losses(seen.logits, chunk.targets).sum() * scale
                task = task + loss.detach()
                rows = seen.compared
                if self.penalty is not None:
                    rows = rows if additive else dist.gather_rows(rows)
                    term = self.penalty.loss(rows, pretrained_rows) / parts
                    added = added + term.detach()
                    if self.measure_gradients:
                        norms.append((_gradient(loss, seen.features), _gradient(term, seen.compared)))
                    loss = loss + term
                loss.backward()
            kept.append(rows.detach())
        features = torch.cat(kept)
        if additive:
            added = dist.sum_over_ranks(added) / dist.world_size()
            features, whole = dist.gather_rows(features), None if local is None else dist.gather_rows(local)
        return StepResult(task, added, features, whole, _norms(norms))

    def _in_two_passes(self, chunks: list[_Chunk], scale: torch.Tensor, local: torch.Tensor | None) -> StepResult:
        """Micro-batches. A penalty is not additive over them, so it takes two passes (GradCache): all features without a
        graph, the penalty's gradient with respect to them, then forward again with that gradient as a linear term.
        The random state is replayed, so that drop path hits the same samples in both passes.
        """
        assert self.penalty is not None
        pretrained = None if local is None else dist.gather_rows(local)
        state = _random_state(self.device)
        with torch.no_grad():
            leaf = torch.cat([self._forward(chunk).compared for chunk in chunks])
        _set_random_state(self.device, state)
        leaf.requires_grad_()
        features = dist.gather_rows(leaf)
        added = self.penalty.loss(features, pretrained)
        added.backward()
        assert leaf.grad is not None
        pulls = leaf.grad.chunk(len(chunks))
        task, norms = scale.new_zeros(()), []
        for i, chunk in enumerate(chunks):
            with self._no_sync(last=i == len(chunks) - 1):
                seen = self._forward(chunk)
                loss = self.objective.losses(seen.logits, chunk.targets).sum() * scale
                task = task + loss.detach()
                if self.measure_gradients:
                    norms.append((_gradient(loss, seen.features), pulls[i]))
                (loss + (seen.compared * pulls[i]).sum()).backward()
        return StepResult(task, added.detach(), features.detach(), pretrained, _norms(norms))

    def _no_sync(self, last: bool) -> Any:
        """Ranks exchange gradients in the last backward pass of a step only."""
        distributed = isinstance(self.module, nn.parallel.DistributedDataParallel)
        return self.module.no_sync() if distributed and not last else nullcontext()  # type: ignore[operator]


@dataclass(frozen=True)
class _Chunk:
    """A micro-batch: of the task, and of the other stream where there is one."""

    inputs: torch.Tensor
    targets: torch.Tensor
    beside: torch.Tensor | None


@dataclass(frozen=True)
class _Seen:
    """A micro-batch through the network."""

    features: torch.Tensor  # (n, D) of both streams, as the network gave them
    logits: torch.Tensor  # (n_task, C)
    compared: torch.Tensor  # (n, D) or (n, L * D) fp32: what the penalty looks at


def _gradient(loss: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """d loss / d rows, leaving the graph for the backward pass that follows."""
    return torch.autograd.grad(loss, rows, retain_graph=True)[0].detach().float()


def _norms(gradients: list[tuple[torch.Tensor, torch.Tensor]]) -> tuple[float, float] | None:
    """Norms of the global gradients for the features: of the task's, and of the penalty's."""
    if not gradients:
        return None
    squares = torch.stack([torch.stack([task.square().sum(), term.square().sum()]) for task, term in gradients]).sum(0)
    # every rank's gradients are world_size times too large, until DDP takes the mean
    task, term = (dist.sum_over_ranks(squares).sqrt() / dist.world_size()).tolist()
    return task, term


def _random_state(device: torch.device) -> list[torch.Tensor]:
    states = [torch.get_rng_state()]
    return [*states, torch.cuda.get_rng_state(device)] if device.type == "cuda" else states


def _set_random_state(device: torch.device, states: list[torch.Tensor]) -> None:
    torch.set_rng_state(states[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(states[1], device)
