"""Features and logits of a whole split: every sample exactly once, whatever the number of ranks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from riftcli import dist, signals
from riftcli.data.loader import Batch, KeptBatches, Workers, eval_loader
from riftcli.data.split import Split
from riftcli.data.transforms import EvalTransform, Preprocessing
from riftcli.functional.precision import products_in
from riftcli.models.sharding import is_sharded
from riftcli.protocols import Output


@dataclass(frozen=True)
class FeatureTable:
    """A split through a model, rows in split order, on the CPU in fp32."""

    features: torch.Tensor  # (N, D)
    logits: torch.Tensor  # (N, C)


@dataclass(frozen=True)
class View:
    """One of the fixed augmentations of a split: the transform, the run's seed, which of them, and the settings by name."""

    transform: Any
    seed: int
    number: int
    settings: dict[str, Any]


def encode(
    model: nn.Module,
    batches: Iterator[Batch],
    count: int,
    preprocessing: Preprocessing,
    device: torch.device,
    tick: Callable[[int], None] = lambda n: None,
    precision: str = "fp32",
) -> FeatureTable:
    """Run this rank's batches, then put the rows of all ranks in split order; the same table on every rank.

    `count` is the number of samples of the split: the result has exactly that many rows. Eval mode, no augmentation; precision:
    fp32 | tf32 | bf16.
    Raises signals.StopRequested on all ranks where any was told to stop and its signals are deferred.
    """
    model.eval()
    positions, features, logits = [], [], []
    sharded = is_sharded(model)  # what is gathered under inference_mode could not enter a graph later
    rounds = _together(batches, preprocessing.input_size) if sharded else _until_stopped(batches)
    with torch.no_grad() if sharded else torch.inference_mode(), computing(precision, device):
        for images, _, index in rounds:
            output: Output = model(preprocessing.normalise(images.to(device, non_blocking=True)))
            positions.append(index)
            features.append(output.features[: len(index)].float().cpu())
            logits.append(output.logits[: len(index)].float().cpu())
            tick(len(index))
    widths = (features[0].shape[1], logits[0].shape[1]) if positions else None
    shares = dist.gather_objects((widths, signals.received() is not None))
    if any(stopped for _, stopped in shares):  # a signal does not reach all ranks in the same batch: here they agree
        raise signals.StopRequested
    wide, classes = next(found for found, _ in shares if found is not None)
    own = (
        torch.cat([*positions, torch.empty(0, dtype=torch.long)]),
        torch.cat([*features, torch.empty(0, wide)]),
        torch.cat([*logits, torch.empty(0, classes)]),
    )
    order, table, scores = (dist.concatenated(part) for part in own)
    assert len(order) == count and order.unique().numel() == count, "every sample exactly once"
    back = torch.empty_like(order)
    back[order] = torch.arange(count)
    # indexing copies: tensors made under inference_mode cannot enter a graph later
    return FeatureTable(table[back], scores[back])


@contextmanager
def computing(precision: str, device: torch.device) -> Iterator[None]:
    """bf16: autocast. tf32: GPUs round the factors of products to 10 bits and add them up in fp32; elsewhere it is fp32."""
    products = products_in("tf32") if precision == "tf32" else nullcontext()
    with products, torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
        yield


def _until_stopped(batches: Iterator[Batch]) -> Iterator[Batch]:
    for batch in batches:
        if signals.received() is not None:
            return
        yield batch


def _together(batches: Iterator[Batch], shape: tuple[int, ...]) -> Iterator[Batch]:
    """The same number of batches on every rank, as a network that is shared out needs: a rank that has none left gets an image
    without a position, whose row is dropped. All end together where one is told to stop.
    """
    nothing = torch.empty(0, dtype=torch.long)
    while True:
        batch = next(batches, None)
        stop = signals.received() is not None
        more, stops = dist.sum_over_ranks(torch.tensor([float(batch is not None), float(stop)])).tolist()
        if stops or not more:
            return
        yield batch or (torch.zeros(1, *shape, dtype=torch.uint8), nothing, nothing)


def encode_split(
    model: torch.nn.Module,
    split: Split,
    preprocessing: Preprocessing,
    device: torch.device,
    batch_size: int,
    workers: Workers,
    tick: Any = lambda n: None,
    view: View | None = None,
    kept: KeptBatches | None = None,
    precision: str = "fp32",
) -> FeatureTable:
    """A split through a model, sharded over ranks; the same table on each. view: augmented as training does; kept: where the
    batches stay for the next time.
    """
    transform, seed, number = (EvalTransform(preprocessing), 0, 0) if view is None else (view.transform, view.seed, view.number)

    def load() -> Iterator[Batch]:
        return eval_loader(split, transform, batch_size, workers, dist.rank(), dist.world_size(), seed, number)

    batches = load() if kept is None or view is not None else kept.of(split, load)
    return encode(model, batches, len(split), preprocessing, device, tick, precision)
