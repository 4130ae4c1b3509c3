"""May an old gallery be searched with a new model's queries: what `rift retrieval` does (arXiv 2509.16664)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch

from riftcli import dist
from riftcli.console import Stopwatch
from riftcli.data.classes import with_classes
from riftcli.data.reading import sift
from riftcli.data.split import Split
from riftcli.errors import DataError, UsageError
from riftcli.evaluation.candidates import Candidate, bases_of, distinct
from riftcli.evaluation.data_sets import EvalData, list_split
from riftcli.evaluation.encoder import Encoder
from riftcli.functional.compatibility import Order, area, difference_interval, gain, refill_order, refilled
from riftcli.functional.neighbours import all_equally_near
from riftcli.functional.ranking import Ranking, queries_at_a_time, ranked
from riftcli.models.feature_map import FeatureMap
from riftcli.runs.provenance import environment
from riftcli.runs.result_table import Column, ResultTable, Row, where

SHARES = tuple(i / 10 for i in range(11))  # of a gallery that is renewed bit by bit
ORDERS: tuple[Order, ...] = ("farthest", "random")


@dataclass(frozen=True)
class Sides:
    """Features of one set by one model: of the queries (Q, D) and of the gallery (G, D)."""

    queries: torch.Tensor
    gallery: torch.Tensor


@dataclass(frozen=True)
class Search:
    """What is searched, and with what: labels (Q,), (G,), and each query's own place in the gallery (Q,), -1 for none."""

    labels: torch.Tensor
    gallery_labels: torch.Tensor
    own: torch.Tensor

    def ranked(self, queries: torch.Tensor, gallery: torch.Tensor, places: Sequence[int], device: torch.device) -> Ranking:
        """Collective: each rank holds a part of the gallery, all get the whole result.

        No query has a score where all is equally near or of one class: every model then finds the same.
        """
        if len(self.gallery_labels.unique()) < 2 or all_equally_near(queries) or all_equally_near(gallery):
            nothing = torch.zeros(len(queries), dtype=torch.bool)
            return Ranking(nothing[:, None].expand(-1, len(places)), nothing.double(), nothing)
        total, parts = len(gallery), dist.world_size()
        start, stop = total * dist.rank() // parts, total * (dist.rank() + 1) // parts
        own = torch.where((self.own >= start) & (self.own < stop), self.own - start, -1)
        found = ranked(
            queries.to(device),
            gallery[start:stop].to(device),
            self.labels.to(device),
            self.gallery_labels[start:stop].to(device),
            own.to(device),
            places,
            queries_at_a_time(total),  # of the whole gallery: parts may differ by a row, and ranks meet once a chunk
            gather=_side_by_side,
            add=dist.sum_over_ranks,
        )
        return Ranking(*(tensor.cpu() for tensor in found))


def _side_by_side(rows: torch.Tensor) -> torch.Tensor:
    """(q, P) of every rank, P not the same everywhere."""
    return torch.cat([part.to(rows.device) for part in dist.gather_objects(rows.cpu())], 1)


