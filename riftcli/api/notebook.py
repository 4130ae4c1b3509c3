"""The commands as functions: finetune, evaluate, compare. Errors are the same RiftErrors, progress goes to stdout."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from riftcli.api.run import Run
from riftcli.api.untouched import untouched
from riftcli.console import Console
from riftcli.errors import UsageError
from riftcli.recipe import Recipe

AnyPath = str | PathLike[str]


def finetune(
    recipe: Recipe | Mapping[str, Any] | AnyPath | None = None,
    data: Mapping[str, Any] | AnyPath | None = None,
    out: AnyPath | None = None,
    *,
    resume: AnyPath | None = None,
    overwrite: bool = False,
    repeats: int = 1,
    folds: int = 0,
    device: str = "auto",
    nproc_per_node: int | str = 1,
    oversubscribe: bool = False,
    quiet: bool = False,
    **overrides: Any,
) -> Run:
    """Train as a recipe says, evaluate, write the run folder and its page, and return the run.

    recipe: name of a shipped recipe, a path, the same as a dict, or a Recipe. data: a path (`data.root`) or the whole `data:`
    section. overrides: values that win over the recipe, as sections `train={"epochs": 3}` or keys `train__epochs=3`, or
    `**{"train.epochs": 3}`. resume: a run folder to go on with, when recipe and data are only checked against it.

    quiet: print nothing; what several processes print is theirs. oversubscribe: more processes than CPU cores are meant.

    Everything else in the process (signal handlers, torch threads, default dtype, random state, environment) is afterwards as
    it was. Raises RiftError: UsageError, DataError, ModelError, EnvironmentError, DivergedError, StorageError, Terminated.
    """
    from riftcli import dist
    from riftcli import recipe as recipes
    from riftcli.api.control import Processes, resume_run, run_one, run_series

    if recipe is None and resume is None:
        raise UsageError("finetune: give a recipe (`rift recipes ls` lists the shipped ones) or resume=FOLDER")
    if dist.launched():
        raise UsageError("finetune: it starts its own processes; start the script without torchrun and give nproc_per_node=N")
    ways = {"resume": resume is not None, "out": out is not None, "overwrite": overwrite, "repeats": repeats > 1, "folds": folds}
    for one, others in (("resume", ("out", "overwrite", "repeats", "folds")), ("folds", ("repeats",))):
        for other in others:
            if ways[one] and ways[other]:
                raise UsageError(f"finetune: {one} does not go together with {other}")
    words = [*_data_words(data), *_words(overrides)]
    processes = Processes(device, str(nproc_per_node), oversubscribe=oversubscribe)
    folder = None if out is None else Path(out).expanduser()
    console = Console(quiet=quiet, stdout=True)
    with untouched(), _as_file(recipe) as name:
        if resume is not None:
            folder = Path(resume).expanduser()
            report = resume_run(folder, (name, words), processes, console)
        elif repeats > 1 or folds:
            report = run_series(name, words, folder, overwrite, repeats, folds, processes, console)
        else:
            report = run_one(recipes.load(name, words), words, folder, overwrite, processes, console)
    return Run(_home(report) if folder is None else folder)


def evaluate(
    run: Run | AnyPath,
    metrics: Sequence[str] = (),
    split: str = "test",
    *,
    device: str = "auto",
    temperature_scaling: bool = False,
    quiet: bool = False,
    **overrides: Any,
) -> dict[str, Any]:
    """The report (schema rift.metrics/1) of a finished run on a split, also written to RUN/eval/.

    metrics: short names, e.g. ["acc", "cka"]; empty takes the recipe's. overrides: as of `finetune`, of data, input and eval.
    """
    from riftcli.api.present import evaluate_and_draw

    path = run.path if isinstance(run, Run) else Path(run).expanduser()
    names = [metrics] if isinstance(metrics, str) else list(metrics)
    with untouched():
        console = Console(quiet=quiet or os.environ.get("RANK", "0") != "0", stdout=True)
        report = evaluate_and_draw(path, names, split, _words(overrides), device, temperature_scaling, console)
        if report["unwritten"] is not None:
            console.warn(
                f"{report['written_to']}: cannot be written ({report['unwritten'].strerror}); the report is returned all the same"
            )
    return {key: value for key, value in report.items() if key not in ("written_to", "unwritten")}


def compare(
    runs: Sequence[Run | AnyPath], metrics: Sequence[str] = (), baseline: str | None = None, by_method: bool = False
) -> list[dict[str, Any]]:
    """Finished runs side by side, one dict per row and column: run, column, mean, std, n, best, change, p, values.

    Runs of several seeds are one row. baseline: the row that changes refer to; by default plain full finetuning.
    `pandas.DataFrame(compare(runs)).pivot(index="run", columns="column", values="mean")` is the table.
    """
    from riftcli.evaluation.candidates import open_runs
    from riftcli.report.compare import compare as compared
    from riftcli.report.formats import flat
    from riftcli.report.records import record

    if isinstance(runs, str | PathLike | Run) or not runs:
        raise UsageError("compare: expected a list of runs")
    with untouched():
        paths = [run.path if isinstance(run, Run) else Path(run).expanduser() for run in runs]
        names = [metrics] if isinstance(metrics, str) else list(metrics)
        return flat(compared([record(run) for run in open_runs(paths, [])], names, baseline, by_method))


def _words(overrides: Mapping[str, Any], prefix: str = "") -> list[str]:
    """{"train": {"epochs": 3}, "optim__lr": 1e-4} -> what --set takes: ["train.epochs=3", "optim.lr=0.0001"]."""
    words = []
    for key, value in overrides.items():
        dotted = prefix + key.replace("__", ".")
        another = key in ("objective", "adapter", "regularizer") and "name" in value if isinstance(value, Mapping) else False
        if isinstance(value, Mapping) and prefix == "" and "." not in dotted and not another:
            words += _words(value, f"{dotted}.")
        else:
            words.append(f"{dotted}={_yaml(value)}")
    return words


def _data_words(data: Mapping[str, Any] | AnyPath | None) -> list[str]:
    if data is None:
        return []
    return [f"data={_yaml(data)}" if isinstance(data, Mapping) else f"data.root={_yaml(Path(data).expanduser())}"]


def _yaml(value: Any) -> str:
    """A value as --set reads it."""
    return json.dumps(_plain(value), ensure_ascii=False)


def _plain(value: Any) -> Any:
    """Paths, tuples and numpy numbers as JSON has them."""
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    if isinstance(value, PathLike):
        return str(Path(value))
    return value.item() if hasattr(value, "item") else value


def _as_file(recipe: Recipe | Mapping[str, Any] | AnyPath | None) -> Any:
    """A context with the path or name of the recipe; a dict is written to a temporary file, which every process can read."""
    import contextlib
    import tempfile

    from riftcli import recipe as recipes

    @contextlib.contextmanager
    def written(text: str, name: str) -> Iterator[str]:
        with tempfile.TemporaryDirectory(prefix="rift-recipe-") as scratch:
            path = Path(scratch) / f"{name}.yaml"
            path.write_text(text, encoding="utf-8")
            yield str(path)

    if isinstance(recipe, Recipe):
        return written(recipes.dump(recipe.resolved), recipe.name)
    if isinstance(recipe, Mapping):
        return written(recipes.dump(_plain(recipe)), "recipe")
    return contextlib.nullcontext("" if recipe is None else str(recipe))


def _home(report: dict[str, Any]) -> Path:
    """The folder that a report is about: of a run that of its weights is RUN/model, of a series it is the series'."""
    path = Path(report["model"]["path"])
    return path.parent if path.name == "model" else path
