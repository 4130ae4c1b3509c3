"""One optimizer step: the same loss and gradients at any number of ranks and micro-batches."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from riftcli import dist
from riftcli.data.loader import Batch, TextBatch
from riftcli.functional.precision import at_least_fp32
from riftcli.functional.rotations import CarriedRotation
from riftcli.protocols import FeaturePenalty, ObjectiveFn, Output, PairObjectiveFn, PairPenalty, Pairs, WeightPenalty
from riftcli.training.gradient_norms import GradientNorms, gradients_of
from riftcli.training.micro_batches import MicroBatch, Seen, cut
from riftcli.training.rows import detached, divided, gathered, gradients, joined, leaves, pulled, tensors

Tokens = Callable[[torch.Tensor], torch.Tensor]  # numbers of texts (n,) -> tokens (n, length)
OfBatch = Callable[..., Any]  # positions, images, for pairs tokens too -> what the penalty compares with


@dataclass
class StepResult:
    """What one step computed, before the optimizer moves."""

    task_loss: torch.Tensor  # () mean over the global batch
    penalty_loss: torch.Tensor  # ()
    features: torch.Tensor  # (n, D), detached: what a penalty of features saw of the global batch; else this rank's share
    compared: torch.Tensor | Pairs | None  # what the penalty saw of the global batch, detached
    pretrained: torch.Tensor | Pairs | None  # the same of the pretrained model
    gradient_norms: tuple[float, float] | None = None  # of task and penalty for what the penalty sees, where they are measured


@dataclass
class Step:
    """Forward, objective, regularizer, backward. `module` is the (DDP-wrapped) classifier.

    prepare: this rank's raw inputs -> what the module takes (normalised images; features as they are).
    pretrained: positions in the split, inputs, tokens -> what the penalty compares with; only for penalties that need it.
    stream: the batches that the penalty looks at. Those of another stream than the task's go through the network ahead of it, in
    micro-batches of their own. by_layers: the penalty compares several depths, not the last features.
    tokens: stream -> its texts by number, for streams whose texts are read; `classes` are those of an objective that looks at a
    text of every class.
    """

    module: nn.Module
    objective: ObjectiveFn | PairObjectiveFn
    prepare: Callable[[torch.Tensor], torch.Tensor]
    device: torch.device
    micro_batch_size: int
    optimizer: torch.optim.Optimizer | None = None
    penalty: FeaturePenalty | PairPenalty | None = None
    weight_penalty: WeightPenalty | None = None
    pretrained: OfBatch | None = None
    bf16: bool = False
    stream: str = "task"
    by_layers: bool = False
    measure_gradients: bool = False
    tokens: Mapping[str, Tokens] = field(default_factory=dict)

    @property
    def regularizer(self) -> FeaturePenalty | PairPenalty | WeightPenalty | None:
        """The bound regularizer, of whichever kind."""
        return self.penalty if self.penalty is not None else self.weight_penalty

    @property
    def carried(self) -> CarriedRotation | None:
        """A learned Q that has to be told when its weight has moved."""
        rotation = getattr(self.penalty, "rotation", None)
        return rotation if isinstance(rotation, CarriedRotation) else None

    @property
    def pairs_up(self) -> bool:
        """True for an objective of pairs: then the task's loss is not additive over samples."""
        return hasattr(self.objective, "pair_loss")

    @property
    def additive(self) -> bool:
        """True for a penalty that is a mean over samples."""
        return getattr(self.penalty, "additive", False)

    def penalty_parameters(self) -> list[nn.Parameter]:
        """What trains beside the network."""
        return self.penalty.parameters() if self.penalty is not None else []

    def diagnostics(self, result: StepResult) -> dict[str, float]:
        """What the regularizer has to say about a step."""
        if self.weight_penalty is not None:
            return self.weight_penalty.diagnostics()
        penalty: Any = self.penalty
        return penalty.diagnostics(result.compared, result.pretrained) if penalty is not None else {}

    def __call__(self, streams: Mapping[str, Batch | TextBatch], number: int = 0) -> StepResult:
        """Accumulate gradients of the whole global batch. streams: name of a data stream -> this rank's share of its batch;
        `task` is the one that the objective is computed on. number: of the step in the run, from 0, for what is drawn anew.
        """
        inputs, targets = (tensor.to(self.device, non_blocking=True) for tensor in streams["task"][:2])
        mix = getattr(self.objective, "mix", None)
        if mix is not None:  # who is mixed with whom is of whole batches, whatever they are cut into
            inputs, targets = mix(inputs, targets, number)
        # Each rank's DDP gradient is divided by world_size, hence the factor: sum(losses) / sum(weights) over all ranks.
        scale = dist.world_size() / dist.sum_over_ranks(self.objective.weights(targets).sum())
        parts = len(inputs) // self.micro_batch_size
        texts = {name: self._tokens(name, streams) for name in self.tokens}
        tokens = texts.get("task", texts.get("classes"))
        on_task = self.penalty is not None and self.stream == "task"
        chunks = cut(parts, inputs, targets, tokens, on_task, one_each="task" in texts)
        own, local = texts.get(self.stream), None
        if self.penalty is not None:
            watched = inputs if on_task else streams[self.stream][0].to(self.device, non_blocking=True)
            local = self._pretrained_rows(streams, watched, own if getattr(self.penalty, "pairs", False) else None, parts)
            if not on_task:  # ahead of the task, each with its own backward pass: one stream's activations at a time
                chunks = [*cut(parts, watched, None, own, True), *chunks]
        two_passes = parts > 1 and (self.pairs_up or (self.penalty is not None and not self.additive))
        result = (self._in_two_passes if two_passes else self._in_one_pass)(chunks, scale, local)
        if self.weight_penalty is not None:
            result.penalty_loss = self.weight_penalty.add_gradient()
        return result

    def observe(self, result: StepResult) -> None:
        """For penalties with running averages: once a step, whose gradients are to be used."""
        observe = getattr(self.penalty, "observe", None)
        if observe is not None:
            observe(result.compared, result.pretrained)

    def _tokens(self, stream: str, streams: Mapping[str, Any]) -> torch.Tensor:
        """The texts that came with a batch; (n, length), or one per class."""
        return self.tokens[stream](streams[stream][3]).to(self.device, non_blocking=True)

    def _pretrained_rows(
        self, streams: Mapping[str, Any], inputs: torch.Tensor, tokens: torch.Tensor | None, parts: int
    ) -> torch.Tensor | Pairs | None:
        """Of what the penalty looks at; this rank's rows, or None where it needs none."""
        if self.penalty is None or not self.penalty.needs_pretrained:
            return None
        assert self.pretrained is not None
        batch = streams[self.stream]
        index = batch[2] if tokens is None else torch.stack([batch[2], batch[3]], 1)  # where the text is looked up too
        lines = [None] * parts if tokens is None else tokens.chunk(parts)
        triples = zip(index.chunk(parts), inputs.chunk(parts), lines, strict=True)
        shown = self._shown if self.stream == "task" else nn.Identity()  # the pretrained model sees mixed images too
        found = [self.pretrained(i, shown(x)) if t is None else self.pretrained(i, shown(x), t) for i, x, t in triples]
        return joined(found)  # joining makes an ordinary tensor of inference ones

    def _shown(self, inputs: torch.Tensor) -> torch.Tensor:
        """Images of the task as the networks see them: mixed, where they are to be."""
        blend = getattr(self.objective, "blend", None)
        return inputs if blend is None else blend(inputs)

    def _forward(self, chunk: MicroBatch) -> Seen:
        """One micro-batch of one stream."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            images = self.prepare(chunk.inputs if chunk.targets is None else self._shown(chunk.inputs))
            output: Output = self.module(images) if chunk.tokens is None else self.module(images, chunk.tokens)
        logits, pairs = output.logits, None
        if output.texts is not None:
            assert output.scale is not None
            pairs = Pairs(at_least_fp32(output.features), at_least_fp32(output.texts), output.scale)
        compared: torch.Tensor | Pairs | None = None
        if chunk.watched and getattr(self.penalty, "pairs", False):
            compared = pairs
        elif chunk.watched:
            compared = at_least_fp32(output.features if output.layers is None else output.layers)
        of_task = None
        if chunk.targets is not None and pairs is not None:
            if self.pairs_up:
                of_task = pairs
            else:  # a text of every class
                logits = pairs.scale * pairs.images @ pairs.texts.T
        return Seen(output.features, logits, of_task, compared)

    def _task_loss(self, seen: Seen, targets: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """Of a micro-batch, or of the whole batch where pairs meet."""
        objective: Any = self.objective
        if seen.pairs is None:
            return objective.losses(seen.logits, targets).sum() * scale
        return objective.pair_loss(gathered(seen.pairs), _all_targets(targets))

    def _in_one_pass(self, chunks: list[MicroBatch], scale: torch.Tensor, local: torch.Tensor | Pairs | None) -> StepResult:
        """The whole batch, or micro-batches whose losses simply add up: of the task, and of a penalty that is a mean."""
        penalty: Any = self.penalty
        parts = sum(chunk.targets is not None for chunk in chunks)
        whole = local if self.additive or local is None else gathered(local)
        pretrained = iter([None] * parts if whole is None else divided(whole, parts))
        task, added, kept, shares, norms = scale.new_zeros(()), scale.new_zeros(()), [], [], GradientNorms()
        for i, chunk in enumerate(chunks):
            with self._no_sync(last=i == len(chunks) - 1):
                seen = self._forward(chunk)
                loss = self._unread(last=i == len(chunks) - 1)
                if chunk.targets is not None:
                    own = self._task_loss(seen, chunk.targets, scale)
                    task, loss = task + own.detach(), loss + own
                    self._measure(norms, "task", own, seen.task_rows)
                if seen.compared is not None:
                    rows = seen.compared if self.additive else gathered(seen.compared)
                    term = penalty.loss(rows, next(pretrained)) / parts
                    added, loss = added + term.detach(), loss + term
                    self._measure(norms, "penalty", term, tensors(seen.compared))
                    kept.append(detached(rows))
                _backward(loss)
            shares.append(seen.features.detach().float())
        if penalty is None:
            return StepResult(task, added, torch.cat(shares), None, None)
        compared = joined(kept)
        if self.additive:
            added = dist.sum_over_ranks(added) / dist.world_size()
            compared, whole = gathered(compared), None if local is None else gathered(local)
        return StepResult(task, added, _features(compared, shares), compared, whole, norms.over_ranks())

    def _in_two_passes(self, chunks: list[MicroBatch], scale: torch.Tensor, local: torch.Tensor | Pairs | None) -> StepResult:
        """Micro-batches. Pairs, and a penalty that is no mean, are not additive over them, so it takes two passes (GradCache):
        all rows without a graph, the gradient of such terms with respect to them, then forward again with that gradient as a
        linear term. The random state is replayed, so that drop path hits the same samples in both passes.
        """
        penalty: Any = self.penalty
        objective: Any = self.objective
        pretrained = None if local is None else gathered(local)
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices), torch.no_grad():
            seen_all = [self._forward(chunk) for chunk in chunks]
        total, task, added = scale.new_zeros(()), scale.new_zeros(()), scale.new_zeros(())
        paired = [seen.pairs for seen in seen_all if seen.pairs is not None]
        watched = [seen.compared for seen in seen_all if seen.compared is not None]
        pairs, compared = (leaves(joined(rows)) if rows else None for rows in (paired, watched))
        if pairs is not None:
            targets = _all_targets(torch.cat([chunk.targets for chunk in chunks if chunk.targets is not None]))
            total = task = objective.pair_loss(gathered(pairs), targets)
        features = None
        if compared is not None:
            features = gathered(compared)
            added = penalty.loss(features, pretrained)
            total = total + added
        total.backward()
        task, norms = task.detach(), GradientNorms()
        pulls = [
            [] if rows is None else divided(gradients(rows), len(found)) for rows, found in ((pairs, paired), (compared, watched))
        ]
        for i, chunk in enumerate(chunks):
            with self._no_sync(last=i == len(chunks) - 1):
                seen = self._forward(chunk)
                loss: Any = self._unread(last=i == len(chunks) - 1)
                if seen.pairs is not None:
                    own = pulled(seen.pairs, pulls[0].pop(0), last=not pulls[0])
                elif chunk.targets is not None:
                    own = self._task_loss(seen, chunk.targets, scale)
                    task = task + own.detach()
                if chunk.targets is not None:
                    loss = loss + own
                    self._measure(norms, "task", own, seen.task_rows)
                if seen.compared is not None:
                    pull = pulls[1].pop(0)
                    loss = loss + pulled(seen.compared, pull, last=not pulls[1])
                    if self.measure_gradients:
                        norms.add("penalty", tensors(pull))
                _backward(loss)
        shares = [seen.features.float() for seen in seen_all]
        if features is None:
            return StepResult(task, added, torch.cat(shares), None, None)
        features = detached(features)
        return StepResult(task, added.detach(), _features(features, shares), features, pretrained, norms.over_ranks())

    def _measure(self, norms: GradientNorms, term: str, loss: Any, rows: list[torch.Tensor]) -> None:
        if self.measure_gradients and loss.requires_grad:
            norms.add(term, gradients_of(loss, rows))

    def _no_sync(self, last: bool) -> Any:
        """Ranks exchange gradients in the last backward pass of a step only."""
        return nullcontext() if last or not self._distributed else self.module.no_sync()  # type: ignore[operator]

    def _unread(self, last: bool) -> Any:
        """0, with a gradient of zero for a text tower that the other stream alone reads: DDP waits for every weight in the pass
        that exchanges gradients.
        """
        texts_apart = self.stream in self.tokens and not {"task", "classes"} & self.tokens.keys()
        if not (last and self._distributed and texts_apart):
            return 0.0
        module: Any = self.module
        return sum(p.sum() for p in module.module.vit.text_tower.parameters() if p.requires_grad) * 0.0

    @property
    def _distributed(self) -> bool:
        return isinstance(self.module, nn.parallel.DistributedDataParallel)


def _backward(loss: torch.Tensor) -> None:
    """Nothing to do for a term whose weights are all frozen."""
    if loss.requires_grad:
        loss.backward()


def _all_targets(targets: torch.Tensor) -> torch.Tensor:
    """Of every rank, in rank order."""
    return dist.gather_rows(targets) if dist.world_size() > 1 else targets


def _features(compared: torch.Tensor | Pairs, shares: Sequence[torch.Tensor]) -> torch.Tensor:
    """What the variance is watched on: features of the global batch, or of pairs this rank's images."""
    return torch.cat(list(shares)) if isinstance(compared, Pairs) else compared
