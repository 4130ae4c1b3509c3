"""The model card of a finished run, for people who did not train it: data, results with intervals, what was kept, limits."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

from riftcli.escaping import markdown as plain
from riftcli.evaluation.metrics_json import eval_name
from riftcli.files import write_text
from riftcli.functional.intervals import wilson_interval
from riftcli.runs.confusion_matrix import cells_of, has_one_label
from riftcli.runs.reader import as_written, read_json, read_report
from riftcli.runs.result_table import format_number

BEGIN = "<!-- what follows is made from the run's reports -->"
NAMES = {
    "acc": "accuracy",
    "top5": "top-5 accuracy",
    "bacc": "balanced accuracy (mean sensitivity over the classes)",
    "f1": "F1, mean over the classes",
    "auroc": "area under the ROC curve, mean over the classes",
    "map": "mean average precision",
    "ece": "expected calibration error (0: a stated probability is right that often)",
    "cka": "similarity of the features to the pretrained model's (CKA; 1: unchanged)",
    "cka_debiased": "the same, without the bias of a small sample",
}


def write_card(run: Path) -> None:
    """Put what the run's reports say below the card in model/README.md; again after further reports, in place of the old."""
    path = run / "model" / "README.md"
    head = path.read_text(encoding="utf-8").partition(BEGIN)[0].rstrip("\n")
    report = read_report(run)
    with as_written(run):
        text = f"{head}\n\n{BEGIN}\n{card_text(report, drawn_by(run, report))}"
    write_text(path, text)


def refresh_cards(runs: Iterable[Path]) -> None:
    """Write the cards of these runs again where they have one that can be written; others stay as they are."""
    for run in runs:
        if (run / "model" / "README.md").is_file() and (run / "metrics.json").is_file() and os.access(run / "model", os.W_OK):
            write_card(run)


def drawn_by(run: Path, report: dict[str, Any]) -> str | None:
    """What the intervals of `rift clinical` on the images of this report were drawn by, e.g. patient; None if it has not run."""
    path = run / "clinical" / eval_name(report) / "metrics.json"
    return read_json(path)["settings"]["drawn"].get(report["data"]["name"]) if path.is_file() else None


def card_text(report: dict[str, Any], drawn: str | None = None) -> str:
    """The sections of a card from a run's final report; drawn: see drawn_by."""
    data, training = report["data"], report.get("training_data", {})
    parts = [
        ("Intended use", _use(report)),
        ("Data", _data(data, training)),
        (f"Results on {data['n']} {'validation' if data.get('chose_weights') else 'test'} images", _results(report)),
        ("Per class", _per_class(report, drawn)),
        ("What was kept of the pretrained model", _kept(report)),
        ("Limits", _limits(report)),
        ("Provenance", _provenance(report)),
    ]
    return "\n".join(f"## {title}\n\n{body}\n" for title, body in parts if body)


def _table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [f"| {' | '.join(header)} |", f"| {' | '.join(['---'] * len(header))} |"]
    return "\n".join([*lines, *(f"| {' | '.join(map(str, row))} |" for row in rows)])


def _use(report: dict[str, Any]) -> str:
    data = report["data"]
    several = not has_one_label(report["confusion_matrix"])
    what = "says which of these labels an image has" if several else "puts an image into one of these classes"
    names = [plain(name) for name in data["classes"]]
    if len(names) > MANY:
        names = [*names[:3], f"... and {len(names) - 3:,} more (label_names in config.json)"]
    return (
        f"It {what}: {', '.join(names)}. It was measured on images of {plain(data['name'])} alone. How it "
        "does with other devices, sites, patients or ways of labelling is not known, and it says nothing about what is none of "
        "its classes. It is no medical device: nobody should be diagnosed or treated by it without a study of its own."
    )


def _data(data: dict[str, Any], training: dict[str, Any]) -> str:
    counts = training.get("class_counts", {})
    if len(data["classes"]) > MANY:
        shares = [_range(own.values()) for own in (counts, data["class_counts"]) if own]
        total = f"{training['n']:,} images of {len(data['classes']):,} classes were trained on" if "n" in training else ""
        return f"{total or 'Measured'}: {' images a class; measured on '.join(shares)} images a class."
    rows = [[plain(name), counts.get(name, ""), data["class_counts"].get(name, "")] for name in data["classes"]]
    total = f"{training['n']} images were trained on. " if "n" in training else ""
    return f"{total}Images per class:\n\n" + _table(["class", "training", "measured on"], rows)


def _range(counts: Collection[int]) -> str:
    least, most = min(counts), max(counts)
    return f"{least:,} to {most:,}" if least < most else f"{least:,}"


