"""The command line: one line per command; a RiftError becomes one line on stderr and an exit code."""

from __future__ import annotations

import errno
import importlib
import os
import sys
import traceback

import typer

from riftcli import catalog, launch, signals
from riftcli.errors import ExitCode, RiftError
from riftcli.escaping import shown
from riftcli.version import __version__

# Name -> "module:function", or "module:app" of a group. To add a command, add a file and a line here.
COMMANDS = {
    "finetune": "riftcli.commands.finetune:finetune",
    "eval": "riftcli.commands.eval:evaluate",
    "knn": "riftcli.commands.knn:knn",
    "zeroshot": "riftcli.commands.zeroshot:zeroshot",
    "captions": "riftcli.commands.captions:captions",
    "align": "riftcli.commands.align:align",
    "retrieval": "riftcli.commands.retrieval:retrieval",
    "clinical": "riftcli.commands.clinical:clinical",
    "sharpness": "riftcli.commands.sharpness:sharpness",
    "similarity": "riftcli.commands.similarity:similarity",
    "attention": "riftcli.commands.attention:attention",
    "sweep": "riftcli.commands.sweep:sweep",
    "compare": "riftcli.commands.compare:compare",
    "report": "riftcli.commands.report:report",
    "correlate": "riftcli.commands.correlate:correlate",
    "centrality": "riftcli.commands.centrality:centrality",
    "predict": "riftcli.commands.predict:predict",
    "wise": "riftcli.commands.wise:wise",
    "merge": "riftcli.commands.merge:merge",
    "init": "riftcli.commands.init:init",
    "runs": "riftcli.commands.runs:app",
    "export": "riftcli.commands.export:export",
    "push": "riftcli.commands.push:push",
    "doctor": "riftcli.commands.doctor:doctor",
    "recipes": "riftcli.commands.recipes:app",
    "data": "riftcli.commands.data:app",
    "cache": "riftcli.commands.cache:app",
}


def build_app() -> typer.Typer:
    """The commands above, and one for every evaluator of the catalog that has none among them."""
    app = typer.Typer(
        name="rift",
        help="Finetune vision transformers without destroying what they already knew.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_options)
    for name, target in COMMANDS.items():
        module, _, attribute = target.partition(":")
        command = getattr(importlib.import_module(module), attribute)
        if isinstance(command, typer.Typer):
            app.add_typer(command, name=name)
        else:
            app.command(name)(command)
    for name in catalog.names("evaluator"):
        if name not in COMMANDS:
            from riftcli.commands.generic import evaluator_command

            app.command(name)(evaluator_command(name))
    return app


def _version(value: bool) -> None:
    if value:
        typer.echo(f"riftcli {__version__}")
        raise typer.Exit


def _options(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print the version."),
    debug: bool = typer.Option(False, "--debug", help="Show the full traceback of an error."),
) -> None:
    if debug:
        os.environ["RIFT_DEBUG"] = "1"


def main() -> None:
    """Run a command; translate every way it can end into a documented exit code."""
    from riftcli.console import open_standard_streams

    launch.die_with_parent()
    open_standard_streams()
    code = run(sys.argv[1:])
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    sys.exit(code)


def run(arguments: list[str]) -> int:
    """Run with `arguments` and return the exit code; what tests call."""
    if "--debug" in arguments:  # wherever it stands
        os.environ["RIFT_DEBUG"] = "1"
        arguments = [argument for argument in arguments if argument != "--debug"]
    try:
        with signals.handled():
            code = int(build_app()(arguments, standalone_mode=False) or 0)
        if code == ExitCode.INTERRUPTED:  # typer turns Ctrl-C into a bare exit code
            raise KeyboardInterrupt
        return code
    except RiftError as error:
        return _end(error, str(error), error.exit_code)
    except (typer.Abort, KeyboardInterrupt) as error:
        return _end(error, "interrupted", ExitCode.INTERRUPTED)
    except SystemExit as error:
        return int(error.code or 0) if not isinstance(error.code, str) else ExitCode.UNEXPECTED
    except MemoryError as error:
        return _end(error, _memory_message(error), ExitCode.OUT_OF_MEMORY)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS):
            return _end(error, f"{error.filename or 'run folder'}: {error.strerror}; free some space", ExitCode.STORAGE)
        return _end(error, _unexpected(error), ExitCode.UNEXPECTED)
    except Exception as error:
        if hasattr(error, "format_message"):  # click's usage errors
            return _end(error, error.format_message(), ExitCode.USAGE)
        if "DataLoader worker" in str(error):  # torch says so wherever we are at that moment
            return _end(error, _worker_message(error), ExitCode.ENVIRONMENT)
        if type(error).__name__ == "OutOfMemoryError" or "DefaultCPUAllocator" in str(error):
            return _end(error, _memory_message(error), ExitCode.OUT_OF_MEMORY)
        return _end(error, _unexpected(error), ExitCode.UNEXPECTED)


def _unexpected(error: Exception) -> str:
    first = str(error).strip().splitlines()
    return f"unexpected {type(error).__name__}: {first[0] if first else ''}; a bug: --debug shows the traceback"


def _worker_message(error: Exception) -> str:
    if "shared memory" in str(error):
        remedy = "give it more (docker run --shm-size=8g), or none of them: train.workers=0"
        return f"data workers ran out of shared memory (/dev/shm); {remedy}"
    return "a data worker was killed (out of memory?); fewer train.workers need less memory, train.workers=0 has none"


def _memory_message(error: Exception) -> str:
    first = str(error).splitlines()
    what = first[0] if first else "no details"
    return f"out of memory: {what}; use a smaller train.micro_batch_size (the result stays the same) or train.precision bf16"


def _end(error: BaseException, message: str, code: ExitCode) -> int:
    from riftcli import launch

    debug, message = bool(os.environ.get("RIFT_DEBUG")), shown(message)
    if "TORCHELASTIC_RUN_ID" in os.environ or "TORCHELASTIC_ERROR_FILE" in os.environ:
        launch.record_worker_error(error, message)
    if message and (
        debug or not ("RANK" in os.environ and os.environ.get("RIFT_LAUNCHED"))
    ):  # no command at all: help is printed
        for line in message.split("\n"):
            # recipes report all their errors at once: each starts its own line
            print(line if line.startswith("  ") else f"error: {line}", file=sys.stderr)
    if debug:
        traceback.print_exception(error)
    return int(code)
