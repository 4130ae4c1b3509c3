"""Where a model looked before and after finetuning: what `rift attention` does (RIFT paper Fig. 5 and A2)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from riftcli import dist
from riftcli.console import Stopwatch
from riftcli.data import reading as inputs
from riftcli.data.image_files import image_split
from riftcli.data.split import Split
from riftcli.data.transforms import EvalTransform
from riftcli.evaluation.candidates import Subject, bases_of
from riftcli.evaluation.data_sets import DataSet, list_split
from riftcli.evaluation.encoder import Encoder
from riftcli.evaluation.evaluators.attention_maps import attention_maps, jensen_shannon
from riftcli.runs import provenance
from riftcli.runs.result_table import Findings, Row

# "images": (n, 3, H, W) uint8; "maps": label -> (n, heads, rows, columns); "ids"; "starts": label -> that of its pretrained model
Pictures = dict[str, Any]


def chosen_images(source: DataSet, split_name: str, count: int, seed: int, paths: Sequence[Path], encoder: Encoder) -> Split:
    """The files or folders that were named, else a sample of a split."""
    if paths:
        return image_split(paths, source.input)
    split, _ = inputs.sift(list_split(source, split_name), source.input, encoder.console)
    order = torch.randperm(len(split), generator=torch.Generator().manual_seed(seed))[:count].sort().values
    return split.take(order.tolist())


def attention_run(
    subjects: Sequence[Subject], source: DataSet, split: Split, block: int, encoder: Encoder
) -> tuple[Findings, Pictures]:
    """The maps of every run and of the model that it was finetuned from, and how far apart they are.

    Rows hold one image each: Jensen-Shannon distance and cosine of the mean map, and the mean distance over heads.
    """
    clock = Stopwatch()
    rows: list[Row] = []
    entries: dict[str, dict[str, Any]] = {}
    maps: dict[str, torch.Tensor] = {}
    shown: torch.Tensor | None = None
    starts = bases_of(subjects)
    for subject in subjects:
        base = starts[subject.label]
        for one in (base, subject):
            if one.label in maps:
                continue
            loaded = one.load(encoder.device)
            entries[one.label] = one.entry(loaded)
            read = inputs.with_pixels(split, source.input, loaded.preprocessing, encoder.console)
            transform = EvalTransform(loaded.preprocessing)
            pixels = torch.stack([transform(read.read(i)) for i in range(len(read))])  # (n, 3, H, W) uint8
            shown = pixels if shown is None else shown
            parts = [
                attention_maps(loaded.vit, loaded.preprocessing.normalise(chunk.to(encoder.device)), block).cpu()
                for chunk in pixels.split(encoder.batch_size)
            ]
            maps[one.label] = torch.cat(parts)
        before, after = maps[base.label], maps[subject.label]
        rows += _distances(subject, base, source, split, before, after)
    env = provenance.environment(encoder.device, "fp32", dist.world_size(), 0)
    settings = {"block": block, "split": split.name, "images": len(split)}
    where = {"data": source.name, "split": split.name}
    shown_maps = [{**row, **where} for label, values in maps.items() for row in map_rows(label, values.mean(1), split.ids)]
    tables = {"maps": shown_maps}  # of the single heads they would be a file of many megabytes
    findings = Findings("attention", settings, list(entries.values()), rows, env, tables, clock.seconds)
    pairs = {subject.label: starts[subject.label].label for subject in subjects}
    return findings, {"images": shown, "maps": maps, "ids": split.ids, "starts": pairs}


def _distances(
    subject: Subject, base: Subject, source: DataSet, split: Split, before: torch.Tensor, after: torch.Tensor
) -> list[Row]:
    mean_before, mean_after = before.mean(1).flatten(1), after.mean(1).flatten(1)  # (n, patches)
    distance = jensen_shannon(mean_before, mean_after)
    per_head = jensen_shannon(before.flatten(2), after.flatten(2)).mean(1)
    cosine = torch.nn.functional.cosine_similarity(mean_before.double(), mean_after.double(), dim=1)
    return [
        {
            "model": subject.label,
            "group": subject.group,
            "reference": base.label,
            "data": source.name,
            "split": split.name,
            "id": split.ids[i],
            "js_distance": float(distance[i]),
            "js_distance_heads": float(per_head[i]),
            "cosine": float(cosine[i]),
        }
        for i in range(len(split))
    ]


def map_rows(label: str, maps: torch.Tensor, ids: Sequence[str]) -> list[Row]:
    """What a column of pictures shows, as numbers: one row per image and row of patches; maps (n, rows, columns)."""
    return [
        {"model": label, "id": ids[i], "row": r, **{f"c{c}": share for c, share in enumerate(line)}}
        for i, picture in enumerate(maps.tolist())
        for r, line in enumerate(picture)
    ]


def head_rows(pictures: Pictures, labels: Sequence[str]) -> list[Row]:
    """The same for every head."""
    return [
        {"head": head, **row}
        for label in labels
        for head in range(pictures["maps"][label].shape[1])
        for row in map_rows(label, pictures["maps"][label][:, head], pictures["ids"])
    ]


def draw(path: Path, pictures: Pictures, labels: Sequence[str], heads: bool) -> None:
    """A PNG: one row per image, the image, then each model's mean map over it; with `heads`, every head of every model.

    All maps of a row share one colour scale.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    images, maps = pictures["images"], pictures["maps"]
    columns: list[tuple[str, Any]] = [(label, maps[label].mean(1)) for label in labels]
    if heads:
        columns += [(f"{label}\nhead {h + 1}", maps[label][:, h]) for label in labels for h in range(maps[label].shape[1])]
    figure, axes = plt.subplots(
        len(images),
        len(columns) + 1,
        figsize=(1.7 * (len(columns) + 1), 1.8 * len(images)),
        squeeze=False,
        constrained_layout=True,
    )
    for i, line in enumerate(axes):
        picture = np.asarray(images[i].permute(1, 2, 0))
        line[0].imshow(picture)
        line[0].set_ylabel(Path(pictures["ids"][i]).name[-22:], fontsize=6)
        highest = max(float(m[i].max()) for _, m in columns)
        for axis, (title, values) in zip(line[1:], columns, strict=True):
            height, width = picture.shape[:2]
            axis.imshow(picture.mean(2), cmap="gray")
            axis.imshow(
                values[i], cmap="inferno", alpha=0.65, vmin=0, vmax=highest, extent=(-0.5, width - 0.5, height - 0.5, -0.5)
            )
            if i == 0:
                axis.set_title(title, fontsize=7)
        for axis in line:
            axis.set_xticks([])
            axis.set_yticks([])
    figure.savefig(path, dpi=110)
    plt.close(figure)
