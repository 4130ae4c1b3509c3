"""What people see: a live bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console as RichConsole

from riftcli.console import Console, fitting, print_grid
from riftcli.training.loop import _note
from riftcli.training.progress import Progress


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


@pytest.mark.parametrize("width", [60, 80, 100, 160])
@pytest.mark.parametrize("what", ["epoch 12/50", "encoding shifted/0 with the pretrained model"])
def test_a_bar_is_readable_at_any_width(width, what):
    screen = io.StringIO()
    console = Console()
    console.rich = RichConsole(file=screen, force_terminal=True, width=width, color_system=None)
    row = {"loss": 1.25, "task_loss": 1.0, "penalty_loss": 0.25, "images_per_second": 321.4, "batch_cka": 0.5}
    with console.progress(what, 1234) as bar:
        bar.advance(123, _note(row, Progress()))
    lines = [line for line in screen.getvalue().replace("\r", "\n").splitlines() if "1234" in line]
    assert lines
    for line in lines:
        plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", line)
        assert len(plain.rstrip()) <= width
        assert "/1234" in plain and "eta" in plain and re.search(r"\d:\d\d:\d\d|-:--:--", plain), plain
        assert "…" not in plain.partition("/1234")[2], plain
    if what.startswith("epoch"):
        assert any("epoch 12/50" in line and "loss 1.250" in line for line in lines)


def test_a_log_hears_of_a_long_epoch_every_half_minute(tmp_path, capsys, monkeypatch):
    clock = iter(range(0, 10_000, 10))
    monkeypatch.setattr("riftcli.console.time.monotonic", lambda: next(clock))  # ten seconds a step
    console = Console()
    console.log_to(tmp_path / "train.log")
    with console.progress("epoch 1/3", 8) as bar:
        for _ in range(8):
            bar.advance(1, "loss 1.250  cka 0.9")
    console.close()
    text = "epoch 1/3: 3/8, loss 1.250, cka 0.9, eta 0:00:50\nepoch 1/3: 6/8, loss 1.250, cka 0.9, eta 0:00:20\n"
    assert capsys.readouterr().err == (tmp_path / "train.log").read_text() == text


def test_a_note_drops_what_there_is_no_room_for():
    note = "loss 1.250  task 1.000  cka 0.875  321 img/s"
    assert fitting(note, 80) == note
    assert fitting(note, 33) == "loss 1.250  cka 0.875  321 img/s"
    assert fitting(note, 3) == "loss 1.250"
