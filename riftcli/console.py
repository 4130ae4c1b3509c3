"""What people see while it runs: a live bar on a terminal, one plain line an epoch in a log file. All on stderr."""

from __future__ import annotations

import errno
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TextIO

from rich.console import Console as RichConsole

from riftcli import files, heartbeat
from riftcli.escaping import one_line, shown

if TYPE_CHECKING:
    from rich.progress import Progress

BEAT = 30.0  # seconds between two lines of progress in a log
WIDE = 100  # characters from which a bar has all its columns


class Console:
    """Prints unless quiet (rank 0 prints), on stderr or stdout, and keeps a copy of every line in the rank's log file."""

    def __init__(self, quiet: bool = False, stdout: bool = False) -> None:
        self.quiet, self.stdout = quiet, stdout
        self.rich = RichConsole(stderr=not stdout, highlight=False, soft_wrap=True)
        self._log: IO[str] | None = None
        self._early: list[str] = []  # lines from before there was a log file

    def log_to(self, path: Path) -> None:
        """Append every further line to a file too."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self._log = files.open_append(path)
        for text in self._early:
            print(text, file=self._log, flush=True)
        self._early.clear()

    def line(self, text: str, style: str | None = None) -> None:
        """One line."""
        heartbeat.beat(text[:100])
        text = shown(text)
        if not self.quiet and self.rich.is_terminal:
            self.rich.print(text, style=style, markup=False)
        elif not self.quiet:
            print(text, file=sys.stdout if self.stdout else sys.stderr, flush=True)
        if self._log:
            print(text, file=self._log, flush=True)
        else:
            self._early.append(text)

    def warn(self, text: str) -> None:
        """A warning that stands out."""
        self.line(f"warning: {text}", style="bold yellow")

    @contextmanager
    def progress(self, what: str, total: int, start: int = 0) -> Iterator[Bar]:
        """A bar on a terminal; elsewhere, and in the log file, a line every half minute of what takes so long."""
        if self.quiet or not self.rich.is_terminal:
            yield Bar(what, total, start, self._beat)
            return
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

        what = one_line(what)
        width = self.rich.width
        wide = width >= WIDE
        columns = [TextColumn("{task.description}", markup=False), BarColumn(bar_width=24 if wide else 8), MofNCompleteColumn()]
        columns += [TimeElapsedColumn()] * wide
        columns += [TextColumn("eta"), TimeRemainingColumn(), TextColumn("{task.fields[note]}", markup=False)]
        counted = 2 * len(str(total)) + 1
        taken = (24 + 8 if wide else 8) + counted + len("eta 0:00:00") + len(columns) + 1
        name = what if len(what) + taken < width else what[: max(8, width - taken - 1)] + "…"
        with Progress(*columns, console=self.rich, transient=True) as progress:
            task = progress.add_task(name, total=total, completed=start, note="")
            yield Bar(what, total, start, self._beat, progress, task, width - taken - len(name))

    def _beat(self, text: str) -> None:
        """A line of progress: not on a terminal, which has a bar, and not kept for a log file to come."""
        text = shown(text)
        if not self.quiet and not self.rich.is_terminal:
            print(text, file=sys.stdout if self.stdout else sys.stderr, flush=True)
        if self._log:
            print(text, file=self._log, flush=True)

    def close(self) -> None:
        """Close the log file."""
        if self._log:
            self._log.close()
            self._log = None


class Bar:
    """Handle of one progress bar. beat: gets a line every BEAT seconds; room: characters for the note beside the bar."""

    def __init__(
        self,
        what: str,
        total: int,
        start: int,
        beat: Callable[[str], None],
        progress: Progress | None = None,
        task: object = None,
        room: int = 0,
    ) -> None:
        self._what, self._total, self._done, self._start = what, total, start, start
        self._beat, self._progress, self._task, self._room = beat, progress, task, room
        self._began = self._last = time.monotonic()

    def advance(self, count: int = 1, note: str | None = None) -> None:
        """Move on, and say what the numbers are now. note: bits with two spaces between them, the first the most important."""
        heartbeat.beat(self._what)
        self._done += count
        if self._progress is not None:
            fields = {} if note is None else {"note": fitting(note, self._room)}
            self._progress.update(self._task, advance=count, **fields)  # type: ignore[arg-type]
        now = time.monotonic()
        if now - self._last >= BEAT and self._done < self._total:
            self._last = now
            left = (now - self._began) / max(1, self._done - self._start) * (self._total - self._done)
            numbers = f", {', '.join(note.split('  '))}" if note else ""
            self._beat(f"{self._what}: {self._done}/{self._total}{numbers}, eta {timedelta(seconds=round(left))}")


def fitting(note: str, room: int) -> str:
    """As many bits of a note as there is room for: those in the middle go first, the first one last."""
    bits = note.split("  ")
    while len(bits) > 1 and len("  ".join(bits)) > room:
        del bits[1]
    return "  ".join(bits)


class Stopwatch:
    """Seconds since it was made."""

    def __init__(self) -> None:
        self._start = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Elapsed wall-clock seconds."""
        return time.perf_counter() - self._start


