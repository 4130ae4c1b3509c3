"""rift finetune."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from riftcli.commands.completion import complete_key, complete_recipe, complete_run
from riftcli.errors import UsageError

OptionalPath = Optional[Path]  # noqa: UP045 - typer reads it at run time
OptionalInt = Optional[int]  # noqa: UP045
OptionalText = Optional[str]  # noqa: UP045


RecipeName = Annotated[
    str, typer.Option(help="A recipe file, or the name of a shipped one (`rift recipes ls`).", autocompletion=complete_recipe)
]
Values = Annotated[
    list[str],
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Override a value, e.g. optim.lr=1e-5; repeatable.", autocompletion=complete_key
    ),
]
Resumed = Annotated[
    OptionalPath, typer.Option(help="Go on with an interrupted run, bitwise; nothing may change.", autocompletion=complete_run)
]
Begun = Annotated[
    OptionalPath,
    typer.Option("--from", help="Begin with the weights of this run; short for train.start_from.", autocompletion=complete_run),
]


def finetune(
    recipe: RecipeName = "",
    overrides: Values = [],  # noqa: B006 - typer copies it
    out: Annotated[OptionalPath, typer.Option(help="Run folder; default runs/<recipe>-s<seed>-<time>.")] = None,
    resume: Resumed = None,
    from_run: Begun = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the run in --out.")] = False,
    seed: Annotated[OptionalInt, typer.Option(min=0, help="Short for --set train.seed=N.")] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Complete runs with seeds SEED, SEED+1, ...; mean and std.")] = 1,
    folds: Annotated[int, typer.Option(min=0, help="Cross-validation: so many complete runs, each validated on its fold.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    nproc_per_node: Annotated[str, typer.Option(metavar="N|gpu", help="Processes on this machine.")] = "1",
    nnodes: Annotated[str, typer.Option(help="Machines, N or MIN:MAX.")] = "1",
    oversubscribe: Annotated[
        bool, typer.Option("--oversubscribe", help="More processes than CPU cores, or than the memory seems to hold, are meant.")
    ] = False,
    save_every_minutes: Annotated[OptionalText, typer.Option(help="Short for --set launch.save_every_minutes=N.")] = None,
    max_time: Annotated[
        OptionalText, typer.Option(metavar="HH:MM", help="Then save and end with exit code 143, to be resumed: launch.max_time.")
    ] = None,
    rdzv_endpoint: Annotated[str, typer.Option(help="host:port that all machines reach; for --nnodes > 1.")] = "",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print every value and its source, try one batch, write nothing.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report on stdout.")] = False,
) -> None:
    """Finetune a backbone as a recipe says and leave a run folder."""
    from riftcli import recipe as recipes
    from riftcli.api.control import Processes, resume_run, run_one, run_series

    short = {
        "train.seed": seed,
        "train.start_from": None if from_run is None else json.dumps(str(from_run)),
        "launch.save_every_minutes": save_every_minutes,
        "launch.max_time": None if max_time is None else json.dumps(max_time),
    }
    overrides = [*overrides, *(f"{key}={value}" for key, value in short.items() if value is not None)]
    processes = Processes(device, nproc_per_node, nnodes, rdzv_endpoint, oversubscribe)
    if resume is not None:
        _refuse("--resume", **{"from": from_run})
        _refuse("--resume", out=out, overwrite=overwrite, repeats=repeats > 1, folds=folds, dry_run=dry_run)
        report = resume_run(resume, (recipe, overrides), processes)
    elif not recipe:
        raise UsageError("finetune needs --recipe NAME (`rift recipes ls` lists them) or --resume DIR")
    elif dry_run:
        from riftcli.training.dry_run import dry_run as try_out

        _refuse("--dry-run", out=out, overwrite=overwrite, repeats=repeats > 1, folds=folds, json=as_json)
        _refuse("--dry-run", nproc_per_node=nproc_per_node != "1")
        try_out(recipes.load(recipe, overrides), device)
        return
    elif repeats > 1 or folds:
        _refuse("--folds" if folds else "--repeats", nnodes=nnodes != "1")
        if folds:
            _refuse("--folds", repeats=repeats > 1)
        report = run_series(recipe, overrides, out, overwrite, repeats, folds, processes)
    else:
        report = run_one(recipes.load(recipe, overrides), overrides, out, overwrite, processes)
    if as_json and int(os.environ.get("RANK", 0)) == 0:
        print(json.dumps(report, indent=1))


def _refuse(option: str, **given: Any) -> None:
    """Options that would be ignored beside another one are errors."""
    for name, value in given.items():
        if value:
            raise UsageError(f"{option} does not go together with --{name.replace('_', '-')}")
