"""What people see: a live bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import io

from rich.console import Console as RichConsole

from riftcli.console import Console, print_grid
from riftcli.training.loop import _note
from riftcli.training.state import Progress


def on_a_terminal() -> tuple[Console, io.StringIO]:
    screen = io.StringIO()
    console = Console()
    console.rich = RichConsole(file=screen, force_terminal=True, width=160, color_system=None)
    return console, screen


def test_the_bar_shows_loss_parts_throughput_eta_and_similarity():
    console, screen = on_a_terminal()
    row = {"loss": 1.25, "task_loss": 1.0, "penalty_loss": 0.25, "images_per_second": 321.4}
    note = _note(row, Progress(last_cka=0.875))
    assert note == "loss 1.250  task 1.000  similarity loss 0.250  cka 0.875  321 img/s"
    with console.progress("epoch 1/3", 8) as bar:
        bar.advance(2, note)
    shown = screen.getvalue()
    assert "epoch 1/3" in shown
    assert "2/8" in shown
    assert "eta" in shown
    assert note in shown
    assert _note({**row, "batch_cka": 0.5}, Progress(last_cka=0.875)).count("cka 0.500") == 1, (
        "the batch's own where there is one"
    )


def test_elsewhere_there_are_plain_lines_and_a_log(tmp_path, capsys):
    console = Console()
    console.line("before there is a folder")
    with console.progress("epoch 1/3", 8) as bar:
        bar.advance(2, "note")
    console.log_to(tmp_path / "logs" / "train.log")
    console.warn("careful [bold]")
    console.close()
    err = capsys.readouterr().err
    assert err == "before there is a folder\nwarning: careful [bold]\n"
    assert (tmp_path / "logs" / "train.log").read_text() == err


def test_a_quiet_rank_keeps_its_log_to_itself(tmp_path, capsys):
    console = Console(quiet=True)
    console.line("rank 1 was here")
    console.log_to(tmp_path / "rank1.log")
    console.close()
    assert capsys.readouterr().err == ""
    assert (tmp_path / "rank1.log").read_text() == "rank 1 was here\n"


def test_a_wide_table_goes_on_below_with_its_first_column(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    names = [f"column {i}" for i in range(30)]
    print_grid("wide", ["row", *names], [["one", *(str(i) for i in range(30))], ["two", *["x"] * 30]])
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "wide"
    assert [line.split()[0] for line in lines[1:]] == ["row", "one", "two"] * 2, "240 wide where there is no terminal"
    assert all(name in "\n".join(lines) for name in names)
    assert max(map(len, lines)) <= 240
