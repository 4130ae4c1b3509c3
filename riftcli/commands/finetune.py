"""rift finetune."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from riftcli.errors import UsageError

OptionalPath = Optional[Path]  # noqa: UP045 - typer reads it at run time
OptionalInt = Optional[int]  # noqa: UP045


def finetune(
    recipe: Annotated[str, typer.Option(help="A recipe file, or the name of a shipped one (`rift recipes ls`).")] = "",
    overrides: Annotated[
        list[str], typer.Option("--set", metavar="KEY=VALUE", help="Override a value, e.g. optim.lr=1e-5; repeatable.")
    ] = [],  # noqa: B006 - typer copies it
    out: Annotated[OptionalPath, typer.Option(help="Run folder; default runs/<recipe>-s<seed>-<time>.")] = None,
    resume: Annotated[OptionalPath, typer.Option(help="Go on with an interrupted run, bitwise; nothing may change.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the run in --out.")] = False,
    seed: Annotated[OptionalInt, typer.Option(min=0, help="Short for --set train.seed=N.")] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Complete runs with seeds SEED, SEED+1, ...; mean and std.")] = 1,
    folds: Annotated[int, typer.Option(min=0, help="Cross-validation: so many complete runs, each validated on its fold.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    nproc_per_node: Annotated[str, typer.Option(metavar="N|gpu", help="Processes on this machine.")] = "1",
    nnodes: Annotated[str, typer.Option(help="Machines, N or MIN:MAX.")] = "1",
    rdzv_endpoint: Annotated[str, typer.Option(help="host:port that all machines reach; for --nnodes > 1.")] = "",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print every value and its source, try one batch, write nothing.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report on stdout.")] = False,
) -> None:
    """Finetune a backbone as a recipe says and leave a run folder."""
    if seed is not None:
        overrides = [*overrides, f"train.seed={seed}"]
    if resume is not None:
        _refuse("--resume", out=out, overwrite=overwrite, repeats=repeats > 1, folds=folds, dry_run=dry_run, nnodes=nnodes != "1")
        report = _resume(resume, recipe, overrides, device, nproc_per_node)
    elif not recipe:
        raise UsageError("finetune needs --recipe NAME (`rift recipes ls` lists them) or --resume DIR")
    elif dry_run:
        from riftcli import recipe as recipes
        from riftcli.training.dry_run import dry_run as try_out

        _refuse("--dry-run", out=out, overwrite=overwrite, repeats=repeats > 1, folds=folds, json=as_json)
        _refuse("--dry-run", nproc_per_node=nproc_per_node != "1")
        try_out(recipes.load(recipe, overrides), device)
        return
    elif repeats > 1 or folds:
        _refuse("--folds" if folds else "--repeats", nnodes=nnodes != "1")
        if folds:
            _refuse("--folds", repeats=repeats > 1)
        report = _series(recipe, overrides, out, overwrite, repeats, folds, device, nproc_per_node)
    else:
        report = _one(recipe, overrides, out, overwrite, device, nproc_per_node, nnodes, rdzv_endpoint)
    if as_json and int(os.environ.get("RANK", 0)) == 0:
        print(json.dumps(report, indent=1))


def _refuse(option: str, **given: Any) -> None:
    """Options that would be ignored beside another one are errors."""
    for name, value in given.items():
        if value:
            raise UsageError(f"{option} does not go together with --{name.replace('_', '-')}")


def _one(
    recipe: str,
    overrides: list[str],
    out: OptionalPath,
    overwrite: bool,
    device: str,
    nproc_per_node: str,
    nnodes: str = "1",
    endpoint: str = "",
) -> dict[str, Any]:
    """One run, in this process or in several."""
    from riftcli import dist, launch
    from riftcli import recipe as recipes
    from riftcli.runs import folder as runs

    checked = recipes.load(recipe, overrides)
    nproc = launch.processes(nproc_per_node)
    if (nproc > 1 or nnodes != "1") and not dist.launched():
        if nnodes != "1" and out is None:
            raise UsageError("--nnodes needs --out: all machines must name the same run folder")
        _check_in_parent(checked, device, nproc, nnodes)
        folder = out or runs.default_folder(checked.name, checked.train.seed)
        runs.check_free(folder, overwrite)
        with tempfile.TemporaryDirectory(prefix="rift-recipe-") as scratch:
            copy = Path(scratch) / f"{checked.name}.yaml"  # the workers must read what was checked, whatever happens to the file
            copy.write_text(checked.text, encoding="utf-8")
            arguments = ["finetune", "--recipe", str(copy), "--out", str(folder), "--device", device]
            arguments += [word for override in overrides for word in ("--set", override)] + ["--overwrite"] * overwrite
            return _spawn(arguments, folder, nproc, nnodes, endpoint)
    return _here(checked, out, None, overwrite, device)


def _here(checked: Any, out: OptionalPath, resume: OptionalPath, overwrite: bool, device: str) -> dict[str, Any]:
    from riftcli import dist
    from riftcli.training.finetune import finetune as train

    report = train(checked, out, resume, overwrite, device)
    dist.close()
    return report


def _spawn(arguments: list[str], folder: Path, nproc: int, nnodes: str = "1", endpoint: str = "") -> dict[str, Any]:
    from riftcli import launch

    os.environ["RIFT_COMMAND"] = json.dumps([Path(sys.argv[0]).name, *sys.argv[1:]])
    launch.launch(arguments, nproc, folder / "logs", nnodes, endpoint or None)
    report = folder / "metrics.json"  # on the machine of rank 0; the others have nothing to report
    return json.loads(report.read_text(encoding="utf-8")) if report.is_file() else {}


def _check_in_parent(checked: Any, device: str, nproc: int, nnodes: str) -> None:
    """What can be checked here is checked before anything is started."""
    import torch

    from riftcli.data.batches import divide_batch
    from riftcli.data.splits import load_retention, load_splits
    from riftcli.errors import EnvironmentError

    if nnodes == "1":
        divide_batch(checked.train.batch_size, nproc, checked.train.micro_batch_size)
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device.startswith("cuda:"):
        raise UsageError(f"--device {device} with --nproc-per-node {nproc}: each process takes its own GPU; use --device cuda")
    if (device == "cuda" or (device == "auto" and count)) and nproc > count:
        raise EnvironmentError(
            f"--nproc-per-node {nproc}: no such GPU: this machine has {count} visible to torch; "
            "use fewer processes or --device cpu"
        )
    load_splits(checked.data.source, checked.data.train, checked.data.val, checked.data.test, checked.data.rules)
    for data in checked.retention:
        load_retention(data.source, data.train, data.test, data.rules)


def _resume(resume: Path, recipe: str, overrides: list[str], device: str, nproc_per_node: str) -> dict[str, Any]:
    """Go on with a run; a recipe given beside it must say the same as the one stored in it."""
    from riftcli import recipe as recipes
    from riftcli.runs import folder as runs

    stored = resume / "recipe.resolved.yaml"
    if not stored.is_file():
        raise UsageError(f"--resume {resume}: not a run folder (no recipe.resolved.yaml)")
    run = runs.read_run(resume)
    name = f"{run.get('recipe', 'recipe')}.yaml"
    checked = recipes.parse(recipes.read(stored), name, [])
    wish = recipes.load(recipe, overrides) if recipe else recipes.parse(recipes.dump(checked.resolved), name, overrides)
    old, new = recipes.flatten(checked.resolved), recipes.flatten(wish.resolved)
    changed = [f"{k}: {old.get(k)} -> {new.get(k)}" for k in sorted(old | new) if old.get(k) != new.get(k)]
    if changed:
        raise UsageError(
            f"--resume {resume}: the recipe differs from the run's: {'; '.join(changed)}; "
            "resume without changes, or start a new run"
        )
    if run.get("status") == "completed":
        print(f"{resume}: already finished", file=sys.stderr)
        return json.loads((resume / "metrics.json").read_text(encoding="utf-8"))

    from riftcli import dist, launch

    nproc = launch.processes(nproc_per_node)
    if nproc > 1 and not dist.launched():
        _check_in_parent(checked, device, nproc, "1")
        return _spawn(["finetune", "--resume", str(resume), "--device", device], resume, nproc)
    return _here(checked, None, resume, False, device)


def _series(
    recipe: str,
    overrides: list[str],
    out: OptionalPath,
    overwrite: bool,
    repeats: int,
    folds: int,
    device: str,
    nproc_per_node: str,
) -> dict[str, Any]:
    """Complete runs side by side in one folder, and their mean and spread."""
    from riftcli import dist
    from riftcli import recipe as recipes
    from riftcli.runs import folder as runs
    from riftcli.runs.series import Series, check_parent, summarise

    if dist.launched():
        option = "--folds" if folds else "--repeats"
        raise UsageError(f"{option} starts its own processes; use --nproc-per-node instead of torchrun")
    if folds == 1:
        raise UsageError("--folds 1: a cross-validation has at least 2 folds")
    checked = recipes.load(recipe, overrides)
    first, val = checked.train.seed, checked.data.val
    if folds and val is not None and not val.held_out:
        print(f"note: --folds validates on parts of '{checked.data.train.name}'; split '{val.name}' is not used", file=sys.stderr)
    series = Series.of_folds(val, checked.data.train, folds) if folds else Series.of_seeds(first, repeats)
    folder = out or runs.default_folder(f"{checked.name}-{f'k{folds}' if folds else f'x{repeats}'}", first)
    check_parent(folder, series.what, overwrite)
    reports = []
    with tempfile.TemporaryDirectory(prefix="rift-recipe-") as scratch:
        copy = Path(scratch) / f"{checked.name}.yaml"  # every run is of one text, whatever happens to the file meanwhile
        copy.write_text(checked.text, encoding="utf-8")
        for name, own in series.overrides.items():
            target, wanted = folder / name, [*overrides, *own]
            if (target / "run.json").is_file() and not overwrite:  # a series that was interrupted goes on
                reports.append(_resume(target, str(copy), wanted, device, nproc_per_node))
            else:
                reports.append(_one(str(copy), wanted, target, target.exists(), device, nproc_per_node))
    return summarise(folder, series.what, reports)
