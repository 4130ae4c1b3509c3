"""Run control: one run, a resumed one, a series of seeds or folds; in this process or in several."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from riftcli import dist, launch
from riftcli import recipe as recipes
from riftcli.console import Console, note_line
from riftcli.errors import EnvironmentError, RiftError, UsageError
from riftcli.recipe import Recipe
from riftcli.runs import folder as runs
from riftcli.runs.reader import read_report
from riftcli.runs.series import Series, check_parent, drop_others, summarise


@dataclass(frozen=True)
class Processes:
    """Where a run is trained. device: auto, cpu, cuda or cuda:N; nproc_per_node: a number or `gpu`; nnodes: N or MIN:MAX;
    endpoint: host:port that all machines reach, for several of them; oversubscribe: more processes than cores, or than fit the
    memory by our estimate, are meant.
    """

    device: str = "auto"
    nproc_per_node: str = "1"
    nnodes: str = "1"
    endpoint: str = ""
    oversubscribe: bool = False


def run_one(
    recipe: Recipe,
    overrides: list[str],
    out: Path | None = None,
    overwrite: bool = False,
    processes: Processes = Processes(),
    console: Console | None = None,
) -> dict[str, Any]:
    """Train one run and present it; returns the report. overrides: what made `recipe` of its text, for other processes."""
    nproc, nnodes = launch.processes(processes.nproc_per_node), processes.nnodes
    if (nproc > 1 or nnodes != "1") and not dist.launched():
        if nnodes != "1" and out is None:
            raise UsageError("--nnodes needs --out: all machines must name the same run folder")
        _check_in_parent(recipe, processes, nproc, nnodes)
        folder = out or runs.default_folder(recipe.name, recipe.train.seed)
        runs.check_free(folder, overwrite)
        with tempfile.TemporaryDirectory(prefix="rift-recipe-") as scratch:
            copy = Path(scratch) / f"{recipe.name}.yaml"  # the workers must read what was checked, whatever happens to the file
            copy.write_text(recipe.text, encoding="utf-8")
            arguments = ["finetune", "--recipe", str(copy), "--out", str(folder), "--device", processes.device]
            arguments += [word for override in overrides for word in ("--set", override)] + ["--overwrite"] * overwrite
            return _spawn(arguments, folder, nproc, nnodes, processes.endpoint)
    return _train(recipe, out, None, overwrite, processes.device, console)


def resume_run(
    run: Path,
    wanted: tuple[str, list[str]] | None = None,
    processes: Processes = Processes(),
    console: Console | None = None,
) -> dict[str, Any]:
    """Go on with a run, bitwise. wanted: (recipe, overrides) that must say the same as the one stored in the run."""
    stored = run / "recipe.resolved.yaml"
    record = runs.read_run(run) if (run / "run.json").is_file() else {}
    if record.get("status") == runs.STARTING:
        raise UsageError(
            f"--resume {run}: was killed while it was starting, and nothing is there to go on with; give the command that "
            "started it once more, without --resume"
        )
    if not stored.is_file():
        raise UsageError(f"--resume {run}: not a run folder (no recipe.resolved.yaml)")
    name = f"{record.get('recipe', 'recipe')}.yaml"
    recipe = recipes.stored(stored, name)
    given, overrides = wanted or ("", [])
    older = [f"{key}={value}" for key, value in recipes.OLDER.items() if recipe.sources.get(key) == "--set"]
    overrides = [*overrides, *older]
    asked = recipes.load(given, overrides) if given else recipes.parse(recipes.dump(recipe.resolved), name, overrides)
    began, old, new = record.get("resolved"), recipes.flatten(recipe.resolved), recipes.flatten(asked.resolved)
    edited = _differences(began, {key: old[key] for key in old if key in began}) if isinstance(began, dict) else []
    if edited:
        raise UsageError(
            f"{stored}: was changed since the run started: {'; '.join(edited)}; put it back as it was, or start a new run"
        )
    changed = [line for line in _differences(old, new) if not line.startswith("launch.")]
    if changed:
        raise UsageError(
            f"--resume {run}: the recipe differs from the run's: {'; '.join(changed)}; resume without changes, or start a new run"
        )
    if record.get("status") == "completed":
        from riftcli.models.weights import saved_weights

        if saved_weights(run / "model") is None:
            raise UsageError(
                f"--resume {run}: finished, but its weights (model/) are gone; train it again: rift finetune --recipe {stored}"
            )
        note_line(f"{run}: already finished")
        return read_report(run)
    nproc, nnodes = launch.processes(processes.nproc_per_node), processes.nnodes
    if (nproc > 1 or nnodes != "1") and not dist.launched():
        _check_in_parent(recipe, processes, nproc, nnodes, accept=True)
        wished = recipes.flatten(asked.resolved["launch"], "launch")
        looked_after = [word for key, value in wished.items() for word in ("--set", f"{key}={json.dumps(value)}")]
        words = ["finetune", "--resume", str(run), "--device", processes.device, *looked_after]
        return _spawn(words, run, nproc, nnodes, processes.endpoint)
    return _train(dataclasses.replace(recipe, launch=asked.launch), None, run, False, processes.device, console)


def _differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """`key: before -> after` of two flat recipes, as JSON has their values."""
    old, new = json.loads(json.dumps(old)), json.loads(json.dumps(new))
    return [f"{k}: {old.get(k)} -> {new.get(k)}" for k in sorted(old | new) if old.get(k) != new.get(k)]


def run_series(
    recipe: str,
    overrides: list[str],
    out: Path | None = None,
    overwrite: bool = False,
    repeats: int = 1,
    folds: int = 0,
    processes: Processes = Processes(),
    console: Console | None = None,
) -> dict[str, Any]:
    """Complete runs with seeds SEED, SEED+1, ..., or one per fold; returns the report over all. An interrupted one goes on."""
    if dist.launched():
        option = "--folds" if folds else "--repeats"
        raise UsageError(f"{option} starts its own processes; use --nproc-per-node instead of torchrun")
    if folds and folds < 2:
        raise UsageError(f"--folds {folds}: a cross-validation has at least 2 folds")
    checked = recipes.load(recipe, overrides)
    first, val = checked.train.seed, checked.data.val
    if folds and val is not None and not val.held_out:
        note_line(f"note: --folds validates on parts of '{checked.data.train.name}'; split '{val.name}' is not used")
    series = Series.of_folds(val, checked.data.train, folds) if folds else Series.of_seeds(first, repeats)
    folder = out or runs.default_folder(f"{checked.name}-{f'k{folds}' if folds else f'x{repeats}'}", first)
    check_parent(folder, series.what)
    reports = []
    with tempfile.TemporaryDirectory(prefix="rift-recipe-") as scratch:
        copy = Path(scratch) / f"{checked.name}.yaml"  # every run is of one text, whatever happens to the file meanwhile
        copy.write_text(checked.text, encoding="utf-8")
        for name, own in series.overrides.items():
            target, wanted = folder / name, [*overrides, *own]
            begun = (target / "run.json").is_file() and runs.read_run(target).get("status") != runs.STARTING
            if begun and not overwrite:  # a series that was interrupted goes on
                reports.append(resume_run(target, (str(copy), wanted), processes, console))
            else:
                one = recipes.load(str(copy), wanted)
                reports.append(run_one(one, wanted, target, target.exists(), processes, console))
    if overwrite:
        drop_others(folder, series)
    return summarise(folder, series.what, reports)


def _train(
    recipe: Recipe, out: Path | None, resume: Path | None, overwrite: bool, device: str, console: Console | None
) -> dict[str, Any]:
    """In this process, which may be one rank of several; rank 0 presents the folder before it is completed."""
    from riftcli.api.present import present_run
    from riftcli.training.finetune import finetune

    report = finetune(recipe, out, resume, overwrite, device, console, present_run)
    dist.close()
    return report


def _spawn(arguments: list[str], folder: Path, nproc: int, nnodes: str = "1", endpoint: str = "") -> dict[str, Any]:
    os.environ["RIFT_COMMAND"] = json.dumps([Path(sys.argv[0]).name, *sys.argv[1:]])
    try:
        launch.launch(arguments, nproc, folder / "logs", nnodes, endpoint or None)
    except RiftError as error:
        if (folder / "run.json").is_file():  # its own process may have had no time to say how it ended
            runs.settle(folder, "failed", str(error))
        raise
    report = folder / "metrics.json"  # on the machine of rank 0; the others have nothing to report
    return read_report(folder) if report.is_file() else {}


def _check_in_parent(recipe: Recipe, processes: Processes, nproc: int, nnodes: str, accept: bool = False) -> None:
    """What can be checked here is checked before anything is started. accept: a run that goes on keeps its data, leaks too."""
    import torch

    from riftcli.data.batches import divide_batch
    from riftcli.data.leaks import refuse_leaks
    from riftcli.data.splits import load_splits, query_and_bank

    device = processes.device
    if nnodes == "1":
        divide_batch(recipe.train.batch_size, nproc, recipe.train.micro_batch_size)
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device.startswith("cuda:"):
        raise UsageError(f"--device {device} with --nproc-per-node {nproc}: each process takes its own GPU; use --device cuda")
    if (device == "cuda" or (device == "auto" and count)) and nproc > count:
        raise EnvironmentError(
            f"--nproc-per-node {nproc}: no such GPU: this machine has {count} visible to torch; "
            "use fewer processes or --device cpu"
        )
    if not (device.startswith("cuda") or (device == "auto" and count)) and not processes.oversubscribe:
        _check_cores(recipe, nproc)
    data = recipe.data
    splits = load_splits(data.source, data.train, data.val, data.test, data.rules)
    if not accept:
        refuse_leaks(splits.leaks, data.rules.allow_overlap)
    for other in recipe.retention:
        query_and_bank(other)


def _check_cores(recipe: Recipe, nproc: int) -> None:
    """Raise UsageError for more processes on CPUs than there are cores, or than there seems to be memory for."""
    from riftcli.data.memory import free_memory
    from riftcli.data.parallel import cores
    from riftcli.training.cost import process_memory

    there = cores()
    if nproc > there:
        raise UsageError(
            f"--nproc-per-node {nproc}: this process may use {there} CPU cores, and more processes than that are slower; use "
            f"at most {there}, or --oversubscribe where it is meant"
        )
    needed, free = nproc * process_memory(recipe), free_memory()
    if free is not None and needed > free:
        raise UsageError(
            f"--nproc-per-node {nproc}: would need about {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free; use fewer "
            "processes, or --oversubscribe where the estimate is wrong"
        )
