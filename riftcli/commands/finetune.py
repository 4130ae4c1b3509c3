"""rift finetune."""

from __future__ import annotations

import json
import os
import sys
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
    seed: Annotated[OptionalInt, typer.Option(min=0, help="Seed; overrides train.seed.")] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Complete runs with seeds SEED, SEED+1, ...; mean and std.")] = 1,
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
    from riftcli import recipe as recipes
    from riftcli import run as runs

    if resume is not None:
        checked = _resumed(resume, recipe, overrides)
        seed = runs.read_run(resume)["seed"]
        if runs.read_run(resume)["status"] == "completed":
            print(f"{resume}: already finished", file=sys.stderr)
            return
    elif recipe:
        checked = recipes.load(recipe, overrides)
    else:
        raise UsageError("finetune needs --recipe NAME (`rift recipes ls` lists them) or --resume DIR")

    from riftcli import dist, launch

    nproc = launch.processes(nproc_per_node)
    if dry_run:
        from riftcli.dry_run import dry_run as try_out

        try_out(checked, device)
        return
    first = checked.train.seed if seed is None else seed
    if repeats > 1:
        report = _repeat(checked, out, overwrite, first, repeats, device, nproc)
    elif nproc > 1 and not dist.launched():
        report = _spawn(checked, out, resume, overwrite, first, device, nproc, nnodes, rdzv_endpoint)
    else:
        from riftcli.train import finetune as train

        report = train(checked, out, resume, overwrite, first, device)
        dist.close()
    if as_json and int(os.environ.get("RANK", 0)) == 0:
        print(json.dumps(report, indent=1))


def _resumed(resume: Path, recipe: str, overrides: list[str]) -> Any:
    """The recipe stored in the run; a recipe given beside it must say the same."""
    from riftcli import recipe as recipes

    stored = resume / "recipe.resolved.yaml"
    if not stored.is_file():
        raise UsageError(f"--resume {resume}: not a run folder (no recipe.resolved.yaml)")
    checked = recipes.parse(stored.read_text(encoding="utf-8"), recipe_name(resume), [])
    wish = recipes.load(recipe, overrides) if recipe else recipes.parse(recipes.dump(checked.resolved), "stored", overrides)
    old, new = recipes.flatten(checked.resolved), recipes.flatten(wish.resolved)
    changed = [f"{k}: {old.get(k)} -> {new.get(k)}" for k in sorted(old | new) if old.get(k) != new.get(k)]
    if changed:
        raise UsageError(
            f"--resume {resume}: the recipe differs from the run's: {'; '.join(changed)}; "
            "resume without changes, or start a new run"
        )
    return checked


def recipe_name(run: Path) -> str:
    """Name of the recipe a run was made from."""
    from riftcli import run as runs

    return f"{runs.read_run(run).get('recipe', 'recipe')}.yaml"


def _spawn(
    checked: Any,
    out: OptionalPath,
    resume: OptionalPath,
    overwrite: bool,
    seed: int,
    device: str,
    nproc: int,
    nnodes: str = "1",
    endpoint: str = "",
) -> dict[str, Any]:
    """Check what can be checked here, in the parent, then start the workers on a copy of the resolved recipe."""
    import tempfile

    from riftcli import launch
    from riftcli import recipe as recipes
    from riftcli import run as runs
    from riftcli.loader import divide_batch
    from riftcli.splits import load_splits

    divide_batch(checked.train.batch_size, nproc, checked.train.micro_batch_size)
    _check_devices(device, nproc)
    load_splits(checked.data.source, checked.data.train, checked.data.val, checked.data.test)
    folder = resume or out or runs.default_folder(checked.name, seed)
    if resume is None:
        runs.check_free(folder, overwrite)
    with tempfile.TemporaryDirectory(prefix="rift-recipe-") as scratch:
        stored = Path(scratch) / f"{checked.name}.yaml"
        stored.write_text(recipes.dump(checked.resolved), encoding="utf-8")
        arguments = ["finetune", "--seed", str(seed), "--device", device]
        if resume is not None:
            arguments += ["--resume", str(resume)]
        else:
            arguments += ["--recipe", str(stored), "--out", str(folder)] + ["--overwrite"] * overwrite
        launch.launch(arguments, nproc, folder / "logs", nnodes, endpoint or None)
    return json.loads((folder / "metrics.json").read_text(encoding="utf-8"))


def _check_devices(device: str, nproc: int) -> None:
    import torch

    from riftcli.errors import EnvironmentError

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device.startswith("cuda:"):
        raise UsageError(f"--device {device} with --nproc-per-node {nproc}: each process takes its own GPU; use --device cuda")
    if (device == "cuda" or (device == "auto" and count)) and nproc > count:
        raise EnvironmentError(
            f"--nproc-per-node {nproc}: no such GPU: this machine has {count} visible to torch; use fewer processes or --device cpu"
        )


def _repeat(checked: Any, out: OptionalPath, overwrite: bool, seed: int, repeats: int, device: str, nproc: int) -> dict[str, Any]:
    """Complete runs side by side in one folder, and their mean and spread."""
    from riftcli import dist
    from riftcli import run as runs
    from riftcli.repeats import summarise

    if dist.launched():
        raise UsageError("--repeats starts its own processes; use --nproc-per-node instead of torchrun")
    folder = out or runs.default_folder(f"{checked.name}-x{repeats}", seed)
    reports = []
    for current in range(seed, seed + repeats):
        target = folder / f"s{current}"
        if nproc > 1:
            reports.append(_spawn(checked, target, None, overwrite, current, device, nproc))
        else:
            from riftcli.train import finetune as train

            reports.append(train(checked, target, None, overwrite, current, device))
    return summarise(folder, reports)
