"""rift sweep."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from riftcli.errors import UsageError

OptionalPath = Optional[Path]  # noqa: UP045 - typer reads it at run time
OptionalInt = Optional[int]  # noqa: UP045


def sweep(
    what: Annotated[
        list[str], typer.Argument(metavar="SWEEP.yaml | show DIR", help="A sweep file to run, or a folder to look at.")
    ],
    overrides: Annotated[
        list[str],
        typer.Option("--set", metavar="KEY=VALUE", help="A parameter of the file, or a recipe key of every trial; repeatable."),
    ] = [],  # noqa: B006 - typer copies it
    out: Annotated[
        OptionalPath, typer.Option(help="Folder of the sweep; default sweeps/<file>. One that is there goes on.")
    ] = None,
    jobs: Annotated[OptionalInt, typer.Option(min=1, help="Trials at a time; default one for each GPU, one on a CPU.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Run failed trials once more, from the start.")] = False,
    on: Annotated[str, typer.Option(help="local; slurm or ray: trials as jobs of a cluster (extras `slurm`, `ray`).")] = "local",
    in_process: Annotated[
        bool, typer.Option("--in-process", help="One trial after another in this process: faster where trials take seconds.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the trials, the hours (from a measured step) and the disk; run nothing.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report on stdout.")] = False,
) -> None:
    """Many runs from one file: grids, pairs and seeds over any recipe keys. Show: its table, also while it runs."""
    if what[0] == "show":
        if len(what) != 2:
            raise UsageError("rift sweep show DIR: expected one folder of a sweep")
        given = {"--set": overrides, "--out": out, "--jobs": jobs, "--retry-failed": retry_failed, "--dry-run": dry_run}
        for option, value in given.items():
            if value:
                raise UsageError(f"rift sweep show does not go together with {option}")
        from riftcli.sweeps.run import present

        _, report = present(Path(what[1]))
    else:
        if len(what) != 1:
            raise UsageError(f"rift sweep: expected one sweep file, or `show DIR`, got {' '.join(what)}")
        from riftcli.sweeps.plan import read_plan

        plan = read_plan(_file(what[0]), overrides)
        if dry_run:
            _print_estimate(plan, device)
            return
        from riftcli.sweeps.run import run_sweep

        if on not in ("local", "slurm", "ray"):
            raise UsageError(f"--on {on}: expected local, slurm or ray")
        for option, used in (("--jobs", jobs is not None), ("--on", on != "local")):
            if in_process and used:
                raise UsageError(f"--in-process does not go together with {option}")
        if on != "local" and jobs is not None:
            raise UsageError(f"--on {on} does not go together with --jobs: the cluster decides")
        if in_process and plan.cells and plan.optuna.pruner != "none":
            raise UsageError("--in-process does not go together with optuna.pruner: nothing can be given up from outside")
        report = run_sweep(plan, out, jobs, device, retry_failed, in_process, on)
    if as_json:
        print(json.dumps(report, indent=1))


def _file(name: str) -> Path:
    """A path, or the name of a shipped study."""
    from riftcli.errors import did_you_mean
    from riftcli.recipe.reader import shipped_folder

    path = Path(name).expanduser()
    if path.is_file():
        return path
    studies = shipped_folder() / "studies"
    shipped = studies / f"{name.removesuffix('.yaml')}.yaml"
    if "/" not in name and shipped.is_file():
        return shipped
    names = sorted(file.stem for file in studies.glob("*.yaml"))
    raise UsageError(f"sweep {name}: no such file and no shipped study of that name{did_you_mean(Path(name).stem, names)}")


def _shown(span: Any) -> str:
    return str(span.choices) if span.choices is not None else f"{span.low:g} to {span.high:g}"


def _print_estimate(plan: Any, device: str) -> None:
    from riftcli.sweeps.estimate import estimate

    for trial in plan.trials:
        settings = ", ".join(f"{key}={value}" for key, value in trial.settings.items())
        print(f"{trial.name}: {Path(trial.recipe).name}{', ' * bool(settings)}{settings}")
    for cell in plan.cells:
        space = ", ".join(f"{key} {_shown(span)}" for key, span in cell.space.items())
        print(f"{cell.name}: {plan.optuna.trials} settings of {space}, chosen by {plan.optuna.sampler}")
    found = estimate(plan, device)
    for row in found:
        if row.why is not None:
            print(f"{row.row}: {row.runs} runs; hours and disk are not known: {row.why}")
        else:
            print(f"{row.row}: {row.runs} runs, {row.steps} steps, {row.hours:.2f} h, {(row.disk_bytes or 0.0) / 1e9:.1f} GB")
    runs = sum(row.runs for row in found)
    hours, disk = sum(row.hours or 0.0 for row in found), sum(row.disk_bytes or 0.0 for row in found)
    if all(row.why for row in found):
        print(f"{runs} runs; nothing was written")
        return
    rest = " (of the rows that are known)" if any(row.why for row in found) else ""
    print(f"{runs} runs, {hours:.2f} hours of one device{rest}, {disk / 1e9:.1f} GB; nothing was written")
    print(f"hours are of training steps alone, measured on {device} with made-up images; reading and evaluation come on top")
