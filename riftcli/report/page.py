"""One self-contained HTML page for one run or many: numbers, curves, maps, recipe. Opens without a network."""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from riftcli.evaluation.candidates import Candidate
from riftcli.evaluation.metrics_json import eval_name
from riftcli.files import write_text
from riftcli.functional.intervals import wilson_interval
from riftcli.report import figures
from riftcli.report.compare import Cell, Comparison, compare
from riftcli.report.figures import Figure
from riftcli.report.formats import text_of
from riftcli.report.missing import COMMANDS, missing_parts
from riftcli.report.page_template import PAGE, SORTING
from riftcli.report.plots.reliability import read_reliability
from riftcli.report.records import Record, record, start_records
from riftcli.report.style import STYLE
from riftcli.report.words import in_words, is_main
from riftcli.runs.confusion_matrix import cells_of, has_one_label
from riftcli.runs.folder import read_run
from riftcli.runs.provenance import now
from riftcli.runs.reader import as_written, read_json, read_report, read_rows

KEPT = "Kept against learned"  # the picture that a page begins with
PICTURE = re.compile(r"mistakes/[0-9]+\.jpg")
MANY_RUNS = 4  # whose mistakes are shown
MOST_ROWS = 200  # of the table of classes
MANY_CLASSES = 40  # above, a confusion matrix is a file, not a picture


def write_page(out: Path, candidates: Sequence[Candidate], baseline: str | None = None) -> None:
    """Write one page on finished runs, from what their folders hold; says what was not measured and how to."""
    folders = [candidate.folder for candidate in candidates if candidate.folder is not None]
    with as_written(folders[0] if len(folders) == 1 else Path(os.path.commonpath([folder.resolve() for folder in folders]))):
        page = _page(candidates, baseline)
    write_text(out, page)


def _page(candidates: Sequence[Candidate], baseline: str | None) -> str:
    records = [record(candidate) for candidate in candidates]
    table = compare([*start_records(records), *records], [], baseline, by_method=False)
    groups = figures.groups_of(records)
    palette = figures.colours(list(groups))
    sections = [(name, parts) for name, parts in _sections(records, groups, table, palette) if parts]
    environment = jinja2.Environment(autoescape=True)
    environment.globals |= {"text": _two_lines, "words": in_words}
    main = [column for column in table.columns if is_main(column)] or table.columns
    return environment.from_string(PAGE).render(
        style=STYLE,
        title=records[0].label if len(records) == 1 else f"{len(groups)} methods, {len(records)} runs",
        lead=_lead(records),
        main=main,
        minor=[column for column in table.columns if column not in main],
        cautions=_cautions(records),
        caption=_caption(records, table),
        before=_before_and_after(records),
        table=table,
        results=figures._address("text/csv", figures.csv_of(_flat(table)).encode()),
        picture=dict(sections).get(KEPT),
        mistakes=[(r.label, items) for r in (members[0] for members in groups.values()) if (items := _mistakes(r))][:MANY_RUNS],
        sorting=Markup(SORTING),
        per_class=_per_class(records),
        most=MOST_ROWS,
        sections=[(name, parts) for name, parts in sections if name != KEPT],
        missing=_missing(records),
        provenance=[_provenance(r) for r in records],
        written=now(),
    )


def _two_lines(column: str, cell: Cell | None) -> tuple[str, str]:
    """A cell's value, and below it its change: side by side, few rows would fit a screen."""
    value, _, change = text_of(column, cell).replace("+-", "±").partition(" (")
    return value, change.removesuffix(")")


def _flat(table: Comparison) -> list[dict[str, Any]]:
    from riftcli.report.formats import flat

    return [{**row, "values": " ".join(map(str, row["values"] or []))} for row in flat(table)]


