"""Options that the evaluation commands share, and what they do with them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from riftcli.commands.completion import complete_run
from riftcli.errors import StorageError, UsageError

if TYPE_CHECKING:
    from riftcli.evaluation.candidates import Candidate
    from riftcli.evaluation.data_sets import EvalData
    from riftcli.recipe import Recipe
    from riftcli.runs.result_table import ResultTable

MeanAndStd = tuple[float | None, float | None]
OptionalPath = Optional[Path]  # noqa: UP045 - typer reads it at run time

Runs = Annotated[
    list[Path],
    typer.Option(
        "--run",
        help="A run, a folder of --repeats, or a folder of weights; repeatable. Default: the newest finished.",
        autocompletion=complete_run,
    ),
]
Models = Annotated[list[str], typer.Option("--model", help="A timm model that we did not train; repeatable.")]
Overrides = Annotated[
    list[str],
    typer.Option("--set", metavar="KEY=VALUE", help="data.*, input.*, eval.*, model.weights; with --model all of model.*"),
]
Pretrained = Annotated[bool, typer.Option(help="Also the model that a run was finetuned from.")]
Split = Annotated[str, typer.Option(help="train, val, test, or any split of the data source.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
Out = Annotated[OptionalPath, typer.Option(help="Also write everything to this folder.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the report on stdout.")]
DataSets = Annotated[
    list[str], typer.Option("--data", help="RECIPE, RECIPE:ROOT or imagefolder:PATH; repeatable. Default: the run's own data.")
]


def open_candidates(
    runs: Sequence[Path], models: Sequence[str], overrides: Sequence[str], own_data: bool = False, other_model: bool = False
) -> list[Candidate]:
    """Runs and models in the order given; without any, the newest finished run, and says which.

    own_data: overrides of data.* and input.* are for the runs' own data, else for --data. other_model: overrides of model.*
    are for a model that is opened elsewhere.
    """
    from riftcli.evaluation.candidates import distinct, open_model, open_runs
    from riftcli.runs.folder import newest_finished

    paths = list(runs)
    if not paths and not models:
        paths = [newest_finished()]
        from riftcli.console import note_line

        if os.environ.get("RANK", "0") == "0":
            note_line(f"run: {paths[0]} (the newest finished one)")
    if len(set(map(str, paths))) < len(paths) or len(set(models)) < len(models):
        raise UsageError("the same --run or --model is given twice")
    kept = [o for o in overrides if own_data or not o.startswith(("data.", "input."))]
    of_runs = [o for o in kept if not o.startswith("model.") or o.startswith("model.weights")] if models or other_model else kept
    opened = [*open_runs(paths, of_runs), *(open_model(name, kept) for name in models)]
    note_unfinished([candidate.folder for candidate in opened if candidate.is_run])
    return distinct(opened)


def note_unfinished(runs: Sequence[Path | None]) -> None:
    """Say of which runs the weights are not the last word, because they are still being trained."""
    from riftcli.console import note_line
    from riftcli.runs.folder import in_progress

    for run in runs:
        if run is not None and in_progress(run) and os.environ.get("RANK", "0") == "0":
            note_line(f"note: {run} is still in progress: these are the weights of its best evaluation so far")


def with_pretrained(candidates: list[Candidate]) -> list[Candidate]:
    """Before the runs, what they were finetuned from, each once."""
    from riftcli.evaluation.candidates import bases_of

    starts = bases_of([candidate for candidate in candidates if candidate.is_run])
    return [*{start.label: start for start in starts.values()}.values(), *candidates]


def open_sets(specs: Sequence[str], candidates: Sequence[Candidate], overrides: Sequence[str]) -> list[EvalData]:
    """The --data sets, or the data of the runs, which must be the same; raise UsageError."""
    from riftcli.evaluation.data_sets import EvalData, distinct_sets, open_data

    if specs:
        return distinct_sets([open_data(spec, list(overrides)) for spec in specs])
    found: dict[str, EvalData] = {}
    for candidate in candidates:
        if candidate.has_data:
            parts = {key: candidate.recipe.resolved[key] for key in ("data", "input")}
            found.setdefault(repr(parts), EvalData.of_run(candidate))
    if not found:
        raise UsageError("a model without its run does not say what to look at: give --data RECIPE or --data imagefolder:PATH")
    if len(found) > 1:
        raise UsageError("the runs were trained on different data: say which to look at with --data")
    return list(found.values())


def check_out(out: Path | None) -> None:
    """Raise UsageError for an --out that cannot become a folder: before the work, not after it."""
    if out is not None and out.exists() and not out.is_dir():
        raise UsageError(f"--out {out}: exists and is not a folder")


def measure(
    evaluator: Any,
    show: Callable[[ResultTable], None],
    candidates: Sequence[Candidate],
    sets: Sequence[EvalData],
    recipe: Recipe,
    device: str,
    out: Path | None,
    as_json: bool,
) -> None:
    """Measure on every rank, then print, write and draw what was found, on rank 0 only.

    recipe: says how images are batched and where features are kept.
    """
    from riftcli import dist
    from riftcli.console import Console
    from riftcli.evaluation.encoder import Encoder

    encoder = Encoder.of_recipe(recipe, dist.init(device), Console(quiet=not dist.is_main()))
    table = evaluator.measure(candidates, sets, encoder)
    main = dist.is_main()
    dist.close()
    if main:
        show(table)
        finish(evaluator, table, candidates, out, as_json)


def measure_beside_pretrained(
    evaluator: Any,
    show: Callable[[ResultTable], None],
    runs: Sequence[Path],
    models: Sequence[str],
    data: Sequence[str],
    overrides: Sequence[str],
    pretrained: bool,
    device: str,
    out: Path | None,
    as_json: bool,
) -> list[Candidate]:
    """Open runs and models, with `pretrained` what the runs were finetuned from too, and `measure` them on the data sets; returns
    what was measured.
    """
    candidates = open_candidates(runs, models, overrides, own_data=not data)
    sets = open_sets(data, candidates, overrides)
    if pretrained:
        candidates = with_pretrained(candidates)
    measure(evaluator, show, candidates, sets, candidates[-1].recipe, device, out, as_json)
    return candidates


def measure_against(
    evaluator: Any,
    show: Callable[[ResultTable], None],
    runs: Sequence[Path],
    models: Sequence[str],
    against: str,
    data: Sequence[str],
    overrides: Sequence[str],
    device: str,
    out: Path | None,
    as_json: bool,
) -> None:
    """Open runs and models, and what they are compared with (`pretrained`: what each was finetuned from), and `measure`."""
    candidates = open_candidates(runs, models, overrides, own_data=not data, other_model=against != "pretrained")
    if against != "pretrained":
        evaluator = replace(evaluator, against=open_other(against, overrides))
    sets = open_sets(data, candidates, overrides)
    measure(evaluator, show, candidates, sets, candidates[0].recipe, device, out, as_json)


def whole_numbers(text: str, option: str, example: str) -> tuple[int, ...]:
    """Comma-separated; raise UsageError."""
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise UsageError(f"{option} {text}: expected numbers, e.g. {example}") from None


def finish(evaluator: Any, table: ResultTable, candidates: Sequence[Candidate], out: Path | None, as_json: bool) -> None:
    """Write what was found into the runs (and `out`), say where, draw it, and print the JSON where asked."""
    from riftcli.api.present import draw_table
    from riftcli.console import note_line
    from riftcli.runs.result_table import write_into_runs

    folders = {c.label: c.folder for c in candidates if c.is_run and c.folder is not None}
    if as_json:  # before anything is written: a run may be somebody else's
        print(json.dumps(table.report(), indent=1))
    try:
        for path in write_into_runs(table, folders, out):
            note_line(f"report: {path}")
            for picture in draw_table(evaluator, path, table, candidates):
                note_line(f"plot: {picture}")
    except OSError as error:
        raise unwritten(error, "with --out DIR they are kept elsewhere") from error


def unwritten(error: OSError, remedy: str) -> StorageError:
    """What to say when numbers were printed and could not be kept."""
    what = error.filename or "a file"  # a full disk comes without a name
    return StorageError(f"{what}: cannot be written ({error.strerror}); the numbers above are complete; {remedy}")


def print_by_data_set(title: str, sets: Sequence[str], cells: Mapping[str, Mapping[str, MeanAndStd]]) -> None:
    """Models down, data sets across, and their mean where there are several. cells: model -> data set -> (mean, std or None)."""
    from riftcli.console import print_grid
    from riftcli.runs.result_table import format_number

    several = len(sets) > 1
    lines = []
    for group, found in cells.items():
        texts = [format_number(*found[name]) if name in found else "" for name in sets]
        means = [found[name][0] for name in sets if name in found]
        known = [mean for mean in means if mean is not None]
        whole = format_number(sum(known) / len(known)) if len(known) == len(sets) else ""
        lines.append([group, *texts, *([whole] if several else [])])
    print_grid(title, ["model", *sets, *(["mean"] if several else [])], lines)


def open_other(spec: str, overrides: Sequence[str]) -> Candidate:
    """What --against names: a folder if there is one, else a timm model."""
    from riftcli.evaluation.candidates import open_model, open_runs

    path = Path(spec).expanduser()
    if path.is_dir():
        for override in overrides:
            if override.startswith("model.") and not override.startswith("model.weights"):
                raise UsageError(f"--set {override}: --against {spec} is a folder of weights, which has its own model")
        return exactly_one(open_runs([path], []), f"--against {spec}")
    return open_model(spec, [o for o in overrides if o.startswith("model.")])


def exactly_one(values: list[Any], what: str) -> Any:
    """The one value; raise UsageError when a command that looks at one model or data set is given several."""
    if len(values) != 1:
        raise UsageError(f"{what}: give exactly one, not {len(values)}")
    return values[0]


def open_pair(old: str, new: str, overrides: Sequence[str]) -> list[Candidate]:
    """Two models, each a folder or a name; OLD may be `pretrained`: what NEW was finetuned from. Overrides of model.* are for
    the one that is a name, the others for both.
    """
    from riftcli.evaluation.candidates import distinct, open_model, open_run

    named = [spec for spec in (old, new) if spec != "pretrained" and not Path(spec).expanduser().is_dir()]
    of_runs = [o for o in overrides if not o.startswith("model.") or o.startswith("model.weights")] if named else overrides

    def opened(spec: str) -> Candidate:
        return open_model(spec, overrides) if spec in named else open_run(Path(spec).expanduser(), of_runs)

    later = opened(new)
    earlier = later.pretrained() if old == "pretrained" else opened(old)
    if earlier.identity == later.identity:
        raise UsageError(f"{old} and {new} are the same model: there is nothing to map")
    return distinct([earlier, later])
