"""What the tool says when it cannot go on: one error class per documented exit code."""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """Exit codes of every command; a part of the public interface."""

    OK = 0
    UNEXPECTED = 1
    USAGE = 2
    DATA = 3
    MODEL = 4
    ENVIRONMENT = 5
    OUT_OF_MEMORY = 6
    DIVERGED = 7
    STORAGE = 8
    INTERRUPTED = 130
    TERMINATED = 143


class RiftError(Exception):
    """An error with a remedy, for users: printed as `error: message`, never as a traceback unless --debug."""

    exit_code = ExitCode.UNEXPECTED


class UsageError(RiftError):
    """A wrong recipe, option or output folder."""

    exit_code = ExitCode.USAGE


class DataError(RiftError):
    """Data that is missing, unreadable or contradicts itself. `problems` are all of them where the text shows a few."""

    exit_code = ExitCode.DATA
    problems: list[str] | None = None


class ModelError(RiftError):
    """A model or weights that cannot be built or loaded."""

    exit_code = ExitCode.MODEL


class EnvironmentError(RiftError):  # noqa: A001 - the documented name of exit code 5
    """A device or an extra package that this machine does not have."""

    exit_code = ExitCode.ENVIRONMENT


class DivergedError(RiftError):
    """A loss or gradient is not finite."""

    exit_code = ExitCode.DIVERGED


class StorageError(RiftError):
    """A checkpoint or report that cannot be written or fails its checksum."""

    exit_code = ExitCode.STORAGE


class Terminated(RiftError):
    """SIGTERM, SIGUSR1 or SIGHUP came; what was trained is saved."""

    exit_code = ExitCode.TERMINATED


class Interrupted(Terminated):
    """Ctrl-C came; the state was saved."""

    exit_code = ExitCode.INTERRUPTED


def did_you_mean(word: str, choices: list[str] | tuple[str, ...]) -> str:
    """Return ` (did you mean 'x'?)` for the closest of `choices`, or an empty string."""
    import difflib

    close = difflib.get_close_matches(word, choices, n=1, cutoff=0.6)
    return f" (did you mean '{close[0]}'?)" if close else ""


SHOWN_PROBLEMS = 5


class Problems:
    """Everything wrong with one data source: raised together, the first five and how many more there are."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def add(self, line: str) -> None:
        """Note one problem."""
        self.lines.append(line)

    def raise_if_any(self, kind: type[DataError] = DataError) -> None:
        """Raise one error of this kind with a line per problem."""
        if not self.lines:
            return
        shown = self.lines[:SHOWN_PROBLEMS]
        rest = len(self.lines) - len(shown)
        error = kind("\n".join([*shown, f"  and {rest} more ({len(self.lines)} in all)"] if rest else shown))
        error.problems = self.lines
        raise error
