"""`rift runs` and `rift runs rm`."""

from __future__ import annotations

import fcntl
import json
import shutil

import pytest

from riftcli.runs.listing import remove_run, runs_below, size_of


@pytest.fixture
def place(trained, tmp_path):
    """Two finished runs, one that was killed, and one whose report is damaged."""
    folder = tmp_path / "runs"
    shutil.copytree(trained / "full" / "s0", folder / "one")
    shutil.copytree(trained / "rift" / "s0", folder / "series" / "s0")
    shutil.copytree(trained / "full" / "s0", folder / "killed", ignore=shutil.ignore_patterns("metrics.json", "model"))
    about = json.loads((folder / "killed" / "run.json").read_text())
    (folder / "killed" / "run.json").write_text(json.dumps({**about, "status": "running"}))
    return folder


def test_runs_are_listed_with_what_came_of_them(place, rift, read_json):
    entries = {entry.path.name: entry for entry in runs_below(place)}
    assert set(entries) == {"one", "s0", "killed"}
    report = read_json(place / "one" / "metrics.json")
    assert entries["one"].score == report["metrics"]["acc"]["value"]
    assert entries["one"].cka == report["metrics"]["cka"]["value"]
    assert (entries["one"].status, entries["killed"].status, entries["killed"].score) == ("completed", "interrupted", None)
    assert entries["one"].size == sum(f.stat().st_size for f in (place / "one").rglob("*") if f.is_file())
    code, out, err = rift("runs", "--in", place, "--json")
    assert code == 0, err
    assert {row["path"] for row in json.loads(out)} == {str(entry.path) for entry in entries.values()}
    code, _, err = rift("runs", "--in", place)
    assert err.startswith(f"3 runs below {place}, ")
    assert f"{entries['one'].score:.4f}" in err
    (place / "one" / "metrics.json").write_text("{")
    (place / "killed" / "run.json").write_text("[")
    assert {entry.status for entry in runs_below(place)} == {"completed", "unreadable"}
    code, _, err = rift("runs", "--in", "nowhere")
    assert (code, err) == (2, "error: nowhere: no such folder; `rift runs --in DIR` lists the runs below DIR (default runs/)\n")


def test_a_map_is_no_run_of_training(place, rift, monkeypatch):
    from riftcli.runs import folder

    code, _, err = rift("align", "pretrained", place / "one", "--map", "procrustes")
    assert code == 0, err
    assert (place / "one" / "align" / "procrustes" / "run.json").is_file()
    assert len(runs_below(place)) == 3
    monkeypatch.setattr(folder, "RUNS", place)
    assert folder.newest_finished() in (place / "one", place / "series" / "s0")


def test_a_run_in_progress_is_not_called_interrupted(place):
    with (place / "killed" / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert {entry.path.name: entry.status for entry in runs_below(place)}["killed"] == "running"


def test_what_resuming_needs_is_removed_and_the_best_stays(place, rift):
    run = place / "one"
    before = size_of(run)
    code, _, err = rift("runs", "rm", run, "--keep-best")
    assert code == 0, err
    assert err.splitlines()[-1].startswith("freed: ")
    assert not (run / "last").exists()
    assert size_of(run) < before
    assert rift("eval", "--run", run)[0] == 0, "the best weights are there"
    assert remove_run(run, keep_best=True) == 0, "nothing is left to remove"


def test_whole_runs_are_removed_only_when_that_is_said(place, rift):
    code, _, err = rift("runs", "rm", place / "one")
    assert code == 2
    assert err == "error: runs rm deletes whole runs: say --yes, or --keep-best to keep their best weights and reports\n"
    code, _, err = rift("runs", "rm", place / "killed", "--keep-best")
    assert code == 2
    assert "not finished, and without last/ it never can be; finish it with --resume, or remove it whole" in err
    code, _, err = rift("runs", "rm", place / "series", "--yes")
    assert (code, err) == (2, f"error: {place}/series: not a run folder (no run.json)\n")
    with (place / "one" / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        code, _, err = rift("runs", "rm", place / "one", "--yes")
    assert (code, err) == (2, f"error: {place}/one: still in progress; stop it first\n")
    code, _, err = rift("runs", "rm", place / "one", place / "killed", "--yes")
    assert code == 0, err
    assert not (place / "one").exists() and not (place / "killed").exists() and (place / "series" / "s0").exists()