def print_grid(title: str, header: Sequence[str], lines: Iterable[Sequence[str]]) -> None:
    """A table on stderr. Columns beyond the terminal's width go on below, with the first column once more."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(stderr=True, highlight=False)
    if not console.is_terminal:
        console = Console(stderr=True, highlight=False, width=max(console.width, 240))
    console.print(shown(title), markup=False, style="bold")
    columns = [[one_line(cell) for cell in (name, *cells)] for name, *cells in zip(header, *lines, strict=True)]
    widths = [max(map(len, column)) for column in columns]
    for block in _blocks(widths, console.width):
        table = Table(box=None, pad_edge=False)
        for i in block:
            table.add_column(
                Text(columns[i][0]), justify="left" if i == 0 else "right", no_wrap=i > 0 and widths[i] < console.width // 2
            )
        for line in zip(*(columns[i][1:] for i in block), strict=True):
            table.add_row(*map(Text, line))
        console.print(table)


def _blocks(widths: Sequence[int], most: int) -> list[list[int]]:
    """Columns that fit side by side, each block with the first one; a gap of two stands between them."""
    blocks = [[0]]
    for i in range(1, len(widths)):
        used = sum(widths[j] + 2 for j in blocks[-1]) + widths[i]
        if used > most and len(blocks[-1]) > 1:
            blocks.append([0])
        blocks[-1].append(i)
    return blocks


def note_line(text: str) -> None:
    """A line on stderr: stdout is for --json."""
    print(shown(text), file=sys.stderr)


class Output:
    """A standard stream that nobody has to read: what its reader no longer takes, or a terminal that is gone, is no error.

    lossy: nor is any other failure, as of a log on a full disk. Tables and JSON on stdout are not lossy.
    """

    def __init__(self, stream: TextIO, lossy: bool) -> None:
        self._stream, self._lossy = stream, lossy

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """As of any text stream; what it cannot write in its encoding is shown escaped."""
        try:
            return self._stream.write(text)
        except UnicodeEncodeError:
            encoding = self._stream.encoding or "ascii"
            return self.write(text.encode(encoding, "backslashreplace").decode(encoding))
        except OSError as error:
            self._give_up(error)
            return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """As of any text stream."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """As of any text stream."""
        try:
            self._stream.flush()
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        """From now on what is written goes nowhere, or the error is raised."""
        if not self._lossy and error.errno not in (errno.EPIPE, errno.EIO, errno.EBADF):
            raise error
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._stream.fileno())
        os.close(nowhere)


def open_standard_streams() -> None:
    """Standard output and error of a command, even where it was started without them."""
    for name, lossy in (("stdout", False), ("stderr", True)):
        stream = getattr(sys, name)
        if stream is None:  # closed when we were started: python opens nothing in its place, and the next file would be it
            stream = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 - for as long as the process lives
        setattr(sys, name, Output(stream, lossy))
