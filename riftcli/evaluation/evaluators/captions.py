"""Images and their captions: what `rift captions` does (retrieval; DiVE paper Table 1)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

import torch

from riftcli import dist
from riftcli.console import Stopwatch
from riftcli.data.reading import sift
from riftcli.data.split import Split
from riftcli.errors import DataError, UsageError
from riftcli.evaluation.candidates import Candidate, LoadedModel, bases_of
from riftcli.evaluation.data_sets import EvalData, list_split
from riftcli.evaluation.encoder import Encoder
from riftcli.evaluation.zero_shot import captions_of, geometry_kept
from riftcli.functional.retrieval import recall_at
from riftcli.models.image_text import text_tower
from riftcli.runs.provenance import environment
from riftcli.runs.result_table import Column, ResultTable, Row

Embedded = tuple[torch.Tensor, torch.Tensor]  # images (N, E), captions (M, E)


@dataclass(frozen=True)
class CaptionRetrieval:
    """Recall at 1, 5 and 10 between images and their captions, and RSA to the pretrained model over both (DiVE Tab. 1).

    split: test, val, train or any of the source.
    """

    split: str = "test"

    def measure(self, candidates: Sequence[Candidate], data: Sequence[EvalData], encoder: Encoder) -> ResultTable:
        """Every model on every caption set; collective. Raises UsageError for a model without a text tower."""
        clock, rows, entries = Stopwatch(), [], []
        listed = [(source, self._listed(source, encoder)) for source in data]
        starts = bases_of([candidate for candidate in candidates if candidate.is_run])
        known: dict[tuple[str, str], Embedded] = {}
        for candidate in candidates:
            loaded = candidate.load(encoder.device)
            entries.append(candidate.entry(loaded))
            for source, split in listed:
                after = _embedded(candidate, loaded, source, split, encoder)
                _, owners = captions_of(split)
                row: Row = {"model": candidate.label, "group": candidate.group, "data": source.name, "split": split.name}
                row |= {"n": len(split), "captions": len(owners), **recall_at(*after, owners)}
                row |= dict.fromkeys(("rsa", "rsa_images", "rsa_texts"))
                if candidate.label in starts:
                    base = starts[candidate.label]
                    place = (base.label, source.name)
                    if place not in known:
                        known[place] = _embedded(base, base.load(encoder.device), source, split, encoder)
                    row |= geometry_kept(known[place], after, owners)
                rows.append(row)
            del loaded
        env = environment(encoder.device, encoder.precision, dist.world_size(), 0)
        return ResultTable("captions", asdict(self), entries, rows, env, seconds=clock.seconds)

    def _listed(self, source: EvalData, encoder: Encoder) -> Split:
        split = list_split(source, self.split)
        if split.captions is None:
            raise DataError(f"{source.name}, split '{split.name}': images without captions; use format captions")
        return sift(split, source.input, encoder.console)[0]

    @classmethod
    def columns(cls, rows: Sequence[Row], here: tuple[str, str]) -> Iterator[Column]:
        """What a comparison of runs shows of the rows of one run."""
        for row in rows:
            for key in ("image_to_text_r1", "text_to_image_r1", "rsa"):
                if row.get(key) is not None:
                    yield f"{key} {row['data']}", row[key], True


def _embedded(candidate: Candidate, loaded: LoadedModel, source: EvalData, split: Split, encoder: Encoder) -> Embedded:
    tower = text_tower(loaded.vit)
    if tower is None:
        raise UsageError(f"{candidate.label}: has no text tower, so it reads no captions")
    what = f"{source.name} with {candidate.label}"
    images = encoder.encode(loaded, split, source.input, what).features
    return images, encoder.texts(tower, captions_of(split)[0], f"captions of {what}")
