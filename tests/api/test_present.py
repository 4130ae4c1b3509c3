"""Numbers are evaluation's, pictures are report's: a page that fails takes nothing from a finished run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest


@pytest.mark.page
def test_a_page_that_fails_leaves_the_run_completed(rift, tiny_recipe, write_recipe, monkeypatch):
    from riftcli.api import present

    def fails(*arguments):
        raise RuntimeError("no fonts")

    tiny_recipe["train"]["epochs"] = 1
    with monkeypatch.context() as patch:
        patch.setattr(present, "write_page", fails)
        code, _, err = rift("finetune", "--recipe", write_recipe(tiny_recipe), "--out", "r")
    assert code == 0, err
    assert "warning: r: the run is complete, its page is not (RuntimeError: no fonts); try `rift report r`" in err
    assert "warning: r: the run is complete" in Path("r/train.log").read_text()
    assert json.loads(Path("r/run.json").read_text())["status"] == "completed"
    assert Path("r/plots/curves.png").is_file()
    assert rift("finetune", "--resume", "r")[2].endswith("r: already finished\n")
    assert rift("report", "r")[0] == 0
    assert Path("r/report.html").is_file()


@pytest.mark.page
def test_a_run_that_is_stopped_while_its_page_is_drawn_is_interrupted_and_gets_it_by_resume(
    rift, tiny_recipe, write_recipe, monkeypatch
):
    from riftcli.api import present

    def stopped(*arguments):
        raise KeyboardInterrupt

    tiny_recipe["train"]["epochs"] = 1
    with monkeypatch.context() as patch:
        patch.setattr(present, "write_page", stopped)
        assert rift("finetune", "--recipe", write_recipe(tiny_recipe), "--out", "r")[0] == 130
    assert json.loads(Path("r/run.json").read_text())["status"] == "interrupted"
    assert rift("finetune", "--resume", "r")[0] == 0
    assert Path("r/report.html").is_file()
