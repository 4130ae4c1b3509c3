"""What people see while it runs: a live bar on a terminal, one plain line an epoch in a log file. All on stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from rich.console import Console as RichConsole
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


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
        self._log = path.open("a", encoding="utf-8")
        for text in self._early:
            print(text, file=self._log, flush=True)
        self._early.clear()

    def line(self, text: str, style: str | None = None) -> None:
        """One line."""
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
        """A bar on a terminal, silent elsewhere."""
        if self.quiet or not self.rich.is_terminal:
            yield Bar(None, None)
            return
        columns = [TextColumn("{task.description}"), BarColumn(bar_width=24), MofNCompleteColumn()]
        columns += [TimeElapsedColumn(), TextColumn("eta"), TimeRemainingColumn(), TextColumn("{task.fields[note]}")]
        with Progress(*columns, console=self.rich, transient=True) as progress:
            yield Bar(progress, progress.add_task(what, total=total, completed=start, note=""))

    def close(self) -> None:
        """Close the log file."""
        if self._log:
            self._log.close()
            self._log = None


class Bar:
    """Handle of one progress bar; does nothing where there is no terminal."""

    def __init__(self, progress: Progress | None, task: object) -> None:
        self._progress, self._task = progress, task

    def advance(self, count: int = 1, note: str | None = None) -> None:
        """Move on, and say what the numbers are now."""
        if self._progress is not None:
            fields = {} if note is None else {"note": note}
            self._progress.update(self._task, advance=count, **fields)  # type: ignore[arg-type]


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

    console = Console(stderr=True, highlight=False)
    if not console.is_terminal:
        console = Console(stderr=True, highlight=False, width=max(console.width, 240))
    console.print(title, markup=False, style="bold")
    columns = [[name, *cells] for name, *cells in zip(header, *lines, strict=True)]
    widths = [max(map(len, column)) for column in columns]
    for block in _blocks(widths, console.width):
        table = Table(box=None, pad_edge=False)
        for i in block:
            table.add_column(
                columns[i][0], justify="left" if i == 0 else "right", no_wrap=i > 0 and widths[i] < console.width // 2
            )
        for line in zip(*(columns[i][1:] for i in block), strict=True):
            table.add_row(*line)
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
    print(text, file=sys.stderr)
