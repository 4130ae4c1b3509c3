"""The table of docs/reliability.md: every row has tests, and they are there. And the rows that have no other file."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
ROWS = [f"F{number}" for number in range(1, 27) if number not in (4, 19)]  # numbers that were given up


def test_every_row_names_tests_that_are_there():
    lines = (ROOT / "docs/reliability.md").read_text().splitlines()
    rows = {match[1]: line for line in lines if (match := re.match(r"\| (F\d+) \|", line))}
    assert list(rows) == ROWS
    for name, line in rows.items():
        tests = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", line)
        assert tests, f"{name} names no test"
        for file, test in tests:
            assert f"def {test}(" in (ROOT / file).read_text(), f"{name}: {file} has no {test}"


def test_what_is_not_a_number_is_never_the_best(rift, tiny_recipe, write_recipe, monkeypatch):
    """F12: NaN on validation in epoch 1 and 3, a number in epoch 2: that is the best."""
    import json

    from riftcli.evaluation.metrics.classification import Accuracy

    real, calls = Accuracy.compute, {"n": 0}

    def sometimes(self, predictions):
        calls["n"] += 1
        found = real(self, predictions)
        return {**found, "value": float("nan")} if calls["n"] in (2, 4) else found  # the first is of the start

    monkeypatch.setattr(Accuracy, "compute", sometimes)
    tiny_recipe["train"]["epochs"] = 3
    code, _, err = rift("finetune", "--recipe", write_recipe(tiny_recipe), "--out", "r")
    assert code == 0, err
    assert json.loads(Path("r/metrics.json").read_text())["model"]["epoch"] == 2


EIGHT = """
import sys, time
from pathlib import Path
from riftcli.errors import UsageError
from riftcli.runs.folder import RunFolder
while not Path("go").exists():
    time.sleep(0.01)
try:
    folder = RunFolder.create(Path("r"))
    folder.start("a: 1", "a: 1", {})
    print("mine", flush=True)
    time.sleep(6)
except UsageError as error:
    print(error, flush=True)
"""


def test_one_of_eight_starts_wins(tmp_path):
    """F21: at once, in one folder."""
    begun = [subprocess.Popen([sys.executable, "-c", EIGHT], cwd=tmp_path, stdout=subprocess.PIPE, text=True) for _ in range(8)]
    (tmp_path / "go").touch()
    said = [process.communicate(timeout=60)[0].strip() for process in begun]
    assert said.count("mine") == 1
    others = {line for line in said if line != "mine"}
    busy = "r: another process is writing to this run; wait for it or choose another --out"
    begun_since = "--out r: folder is not empty; go on with --resume r, replace it with --overwrite, or choose another --out"
    assert others <= {busy, begun_since}