@dataclass(frozen=True)
class Retrieval:
    """CMC and mAP of every pair of an old and a new model, by cosine, and whether the new one can be used with the old gallery.

    query, gallery: splits of the data; gallery null takes the queries themselves, each without its own image. places: k of CMC-k.
    against: the old model, else what each run was finetuned from. maps: of `rift align`, each adds its pairs. backfill: also the
    curves of a gallery that is renewed bit by bit. draws, seed: of the bootstrap behind the verdict's interval of 95 %.
    """

    query: str = "test"
    gallery: str | None = None
    places: tuple[int, ...] = (1, 5)
    against: Candidate | None = None
    maps: dict[str, FeatureMap] = field(default_factory=dict)
    backfill: bool = False
    draws: int = 2000
    seed: int = 0

    usual: ClassVar[dict[str, Any]] = {"gallery_split": None}
    plot: ClassVar[str] = "riftcli.report.plots.retrieval:plot_retrieval"

    def __post_init__(self) -> None:
        if not self.places or min(self.places) < 1:
            raise UsageError(f"--places {','.join(map(str, self.places))}: 1 or more")
        object.__setattr__(self, "places", tuple(sorted({1, *self.places})))  # the verdict is by CMC-1

    def measure(self, candidates: Sequence[Candidate], data: Sequence[EvalData], encoder: Encoder) -> ResultTable:
        """Every new model beside its old one on every data set; collective, the same table on every rank."""
        clock, rows, curves, entries = Stopwatch(), [], [], {}
        starts = self._starts(candidates)
        for source in data:
            queries, gallery = self._splits(source, encoder)
            search = _search(queries, gallery)
            known: dict[str, Sides] = {}
            for new in candidates:
                old = starts[new.label]
                sides = []
                for model in (old, new):
                    if model.identity not in known:
                        known[model.identity], entries[model.identity] = _sides(model, source, queries, gallery, encoder)
                    sides.append(known[model.identity])
                made_for = {k: _made_for(m, entries[old.identity], entries[new.identity]) for k, m in self.maps.items()}
                facts: Row = {"model": new.label, "group": new.group, "data": source.name, "split": queries.name}
                facts |= {"gallery_split": None if gallery is None else gallery.name, "reference": old.label}
                facts |= {"n": len(queries), "gallery_n": len(queries if gallery is None else gallery)}
                found, refills = self._pairs(sides[0], sides[1], search, encoder)
                rows += [{**facts, **row, "map_made_for": made_for.get(row["through"])} for row in found]
                for name, others in made_for.items():
                    if others is not None:
                        encoder.console.warn(f"{new.label}: the map {name} was made for {others}, and is used all the same")
                curves += [{**facts, **row} for row in refills]
                _say(encoder, facts, found)
        settings: dict[str, Any] = {
            "query": self.query,
            "gallery": self.gallery,
            "places": list(self.places),
            "draws": self.draws,
        }
        settings |= {"against": self.against.label if self.against else None}
        settings |= {"maps": {name: {"kind": chosen.kind, **chosen.about} for name, chosen in self.maps.items()}}
        env = environment(encoder.device, encoder.precision, dist.world_size(), self.seed)
        tables = {"backfill": curves} if self.backfill else {}
        return ResultTable("retrieval", settings, list(entries.values()), rows, env, tables, clock.seconds, self.usual)

    def _starts(self, candidates: Sequence[Candidate]) -> dict[str, Candidate]:
        """Label -> the old model beside it."""
        if self.against is None:
            return bases_of(candidates)
        for candidate in candidates:
            if candidate.identity == self.against.identity:
                raise UsageError(f"--against {self.against.label}: is the new model itself; name another old one")
        *_, old = distinct([*candidates, self.against])
        return dict.fromkeys((candidate.label for candidate in candidates), old)

    def _splits(self, source: EvalData, encoder: Encoder) -> tuple[Split, Split | None]:
        names = [self.query] if self.gallery in (None, self.query) else [self.query, self.gallery]
        found = [sift(list_split(source, str(name)), source.input, encoder.console)[0] for name in names]
        for split in found:
            if split.task != "multiclass":
                raise DataError(
                    f"{source.name}, split '{split.name}': retrieval needs one class per image, and this is {split.task}"
                )
        if len(found) == 1:
            return found[0], None
        return with_classes(found[1].classes, found[0], source.data.rules.allow_missing_classes), found[1]

    def _pairs(self, old: Sides, new: Sides, search: Search, encoder: Encoder) -> tuple[list[Row], list[Row]]:
        """The plain pairs, and those of every map; and the curves of a renewed gallery."""
        device = encoder.device
        same = search.ranked(old.queries, old.gallery, self.places, device)
        fresh = search.ranked(new.queries, new.gallery, self.places, device)
        rows = [self._row(None, "old", "old", same, None, None), self._row(None, "new", "new", fresh, None, None)]
        curves: list[Row] = []
        if old.queries.shape[1] == new.queries.shape[1]:
            rows.append(self._row(None, "new", "old", search.ranked(new.queries, old.gallery, self.places, device), same, fresh))
            curves += self._curves(None, old.gallery, new.gallery, new.queries, search, device)
        for name, chosen in self.maps.items():
            _check_widths(name, chosen, old, new)
            mapped = Sides(chosen.to_old(new.queries, old.queries), chosen.to_old(new.gallery, old.gallery))
            plain = Sides(chosen.old(old.queries), chosen.old(old.gallery))
            pairs = {("B(new)", "old"): (mapped.queries, plain.gallery), ("B(new)", "B(new)"): (mapped.queries, mapped.gallery)}
            renewed = plain.gallery
            if chosen.forward is not None:
                forward = Sides(chosen.to_new(old.queries), chosen.to_new(old.gallery))
                pairs[("F(old)", "F(old)")] = (forward.queries, forward.gallery)
                pairs[("B(new)", "F(old)")] = (mapped.queries, forward.gallery)
                renewed = forward.gallery
            for (one, other), (queries, gallery) in pairs.items():
                crossed = one == "B(new)" and other != one
                result = search.ranked(queries, gallery, self.places, device)
                rows.append(self._row(name, one, other, result, same if crossed else None, fresh))
            curves += self._curves(name, renewed, mapped.gallery, mapped.queries, search, device)
        return rows, curves

    def _row(self, name: str | None, one: str, other: str, found: Ranking, same: Ranking | None, fresh: Ranking | None) -> Row:
        """One pair. same, fresh: old with old and new with new, for pairs that cross from one to the other."""
        row: Row = {"through": name, "queries": one, "gallery": other, **found.means(self.places)}
        row |= dict.fromkeys(("reason", "gain", "low", "high", "compatible"))
        if not bool(found.defined.any()):
            row["reason"] = "no query has its class in the gallery, or all of the gallery is of one class or equally near"
        if same is None or fresh is None or not bool(found.defined.any()):
            return row
        some = found.defined
        values, base = (ranking.hits[some, 0].double() for ranking in (found, same))
        low, high = difference_interval(values, base, self.draws, self.seed)
        better = float(values.mean()) > float(base.mean())
        return {
            **row,
            "gain": gain(float(values.mean()), float(base.mean()), float(fresh.hits[some, 0].double().mean())),
            "low": low,
            "high": high,
            "compatible": better,
        }

    def _curves(
        self,
        name: str | None,
        old: torch.Tensor,
        new: torch.Tensor,
        queries: torch.Tensor,
        search: Search,
        device: torch.device,
    ) -> list[Row]:
        """CMC-1 and mAP of the new queries while the gallery is renewed, farthest from the class mean first and at random."""
        rows: list[Row] = []
        if not self.backfill:
            return rows
        for order in ORDERS:
            sequence = refill_order(old, search.gallery_labels, order, self.seed)
            results = [search.ranked(queries, refilled(old, new, sequence, share), (1,), device).means((1,)) for share in SHARES]
            areas = {f"{key}_area": _area([r[key] for r in results]) for key in ("cmc_1", "map")}
            rows += [{"through": name, "order": order, "share": s, **r, **areas} for s, r in zip(SHARES, results, strict=True)]
        return rows

    @classmethod
    def columns(cls, rows: Sequence[Row], here: tuple[str, str]) -> Iterator[Column]:
        """What a comparison of runs shows of the rows of one run: the new model with the old gallery."""
        for row in rows:
            if row["gallery"] == "old" and row["queries"] != "old" and str(row["reference"]).startswith("pretrained"):
                through = f" by {row['through']}" if row["through"] else ""
                yield f"cmc_1 {row['queries']}/old{through} {where(row, here, cls.usual)}".rstrip(), row["cmc_1"], True


