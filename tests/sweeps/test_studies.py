"""The shipped studies: every one expands into valid recipes, and the RIFT paper's Table 1 runs whole on fixture-sized sets."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from dataset_copies import aptos_mirror, isic, medfm_downloaded

from riftcli.recipe.reader import shipped_folder
from riftcli.sweeps.plan import read_plan
from riftcli.sweeps.table import grid, read_table

STUDIES = sorted((shipped_folder() / "studies").glob("*.yaml"))


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_a_study_expands_and_says_how_it_is_run_and_what_came_of_it(path):
    text = path.read_text()
    assert f"#   rift sweep {path.stem}" in text
    assert "docs/results.md" in text or "not measured" in text.lower()
    plan = read_plan(path, [])
    assert len(plan.trials) >= 3
    assert all(len(trial.name) < 160 for trial in plan.trials)


def test_the_table_of_the_paper_as_printed():
    """Averages and relative changes of the paper's own numbers come out as its last columns say."""
    paper = yaml.safe_load((shipped_folder() / "studies/rift_table1.yaml").read_text())["paper"]
    mean = {row: [sum(cell[i] for cell in cells.values()) / 5 for i in (0, 1)] for row, cells in paper.items()}
    assert mean["full"] == pytest.approx([0.7202, 0.52], abs=6e-3)
    assert 100 * (mean["full_rift"][0] / mean["full"][0] - 1) == pytest.approx(-1.37, abs=0.02)
    assert 100 * (mean["full_rift_star"][0] / mean["full"][0] - 1) == pytest.approx(0.93, abs=0.02)
    assert 100 * (mean["rsc_star"][0] / mean["full"][0] - 1) == pytest.approx(0.47, abs=0.02)


def test_table_1_runs_whole_on_copies_of_the_five_sets(tmp_path, tiny_weights, rift, monkeypatch):
    """80 runs: sixteen rows on five sets; one strength for each starred row. Without their pages, which take longer than they."""
    monkeypatch.setattr("riftcli.api.present.present_run", lambda run, console: True)
    data = tmp_path / "data"
    isic(data / "isic2018", train=56, test=14)
    aptos_mirror(data / "aptos2019")
    for task in ("chest", "colon", "endo"):
        medfm_downloaded(data / "medfm", task)
    spec = yaml.safe_load((shipped_folder() / "studies/rift_table1.yaml").read_text())
    for row in spec["rows"].values():
        if row and "grid" in row:
            row["grid"] = {"regularizer.strength": [0.4]}
            row.pop("also", None)  # the copies are too small for validation images to choose by
    spec["seeds"] = 1
    spec["set"] = {
        "model.name": f"local-dir:{tiny_weights}",
        "model.image_size": None,
        "train.epochs": 1,
        "train.batch_size": 2,
        "train.workers": 0,
        "data.val": None,
        "eval.batch_size": 16,
    }
    path = tmp_path / "rift_table1.yaml"
    path.write_text(yaml.safe_dump(spec, sort_keys=False))
    code, _, err = rift("sweep", path, "--in-process", "--device", "cpu", "--set", f"data_root={data}")
    assert code == 0, err[-3000:]
    table = read_table(Path("sweeps/rift_table1"))
    assert table.counts() == {"completed": 80}
    header, lines = grid(table)
    assert header[1:3] == ["ISIC2018 acc or map", "ISIC2018 cka"]
    assert header[-2:] == ["mean acc or map", "mean cka"]
    full = next(line for line in lines if line[0] == "FULL")
    assert all(cell.endswith(")") for cell in full[1:11]), "each beside the paper's number"
    assert [line[0] for line in lines][:3] == ["SCRATCH", "FULL", "FULL +RSC*"]
    starred = next(line for line in lines if line[0] == "FULL +RIFT*")
    assert starred[-2].endswith(" %)")