def _lead(records: Sequence[Record]) -> str:
    reports = [read_report(r.folder) for r in records]
    sets = ", ".join(dict.fromkeys(f"{r['data']['name']} ({r['data']['split']}, {r['data']['n']} images)" for r in reports))
    backbones = ", ".join(dict.fromkeys(r["model"]["architecture"] for r in reports))
    told = [r for r in reports if "warnings" not in r]  # of newer runs it stands among the warnings
    notes = "".join(f" Not reached: {r['strength']['note']}." for r in told if r.get("strength", {}).get("note"))
    return f"{backbones} finetuned on {sets}. All numbers are of the weights that validation chose.{notes}"


def _cautions(records: Sequence[Record]) -> list[str]:
    """What the runs warned of; of several runs with their names."""
    found: dict[str, list[str]] = {}
    for r in records:
        report = read_report(r.folder)
        noted = [report["data"]["note"]] if "note" in report["data"] else []
        for text in [*noted, *report.get("warnings", [])]:
            found.setdefault(text, []).append(r.label)
    return [text if len(records) == 1 else f"{', '.join(labels)}: {text}" for text, labels in found.items()]


def _caption(records: Sequence[Record], table: Comparison) -> str:
    """What the numbers of the table are, of those that are there."""
    cells = [cell for row in table.rows.values() for cell in row.values()]
    parts = []
    if any(cell.count > 1 for cell in cells):
        parts.append("Mean and standard deviation over seeds or folds.")
    if any(cell.best for cell in cells):
        parts.append("The best of a line is bold.")
    if table.baseline and any(cell.change is not None for cell in cells):
        parts.append(
            f"Below it the change against {table.baseline} and, where both have the same seeds or folds, p of the paired t test."
        )
    report = read_report(records[0].folder)
    share, n = report["metrics"].get("acc", {}).get("value"), report["data"]["n"]
    single = has_one_label(report["confusion_matrix"])  # with several labels, accuracy is a share of all of them
    if len(records) == 1 and share is not None and single:
        low, high = wilson_interval(share, n)
        parts.append(f"95 % interval of the accuracy, from {n} images: {low:.4f} to {high:.4f} (Wilson).")
    return " ".join(parts)


def _before_and_after(records: Sequence[Record]) -> list[tuple[str, str, str]]:
    """(metric, value before the first step, value of the kept weights), of one run with a validation split."""
    report = read_report(records[0].folder)
    if len(records) > 1 or "validation_start" not in report:
        return []
    old, new = report["validation_start"], report["validation"]
    return [(name, _short(value), _short(new[name])) for name, value in old.items() if name in new]


def _per_class(records: Sequence[Record]) -> list[dict[str, Any]]:
    """Rates of every class of a single run, those found least first."""
    if len(records) > 1:
        return []
    rows = []
    for name, (tp, fp, fn, _) in cells_of(read_report(records[0].folder)["confusion_matrix"]).items():
        of, named = tp + fn, tp + fp
        low, high = wilson_interval(tp / of, of) if of else (0.0, 1.0)
        shares = {"found": f"{tp / of:.3f}" if of else "no image", "interval": f"{low:.3f} to {high:.3f}" if of else ""}
        rows.append(
            {
                "name": name,
                "images": of,
                **shares,
                "right": f"{tp / named:.3f}" if named else "never named",
                "order": tp / of if of else 2,
            }
        )
    return sorted(rows, key=lambda row: row["order"])


def _short(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.4f}"


def _sections(
    records: Sequence[Record], groups: dict[str, list[Record]], table: Comparison, palette: dict[str, str]
) -> list[tuple[str, list[Figure]]]:
    logs = {group: [read_rows(r.folder) for r in members] for group, members in groups.items()}
    first = [members[0] for members in groups.values()]  # pictures of single runs are of the first seed
    score = next((c for c in ("acc or map (mean)", "map", "acc") if c in table.columns), None)
    kept = next((c for c in ("cka (mean)", "cka") if c in table.columns), None)
    balance = [figures.trade_off(table, score, kept, palette)] if score and kept else []
    for other in ("zero-shot mean", "shifted mean"):
        if score and other in table.columns:
            balance.append(figures.trade_off(table, score, other, palette))
    balance += [figures.spread_of_runs(groups, "cka", palette)] if kept == "cka" else []
    alone = all(len(members) == 1 for members in groups.values())
    found: list[tuple[str, list[Figure | None]]] = [
        (KEPT, list(balance)),
        ("Training" if alone else "Training: mean over seeds, the band is their range", list(figures.curves(logs, palette))),
        ("Calibration", [_reliability(first, palette)]),
        ("Mistakes", [_confusion(r) for r in first]),
        ("Features, before and after", [part for r in first for part in _maps(r)]),
        ("Attention, before and after", [part for r in first for part in _attention(r)]),
    ]
    return [(name, [part for part in parts if part is not None]) for name, parts in found]