def _area(values: Sequence[float | None]) -> float | None:
    """None for a curve with points that are not defined."""
    known = [value for value in values if value is not None]
    return area(SHARES, known) if len(known) == len(SHARES) else None


def _search(queries: Split, gallery: Split | None) -> Search:
    """A query that is in the gallery too, by its id, is left out of its own ranking."""
    labels = torch.from_numpy(queries.targets)
    if gallery is None:
        return Search(labels, labels, torch.arange(len(labels)))
    places = {name: place for place, name in enumerate(gallery.ids)}
    return Search(labels, torch.from_numpy(gallery.targets), torch.tensor([places.get(name, -1) for name in queries.ids]))


def _sides(
    model: Candidate, source: EvalData, queries: Split, gallery: Split | None, encoder: Encoder
) -> tuple[Sides, dict[str, Any]]:
    loaded = model.load(encoder.device)
    what = f"{source.name} with {model.label}"
    found = encoder.encode(loaded, queries, source.input, what).features
    there = found if gallery is None else encoder.encode(loaded, gallery, source.input, f"{what}, gallery").features
    return Sides(found, there), model.entry(loaded)


def _check_widths(name: str, chosen: FeatureMap, old: Sides, new: Sides) -> None:
    widths = old.queries.shape[1], new.queries.shape[1]
    if (chosen.old_width, chosen.new_width) != widths:
        raise UsageError(
            f"--map {name}: from {chosen.new_width} to {chosen.old_width} dimensions, and these models have {widths[1]} and "
            f"{widths[0]}; it was made for {chosen.about.get('new', 'other models')}"
        )


def _made_for(chosen: FeatureMap, old: dict[str, Any], new: dict[str, Any]) -> str | None:
    """The other models that a map was made for, by checksum of the weights, else by name; None for these."""
    others = []
    for side, entry in (("old", old), ("new", new)):
        own = chosen.about.get(side, {})
        key = "sha256" if own.get("sha256") and entry.get("sha256") else "label"
        if own.get(key) != entry.get(key):
            others.append(f"{side} {own.get('label', 'unknown')}")
    return " and ".join(others) or None


def _say(encoder: Encoder, facts: Row, rows: Sequence[Row]) -> None:
    found = [row for row in rows if row["compatible"] is not None]
    for row in found:
        through = f" by {row['through']}" if row["through"] else ""
        verdict = "compatible" if row["compatible"] else "not compatible"
        encoder.console.line(
            f"{facts['model']} on {facts['data']}: {row['queries']} queries, {row['gallery']} gallery{through}: CMC-1 "
            f"{row['cmc_1']:.4f}, {row['low']:+.4f} to {row['high']:+.4f} against old queries: {verdict}"
        )
