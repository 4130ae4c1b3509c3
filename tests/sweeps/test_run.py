"""Real sweeps in real processes: what they leave, and what they survive."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from riftcli import cli
from riftcli.functional.pareto import pareto_front
from riftcli.sweeps.points import Point, choose, marked, mean_over, metric_value
from riftcli.sweeps.table import grid, read_table


def write_sweep(folder: Path, recipe: dict, **keys) -> Path:
    (folder / "tiny.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump({"recipe": "tiny.yaml", **keys}, sort_keys=False))
    return path


@pytest.fixture(scope="module")
def swept(tiny_recipe_of, tmp_path_factory) -> Path:
    """Two rows, one of them with two strengths, two seeds of each; and a row whose data is not there."""
    place = tmp_path_factory.mktemp("sweep")
    recipe = tiny_recipe_of()
    recipe["regularizer"] = {"name": "none"}
    recipe["train"]["epochs"] = 1
    recipe["retention"] = [
        {"format": "demo_fashion", "test": {"from": "test", "limit": 30}, "train": {"from": "test", "limit": 30}}
    ]
    path = write_sweep(
        place,
        recipe,
        rows={
            "full": {"label": "FULL"},
            "rift": {"label": "RIFT*", "set": {"regularizer.name": "rift"}, "grid": {"regularizer.strength": [1.0, 0.1]}},
            "lost": {"set": {"data": {"format": "image_folder", "root": "nowhere"}}},
        },
        seeds=2,
        metrics=["acc", "cka", "probe demo_fashion"],
        baseline="full",
        paper={"full": {"all": [0.8, 0.32, None]}},
    )
    done = subprocess.run(
        [sys.executable, "-m", "riftcli", "sweep", str(path), "--out", str(place / "out"), "--device", "cpu", "--json"],
        capture_output=True,
        text=True,
        cwd=place,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    (place / "stderr").write_text(done.stderr)
    assert done.returncode == 3, done.stderr
    assert done.stdout == ""
    return place


def test_failed_trials_are_listed_and_do_not_stop_the_others(swept):
    err = (swept / "stderr").read_text()
    line = "nowhere: no such data folder"
    assert err.count(f"failed: lost/s0: {line}") == 1, err
    assert "error: 2 of 8 trials failed; --retry-failed tries them again\n  lost/s0: nowhere" in err
    table = read_table(swept / "out")
    assert table.counts() == {"completed": 6, "failed": 2}
    assert "full/s0: completed, " in err


def test_every_trial_is_an_ordinary_run(swept):
    run = swept / "out/trials/rift-strength=0.1/s1"
    assert json.loads((run / "run.json").read_text())["status"] == "completed"
    assert (run / "report.html").is_file()
    assert not (run / "last").exists(), "only of use to resume"
    assert json.loads((run / "metrics.json").read_text())["model"]["method"]["strength"] == 0.1


def test_the_table_shows_what_validation_chose_beside_published_numbers(swept):
    table = read_table(swept / "out")
    header, lines = grid(table)
    assert header == ["", "acc", "cka", "probe demo_fashion"]
    assert [line[0] for line in lines] == ["FULL", "RIFT*", "lost"]
    assert lines[0][1].endswith("(0.8)") and lines[0][2].endswith("(0.32)")
    assert lines[1][1].endswith(("; strength 1", "; strength 0.1"))
    assert lines[2][1:] == ["", "", ""]
    chosen = [point for point in table.points if point.chosen]
    assert {(point.row, len(point.seeds)) for point in chosen} == {("full", 2), ("rift", 2)}
    rivals = [point for point in table.points if point.row == "rift"]
    means = [mean_over(point.validation, set()) for point in rivals]
    assert max(means) == next(mean_over(p.validation, set()) for p in chosen if p.row == "rift")
    for name in ("table.csv", "table.md", "pareto.png", "pareto.csv", "report.json"):
        assert (swept / "out" / name).is_file(), name
    report = json.loads((swept / "out/report.json").read_text())
    assert report["schema"] == "rift.sweep_report/1"
    assert len(report["points"]) == 3
    assert list(report["failed"]) == ["lost/s0", "lost/s1"]


def test_show_and_compare_read_it(swept, rift):
    code, out, err = rift("sweep", "show", swept / "out", "--json")
    assert code == 0, err
    assert json.loads(out)["trials"] == {"completed": 6, "failed": 2}
    assert "RIFT*" in err
    code, out, err = rift("compare", swept / "out", "--json")
    assert code == 0, err
    rows = {row["run"] for row in json.loads(out)["rows"]}
    assert rows == {"full", "rift-strength=0.1", "rift-strength=1.0"}


def test_it_goes_on_grows_and_refuses_another_plan(swept, tmp_path, monkeypatch, capfd):
    place = Path(shutil.copytree(swept, tmp_path / "copy"))
    monkeypatch.chdir(place)
    spec = yaml.safe_load((place / "study.yaml").read_text())
    del spec["rows"]["lost"]
    (place / "study.yaml").write_text(yaml.safe_dump(spec, sort_keys=False))
    assert cli.run(["sweep", "study.yaml", "--out", "out", "--device", "cpu"]) == 3, "what failed before is still there"
    err = capfd.readouterr().err
    assert "s0: completed" not in err, "nothing is run twice"
    spec["set"] = {"optim.lr": 0.5}
    (place / "other.yaml").write_text(yaml.safe_dump(spec, sort_keys=False))
    assert cli.run(["sweep", "other.yaml", "--out", "out"]) == 2
    assert "trial full/s0 was planned with other settings (optim.lr: 0.001 -> 0.5)" in capfd.readouterr().err
    recipe = yaml.safe_load((place / "tiny.yaml").read_text())
    (place / "tiny.yaml").write_text(yaml.safe_dump({**recipe, "optim": {"lr": 0.1}}))
    assert cli.run(["sweep", "study.yaml", "--out", "out"]) == 2
    assert "was planned with other settings (optim.lr: 0.001 -> 0.1)" in capfd.readouterr().err
    (place / "tiny.yaml").write_text(yaml.safe_dump(recipe))
    another = {"recipe": "tiny.yaml", "grid": {"optim.lr": [0.1, 0.2]}}
    (place / "another.yaml").write_text(yaml.safe_dump(another))
    assert cli.run(["sweep", "another.yaml", "--out", "out"]) == 2
    assert "out: holds another sweep, of which this file names no trial; choose another --out" in capfd.readouterr().err
    (place / "full").mkdir()
    (place / "full/x").write_text("mine")
    assert cli.run(["sweep", "study.yaml", "--out", "full"]) == 2
    assert capfd.readouterr().err == "error: --out full: folder is not empty and holds no sweep; choose another --out\n"
    assert cli.run(["sweep", "show", "full"]) == 2
    assert capfd.readouterr().err == "error: full: not a sweep folder (no sweep.json)\n"


def test_dry_run_counts_and_writes_nothing(tiny_recipe, tmp_path, rift):
    path = write_sweep(
        tmp_path,
        tiny_recipe,
        rows={
            "a": {"grid": {"regularizer.strength": [1.0, 0.5]}},
            "b": {"set": {"data.root": "x", "data.format": "image_folder"}},
        },
        seeds=2,
    )
    before = sorted(tmp_path.rglob("*"))
    code, out, err = rift("sweep", path, "--dry-run", "--device", "cpu")
    assert code == 0, err
    assert "a-strength=0.5/s1: tiny.yaml, regularizer.strength=0.5" in out
    assert "a: 4 runs, 32 steps, 0.00 h, 0.0 GB" in out
    assert "b: 2 runs; hours and disk are not known: x: no such data folder" in out
    assert "6 runs, 0.00 hours of one device (of the rows that are known), 0.0 GB; nothing was written" in out
    code, out, _ = rift("sweep", "rift_table1", "--dry-run", "--set", "data_root=/nowhere")
    assert code == 0
    assert out.splitlines()[-1] == "555 runs; nothing was written"
    assert sorted(tmp_path.rglob("*")) == before


def test_it_survives_kill_9_of_a_trial_and_of_itself(rift, tiny_recipe, tmp_path):
    """Killed and going on, the trials end bit for bit as runs that nothing happened to."""
    tiny_recipe["train"] |= {"epochs": 40, "save_every_steps": 3}
    tiny_recipe["eval"]["every_epochs"] = 10
    path = write_sweep(tmp_path, tiny_recipe, grid={"regularizer.strength": [1.0, 0.1]})
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "riftcli", "sweep", str(path), "--out", "out", "--device", "cpu"]

    def trial(process: subprocess.Popen) -> int:
        """The process of the trial at hand, once it has saved a state of its own."""
        deadline = time.time() + 90
        while time.time() < deadline and process.poll() is None:
            found = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True).stdout.split()
            runs = list((tmp_path / "out").glob("trials/*/s0/last/step-*/manifest.json"))
            if found and runs:
                return int(found[0])
            time.sleep(0.05)
        raise AssertionError("no trial came to a checkpoint")

    process = subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True)
    victim = trial(process)
    os.kill(victim, signal.SIGKILL)
    line = process.stderr.readline()
    while "interrupted" not in line:
        assert line, "the sweep went on"
        line = process.stderr.readline()
    assert line == "strength=1.0/s0: interrupted: killed by signal 9; 1 left\n"
    while (second := trial(process)) == victim:
        time.sleep(0.05)
    busy = subprocess.run([*command], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert busy.returncode == 2
    assert "error: out: another process runs this sweep; wait for it" in busy.stderr
    process.kill()
    process.wait()
    deadline = time.time() + 20
    while Path(f"/proc/{second}").exists() and "Z" not in Path(f"/proc/{second}/stat").read_text().split()[2]:
        assert time.time() < deadline, "the trial outlives its sweep"
        time.sleep(0.1)
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "2 completed" in done.stderr
    for strength in ("1.0", "0.1"):
        alone = ["--recipe", "tiny.yaml", "--set", f"regularizer.strength={strength}", "--set", "train.seed=0", "--out", strength]
        assert rift("finetune", *alone, "--device", "cpu")[0] == 0
        whole = (tmp_path / strength / "model/model.safetensors").read_bytes()
        assert (tmp_path / f"out/trials/strength={strength}/s0/model/model.safetensors").read_bytes() == whole


def test_a_terminated_sweep_lets_its_trial_save(tiny_recipe, tmp_path):
    tiny_recipe["train"]["epochs"] = 4000
    path = write_sweep(tmp_path, tiny_recipe)
    command = [sys.executable, "-m", "riftcli", "sweep", str(path), "--out", "out", "--device", "cpu"]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    rows = tmp_path / "out/trials/all/s0/metrics.jsonl"
    deadline = time.time() + 90
    while not (rows.is_file() and len(rows.read_text().splitlines()) > 3):
        assert time.time() < deadline and process.poll() is None
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 143, err
    assert "error: stopped by a signal; the same command goes on with out" in err
    assert json.loads((tmp_path / "out/trials/all/s0/run.json").read_text())["status"] == "interrupted"
    assert list((tmp_path / "out/trials/all/s0/last").glob("step-*"))


# ---- choosing

UP = {(row, "all"): 1.0 for row in ("a", "rift", "star")}


def point(row: str, validation: float | None, kept_there: float, score: float, kept: float, seeds: int = 1) -> Point:
    metrics = {"acc": {"mean": score, "std": None}, "cka": {"mean": kept, "std": None}}
    by_seed, kept_by_seed = dict.fromkeys(range(seeds), validation), dict.fromkeys(range(seeds), kept_there)
    return Point(row, "all", {"s": validation}, by_seed, kept_by_seed, metrics, "acc", "cka")


def test_of_settings_as_good_as_the_best_the_one_that_keeps_most_is_chosen_on_validation():
    points = [point("a", 0.90, 0.5, 0.8, 0.99), point("a", 0.895, 0.7, 0.7, 0.1), point("a", 0.85, 0.9, 0.9, 0.9)]
    chosen = [choose(points, ["a"], within, {}, UP)["a", "all"] for within in (0.0, 0.01, 0.1)]
    assert chosen == [0, 1, 2]
    flags = marked(points, {("a", "all"): 1})
    assert [p.chosen for p in flags] == [False, True, False]
    assert [p.front for p in flags] == [True, False, True]


def test_less_may_be_better_and_without_a_value_nothing_is_chosen():
    points = [point("a", 0.02, 0.5, 0.8, 0.99), point("a", 0.30, 0.9, 0.7, 0.1)]
    assert choose(points, ["a"], 0.0, {}, {("a", "all"): -1.0}) == {("a", "all"): 0}
    assert choose(points, ["a"], 0.0, {}, UP) == {("a", "all"): 1}
    unknown = [point("a", None, 0.5, 0.8, 0.99), point("a", None, 0.9, 0.7, 0.1)]
    assert choose(unknown, ["a"], 0.0, {}, UP) == {}
    assert choose(unknown[:1], ["a"], 0.0, {}, UP) == {("a", "all"): 0}, "there is no choice to make"


def test_settings_are_compared_on_the_seeds_that_all_of_them_have():
    early = point("a", 0.90, 0.5, 0.8, 0.9)  # seed 0 alone, a lucky one
    late = replace(point("a", 0.80, 0.5, 0.8, 0.9, seeds=3), validation={0: 0.91, 1: 0.70, 2: 0.70})
    assert choose([early, late], ["a"], 0.0, {}, UP) == {("a", "all"): 1}
    assert mean_over(late.validation, {0, 1}) == pytest.approx(0.805)
    assert mean_over({0: 0.5, 1: None}, {0, 1}) is None


def test_a_starred_row_chooses_among_the_runs_of_another():
    points = [point("rift", 0.90, 0.5, 0.8, 0.99), point("star", 0.85, 0.7, 0.7, 0.1), point("star", 0.88, 0.7, 0.7, 0.1)]
    choices = choose(points, ["rift", "star"], 0.0, {"star": ["rift"]}, UP)
    assert choices == {("rift", "all"): 0, ("star", "all"): 0}
    assert choose(points, ["rift", "star"], 0.0, {}, UP) == {("rift", "all"): 0, ("star", "all"): 2}


def test_the_front_is_what_none_beats_in_both():
    assert pareto_front([(1, 1), (2, 2), (3, 1), (0, 3), (2, 2), (1, 2)]) == [False, True, True, True, True, False]
    assert pareto_front([]) == []


def test_values_of_retention_sets_are_found_by_name_and_as_a_mean():
    report = {"metrics": {"acc": {"value": 0.9}}, "retention": {"a": {"probe_after": 0.4, "cka": 0.5}, "b": {"probe_after": 0.8}}}
    found = {name: metric_value(report, name) for name in ("acc", "probe a", "probe retention", "cka retention", "knn c", "f1")}
    assert found == {
        "acc": 0.9,
        "probe a": 0.4,
        "probe retention": pytest.approx(0.6),
        "cka retention": None,
        "knn c": None,
        "f1": None,
    }
