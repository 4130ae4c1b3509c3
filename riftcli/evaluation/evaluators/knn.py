"""Nearest neighbours on data sets that were not trained on: what `rift knn` does (RIFT paper Table 3)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch

from riftcli import dist
from riftcli.console import Console, Stopwatch
from riftcli.data.reading import sift
from riftcli.data.split import Split
from riftcli.data.splits import query_and_bank
from riftcli.errors import UsageError
from riftcli.evaluation.candidates import Candidate, LoadedModel
from riftcli.evaluation.data_sets import EvalData
from riftcli.evaluation.encoder import Encoder
from riftcli.functional.knn import Neighbours, Vote, nearest, undecided, votes
from riftcli.runs.provenance import environment
from riftcli.runs.result_table import Column, ResultTable, Row, format_number, where


@dataclass(frozen=True)
class Knn:
    """Nearest-neighbour accuracy of features (RIFT paper Table 3).

    k: numbers of neighbours, each a row. vote: softmax (weights exp(cosine / temperature), the DINO protocol) | majority.
    few_shot: bank images per class, drawn `draws` times with `seed`; null takes the whole bank. probe: also a logistic
    regression on the bank's features.
    """

    k: tuple[int, ...] = (20,)
    temperature: float = 0.07
    vote: Vote = "softmax"
    few_shot: int | None = None
    draws: int = 5
    probe: bool = False
    seed: int = 0

    usual: ClassVar[dict[str, Any]] = {"vote": "softmax", "temperature": 0.07, "shots": None}

    def __post_init__(self) -> None:
        if not self.k or min(self.k) < 1:
            raise UsageError(f"--k {','.join(map(str, self.k))}: numbers of neighbours are 1 or more")
        if not 0 < self.temperature < math.inf:
            raise UsageError(f"--temperature {self.temperature:g}: must be above 0")
        if self.few_shot is not None and self.few_shot < 1:
            raise UsageError(f"--few-shot {self.few_shot}: images per class are 1 or more")
        if self.vote not in ("softmax", "majority"):
            raise UsageError(f"--vote {self.vote}: softmax or majority")

    def measure(self, candidates: Sequence[Candidate], data: Sequence[EvalData], encoder: Encoder) -> ResultTable:
        """Accuracy of every model on every data set; collective, the same table on every rank."""
        clock, console = Stopwatch(), encoder.console
        listed = [(source, *_splits(source, console)) for source in data]
        rows: list[Row] = []
        entries = []
        for candidate in candidates:
            loaded = candidate.load(encoder.device)
            entries.append(candidate.entry(loaded))
            for source, query, bank in listed:
                name = source.name
                encoded = _encoded(loaded, source, query, bank, encoder, f"{name} with {candidate.label}")
                place = bank.name if bank else "leave-one-out"
                facts = {"model": candidate.label, "group": candidate.group, "data": name, "bank": place}
                own = [{**facts, "n": len(query), **row} for row in classify(encoded, self, encoder.device)]
                console.line(f"{candidate.label} on {name}: " + ", ".join(f"{_title(r)} {format_number(r['acc'])}" for r in own))
                rows += own
            del loaded
        settings = {**asdict(self), "k": list(self.k)}
        env = environment(encoder.device, encoder.precision, dist.world_size(), self.seed)
        return ResultTable("knn", settings, entries, rows, env, seconds=clock.seconds, usual=self.usual)

    @classmethod
    def columns(cls, rows: Sequence[Row], here: tuple[str, str]) -> Iterator[Column]:
        """What a comparison of runs shows of the rows of one run; here: data and split that the run itself reports on."""
        for row in rows:
            k = "" if row["k"] is None else f" k={row['k']}"
            yield f"{row['classifier']}{k} {where(row, here[:1], cls.usual)}", row["acc"], True


@dataclass(frozen=True)
class Encoded:
    """A data set through one model. bank: features and targets; queries None means leave-one-out."""

    bank: torch.Tensor
    bank_targets: torch.Tensor
    queries: torch.Tensor | None
    targets: torch.Tensor
    classes: int


def classify(data: Encoded, options: Knn, device: torch.device) -> list[Row]:
    """One row per k, and one for the probe; with few_shot, means over the draws."""
    if options.few_shot is None:
        return [{**row, "std": None} for row in _classify(data, options, device)]
    if data.queries is None:
        raise UsageError("--few-shot needs queries beside the bank: this set is scored leave-one-out")
    drawn = [_classify(_few(data, options.few_shot, options.seed + i), options, device) for i in range(options.draws)]
    rows = []
    for same in zip(*drawn, strict=True):
        known = [row["acc"] for row in same if row["acc"] is not None]
        values = torch.tensor(known, dtype=torch.float64)
        std = float(values.std()) if len(values) > 1 else None
        rows.append({**same[0], "acc": float(values.mean()) if len(known) == len(same) else None, "std": std})
    return rows


def _classify(data: Encoded, options: Knn, device: torch.device) -> list[Row]:
    truth = data.targets
    facts = {
        "vote": options.vote,
        "temperature": options.temperature,
        "shots": options.few_shot,
        "bank_n": len(data.bank),
        "reason": undecided(data.bank, data.bank_targets),
    }
    if facts["reason"]:
        names = [("knn", k) for k in options.k] + [("probe", None)] * options.probe
        return [{"classifier": name, "k": k, "k_used": None, **facts, "acc": None} for name, k in names]
    found = _nearest_over_ranks(data, max(options.k), device)
    rows = []
    for k in options.k:
        scores = votes(found, data.bank_targets, data.classes, k, options.temperature, options.vote)
        accuracy = float((scores.argmax(1) == truth).double().mean())
        rows.append({"classifier": "knn", "k": k, "k_used": min(k, found.index.shape[1]), **facts, "acc": accuracy})
    if options.probe:
        guess = _probe(data, options.seed)
        accuracy = float((guess == truth).double().mean())
        rows.append({"classifier": "probe", "k": None, "k_used": None, **facts, "acc": accuracy})
    return rows


def _nearest_over_ranks(data: Encoded, k: int, device: torch.device) -> Neighbours:
    """Every rank searches, on its device, its part of the bank; all get the nearest of all parts."""
    alone = data.queries is None  # leave-one-out
    queries, own = (data.bank, torch.arange(len(data.bank))) if data.queries is None else (data.queries, None)
    parts = data.bank.tensor_split(dist.world_size())
    first = sum(len(part) for part in parts[: dist.rank()])
    part = nearest(parts[dist.rank()].to(device), queries, min(k, len(data.bank) - alone), own=own, first=first)
    found: Neighbours | None = None
    for similarity, index in dist.one_rank_at_a_time([part.similarity.cpu(), part.index.cpu()]):
        other = Neighbours(similarity, index)
        found = other if found is None else found.or_nearer(other)
    assert found is not None
    return found


def _few(data: Encoded, shots: int, seed: int) -> Encoded:
    """A bank of `shots` images per class (fewer where a class has fewer)."""
    generator = torch.Generator().manual_seed(seed)
    kept = []
    for label in range(data.classes):
        own = (data.bank_targets == label).nonzero().flatten()
        kept.append(own[torch.randperm(len(own), generator=generator)[:shots]])
    rows = torch.cat(kept).sort().values
    return Encoded(data.bank[rows], data.bank_targets[rows], data.queries, data.targets, data.classes)


PROBE_STRENGTHS = (0.01, 0.1, 1.0, 10.0)


def _probe(data: Encoded, seed: int) -> torch.Tensor:
    """Logistic regression on standardised features; its C is chosen on a fifth of the bank, never on the queries."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import train_test_split
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    if data.queries is None:
        raise UsageError("--probe needs queries beside the bank: this set is scored leave-one-out")

    def model(strength: float) -> Any:
        return make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=1000))

    bank, labels = data.bank.double().numpy(), data.bank_targets.numpy()
    best = 1.0
    counts = data.bank_targets.bincount()
    if int(counts[counts > 0].min()) >= 5:  # else there is nothing to choose on
        fit, held, fit_labels, held_labels = train_test_split(bank, labels, test_size=0.2, stratify=labels, random_state=seed)
        best = max(PROBE_STRENGTHS, key=lambda c: model(c).fit(fit, fit_labels).score(held, held_labels))
    return torch.from_numpy(model(best).fit(bank, labels).predict(data.queries.double().numpy()))


def _splits(source: EvalData, console: Console) -> tuple[Split, Split | None]:
    query, bank = query_and_bank(source.data)
    query, _ = sift(query, source.input, console)
    return query, None if bank is None else sift(bank, source.input, console)[0]


def _encoded(loaded: LoadedModel, source: EvalData, query: Split, bank: Split | None, encoder: Encoder, what: str) -> Encoded:
    queries = encoder.encode(loaded, query, source.input, what).features
    targets = torch.from_numpy(query.targets)
    if bank is None:
        return Encoded(queries, targets, None, targets, len(query.classes))
    features = encoder.encode(loaded, bank, source.input, f"{what}, bank").features
    return Encoded(features, torch.from_numpy(bank.targets), queries, targets, len(bank.classes))


def _title(row: Row) -> str:
    shots = f", {row['shots']} per class" if row["shots"] else ""
    which = "" if row["k"] is None else f" k={row['k']}"
    return f"{row['classifier']}{which}{shots}"
