"""Where a model looked before and after finetuning: what `rift attention` does (RIFT paper Fig. 5 and A2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch

from riftcli import dist
from riftcli.console import Stopwatch
from riftcli.data.image_files import image_split
from riftcli.data.reading import sift, with_pixels
from riftcli.data.split import Split
from riftcli.data.transforms import EvalTransform
from riftcli.evaluation.candidates import Candidate, LoadedModel, bases_of
from riftcli.evaluation.data_sets import EvalData, list_split
from riftcli.evaluation.encoder import Encoder
from riftcli.models.attention_maps import attention_maps, jensen_shannon
from riftcli.runs.provenance import environment
from riftcli.runs.result_table import ResultTable, Row


@dataclass(frozen=True)
class Attention:
    """Where a model looked before and after finetuning (RIFT paper Fig. 5 and A2).

    count: images at most, drawn with `seed` from `split`, or from `images`: files or folders that are named instead. block: whose
    attention is shown, from 0, negative from the end. heads: also a picture with every head.
    """

    count: int = 8
    split: str = "test"
    block: int = -1
    heads: bool = True
    seed: int = 0
    images: tuple[Path, ...] = ()

    plot: ClassVar[str] = "riftcli.report.plots.attention:plot_attention"

    def measure(self, candidates: Sequence[Candidate], data: Sequence[EvalData], encoder: Encoder) -> ResultTable:
        """The maps of every run and of the model that it was finetuned from, and how far apart they are.

        Rows hold one image each: Jensen-Shannon distance and cosine of the mean map, and the mean distance over heads.
        `pictures`: images (n, 3, H, W) uint8; maps: label -> (n, heads, rows, columns); ids; starts: label -> that of its
        pretrained model. Looks at the first of `data`.
        """
        clock, source = Stopwatch(), data[0]
        split, among = self._chosen(source, encoder)
        rows: list[Row] = []
        entries: dict[str, dict[str, Any]] = {}
        maps: dict[str, torch.Tensor] = {}
        images: torch.Tensor | None = None
        starts = bases_of(candidates)
        for candidate in candidates:
            base = starts[candidate.label]
            for one in (base, candidate):
                if one.label not in maps:
                    loaded = one.load(encoder.device)
                    entries[one.label] = one.entry(loaded)
                    pixels, maps[one.label] = self._maps(loaded, split, source, encoder)
                    images = pixels if images is None else images
            rows += _distances(candidate, base, source, split, maps[base.label], maps[candidate.label])
        env = environment(encoder.device, "fp32", dist.world_size(), 0)
        settings = {"block": self.block, "split": split.name, "images": len(split), "among": among}
        place = {"data": source.name, "split": split.name}
        # of the single heads they would be a file of many megabytes
        tables = {"maps": [{**row, **place} for label, m in maps.items() for row in map_rows(label, m.mean(1), split.ids)]}
        pairs = {candidate.label: starts[candidate.label].label for candidate in candidates}
        pictures = {"images": images, "maps": maps, "ids": split.ids, "starts": pairs, "heads": self.heads}
        table = ResultTable("attention", settings, list(entries.values()), rows, env, tables, clock.seconds)
        table.pictures = pictures
        return table

    def _chosen(self, source: EvalData, encoder: Encoder) -> tuple[Split, int]:
        """(a sample of the files or folders that were named, else of a split; of how many)."""
        if self.images:
            split = image_split(self.images, source.input)
        else:
            split, _ = sift(list_split(source, self.split), source.input, encoder.console)
        order = torch.randperm(len(split), generator=torch.Generator().manual_seed(self.seed))[: self.count].sort().values
        return split.take(order.tolist()), len(split)

    def _maps(self, loaded: LoadedModel, split: Split, source: EvalData, encoder: Encoder) -> tuple[torch.Tensor, torch.Tensor]:
        """(images (n, 3, H, W) uint8 as this model sees them, maps (n, heads, rows, columns))."""
        read = with_pixels(split, source.input, loaded.preprocessing, encoder.console)
        transform = EvalTransform(loaded.preprocessing)
        pixels = torch.stack([transform(read.read(i)) for i in range(len(read))])
        parts = [
            attention_maps(loaded.vit, loaded.preprocessing.normalise(chunk.to(encoder.device)), self.block).cpu()
            for chunk in pixels.split(encoder.batch_size)
        ]
        return pixels, torch.cat(parts)


def _distances(
    candidate: Candidate, base: Candidate, source: EvalData, split: Split, before: torch.Tensor, after: torch.Tensor
) -> list[Row]:
    mean_before, mean_after = before.mean(1).flatten(1), after.mean(1).flatten(1)  # (n, patches)
    distance = jensen_shannon(mean_before, mean_after)
    per_head = jensen_shannon(before.flatten(2), after.flatten(2)).mean(1)
    cosine = torch.nn.functional.cosine_similarity(mean_before.double(), mean_after.double(), dim=1)
    return [
        {
            "model": candidate.label,
            "group": candidate.group,
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


def head_rows(pictures: dict[str, Any], labels: Sequence[str]) -> list[Row]:
    """The same for every head."""
    return [
        {"head": head, **row}
        for label in labels
        for head in range(pictures["maps"][label].shape[1])
        for row in map_rows(label, pictures["maps"][label][:, head], pictures["ids"])
    ]