def _results(report: dict[str, Any]) -> str:
    n, rows = report["data"]["n"], []
    for name, entry in report["metrics"].items():
        value = entry["value"]
        around = ""
        if name == "acc" and value is not None and has_one_label(report["confusion_matrix"]):  # else a share of all labels
            around = "{:.3f} to {:.3f}".format(*wilson_interval(value, n))
        shown = f"undefined ({plain(entry.get('reason', ''))})" if value is None else f"{value:.3f}"
        rows.append([NAMES.get(name, plain(name)), shown, around])
    return _table(["measure", "value", "95 % interval"], rows)


def _share(right: int, of: int, without: str = "no such image") -> str:
    if of == 0:
        return f"undefined ({without})"
    low, high = wilson_interval(right / of, of)
    return f"{right / of:.3f} ({low:.3f} to {high:.3f})"


def _per_class(report: dict[str, Any], drawn: str | None) -> str:
    cells = cells_of(report["confusion_matrix"])
    found: Iterable[tuple[str, tuple[int, int, int, int]]] = cells.items()
    if len(cells) > MANY:  # a table of all is no card
        found = sorted(found, key=lambda item: item[1][0] / (item[1][0] + item[1][2]) if item[1][0] + item[1][2] else 2)[:MANY]
    some = f"The {MANY} of {len(cells):,} classes that were found least.\n\n" if len(cells) > MANY else ""
    rows = [
        [
            plain(name),
            f"{tp + fn} / {fp + tn}",
            _share(tp, tp + fn),
            _share(tn, tn + fp),
            _share(tp, tp + fp, "never the answer"),
            _share(tn, tn + fn),
        ]
        for name, (tp, fp, fn, tn) in found
    ]
    single = has_one_label(report["confusion_matrix"])
    how = "where the likeliest class is the answer" if single else "at a probability of 0.5"
    measures = "AUROC, and thresholds chosen on validation"
    more = (
        f"`rift clinical --run RUN` measures intervals by patient, {measures}."
        if drawn is None
        else f"`clinical/` in the run folder has intervals from draws of {drawn}s, {measures}."
    )
    return (
        some
        + _table(["class", "with / without", "sensitivity", "specificity", "PPV", "NPV"], rows)
        + f"\n\nEach class against the others, {how}; 95 % intervals (Wilson) as if every image were of another patient. "
        f"{more} PPV and NPV are for the shares of classes above."
    )


def _kept(report: dict[str, Any]) -> str:
    rows = []
    for name in ("cka", "cka_debiased"):
        entry = report["metrics"].get(name)
        if entry and entry["value"] is not None:
            rows.append([NAMES[name], "1.000", f"{entry['value']:.3f}"])
    for name, entry in report.get("retention", {}).items():
        before, after = (format_number(entry[key], digits=3) for key in ("knn_before", "knn_after"))
        rows.append([f"nearest neighbours on {plain(name)}", before, after])
        if entry.get("probe_before") is not None:
            rows.append([f"linear probe on {plain(name)}", f"{entry['probe_before']:.3f}", f"{entry['probe_after']:.3f}"])
    return _table(["measure", "before", "after"], rows) if rows else ""


def _limits(report: dict[str, Any]) -> str:
    data, lines = report["data"], []
    if "note" in data:
        lines.append(data["note"])
    if "warnings" not in report:  # of an older run; newer ones have warned of it
        lines += [f"{count} shared between splits: {pair}" for pair, count in data.get("overlap", {}).items()]
    lines += [f"{entry['n']} unreadable images of {name} were left out" for name, entry in data.get("skipped", {}).items()]
    few = [name for name, count in data["class_counts"].items() if count < FEW]
    if few:
        rest = f" and {len(few) - 10:,} more" if len(few) > 10 else ""
        lines.append(f"fewer than {FEW} images to measure on: {', '.join(few[:10])}{rest}")
    lines += report.get("warnings", [])
    return "\n".join(f"- {plain(line)}" for line in dict.fromkeys(lines))


MANY = 50  # classes from which those found least stand for all
FEW = 20  # images of a class below which its numbers say little


def _provenance(report: dict[str, Any]) -> str:
    env, model = report["env"], report["model"]
    versions = (
        f"riftcli {env['riftcli']} (torch {env['torch']}, timm {env['timm']}), seed {env['seed']}, on {plain(env['device'])}"
    )
    return (
        f"Made {report['created']} by {versions}; weights sha256 `{model['sha256']}`; images `{report['data']['fingerprint']}`."
    )