def _reliability(records: Sequence[Record], palette: dict[str, str]) -> Figure | None:
    curves = {}
    for r in records:
        path = r.folder / "eval" / eval_name(read_report(r.folder)) / "reliability.csv"
        if path.is_file():
            curves[r.group] = read_reliability(path)
    return figures.reliability(curves, palette) if curves else None


def _confusion(r: Record) -> Figure | None:
    matrix = read_report(r.folder)["confusion_matrix"]
    if "counts" not in matrix or len(matrix["classes"]) > MANY_CLASSES:
        return None
    return figures.confusion(r.label, matrix)


def _mistakes(r: Record) -> list[dict[str, str]]:
    """The pictures of `rift finetune`'s report that were wrong with most confidence; none of runs before there were any."""
    folder = r.folder / "eval" / eval_name(read_report(r.folder))
    if not (folder / "mistakes.csv").is_file():
        return []
    with (folder / "mistakes.csv").open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if PICTURE.fullmatch(row.get("picture") or "")]
    found = [(row, figures.read_picture(folder / row["picture"], r.folder)) for row in rows]
    return [
        {**row, "picture": figures._address("image/jpeg", content), "share": _percent(row)} for row, content in found if content
    ]


def _percent(row: dict[str, str]) -> str:
    return f"{100 * float(row['confidence']):.0f} %"


def _maps(r: Record) -> list[Figure]:
    parts = []
    for path in sorted(r.folder.glob("similarity/*/metrics.json")):
        found = read_json(path)
        name = f"{r.label} on {path.parent.name}"
        if found.get("map"):
            parts += figures.scatter_maps(name, found["map"])
        if found.get("layers"):
            parts.append(figures.layers(name, found["layers"]))
    return parts


def _attention(r: Record) -> list[Figure]:
    parts = []
    for path in sorted(r.folder.glob("attention/*/attention.png")):
        found, content = read_json(path.with_name("metrics.json")), figures.read_picture(path, r.folder)
        rows = found["rows"]
        if content is None:
            continue
        mean = sum(row["js_distance"] for row in rows) / len(rows)
        note = f"Jensen-Shannon distance of the mean maps, averaged over {len(rows)} images: {mean:.3f}."
        table = figures._address("text/csv", figures.csv_of(found.get("maps", rows)).encode())
        name = f"Attention of {r.label} on {path.parent.name}"
        parts.append(Figure(name, figures.picture_address(content), table, note))
    return parts


def _missing(records: Sequence[Record]) -> list[str]:
    """What the page would show if someone measured it: the command, and how many runs lack it."""
    lacking_runs: dict[str, list[Path]] = {}
    for r in records:
        for part in missing_parts(r.folder):
            lacking_runs.setdefault(part, []).append(r.folder)
    return [
        f"{part} of {len(runs)} run{'s' * (len(runs) > 1)}: {COMMANDS[part].format(run=runs[0])}"
        for part, runs in lacking_runs.items()
    ]


def _provenance(r: Record) -> dict[str, str]:
    run = read_run(r.folder)
    env = {"riftcli": "", "torch": "", "device": "", **run.get("env", {})}
    return {
        "label": r.label,
        "summary": f"{run.get('created', '')}, riftcli {env['riftcli']}, torch {env['torch']}, {env['device']}",
        "run": json.dumps({k: v for k, v in run.items() if k != "status"}, indent=1),
        "recipe": (r.folder / "recipe.resolved.yaml").read_text(encoding="utf-8"),
    }
