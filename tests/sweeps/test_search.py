"""Settings that Optuna chooses: what is drawn, remembered, told and given up."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import yaml

from riftcli.errors import EnvironmentError, UsageError
from riftcli.sweeps.folder import SweepFolder, read_sweep, standing
from riftcli.sweeps.plan import read_plan
from riftcli.sweeps.pool import Pool
from riftcli.sweeps.search import JOURNAL, Search

optuna = pytest.importorskip("optuna")

FILE = """
recipe: demo_full
rows: {full: {}, rift: {set: {regularizer.name: rift}, search: {regularizer.strength: {low: 0.1, high: 10.0, log: true}}}}
search:
  optim.lr: {low: 1e-5, high: 1e-3, log: true}
  train.batch_size: {low: 32, high: 128, step: 32}
  schedule.name: {choices: [cosine, constant]}
"""


@pytest.fixture
def search_of(tmp_path):
    """A maker of (plan, search) of one sweep folder."""
    (tmp_path / "out").mkdir()

    def make(text: str = FILE, **options):
        path = tmp_path / "study.yaml"
        path.write_text(text + yaml.safe_dump({"optuna": {"sampler": "random", **options}}))
        plan = read_plan(path, [])
        return plan, Search(tmp_path / "out", plan)

    return make


def ended(sweep: Path, trial, accs: list[float], status: str = "completed") -> None:
    """What a run leaves of that the search reads. accs: of its evaluations; the last one is that of the chosen weights."""
    run = sweep / "trials" / trial.name
    run.mkdir(parents=True, exist_ok=True)
    (run / "run.json").write_text(json.dumps({"status": status}))
    rows = [{"kind": "eval", "step": 10 * i, "epoch": i, "acc": acc} for i, acc in enumerate([0.1, *accs])]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (run / "metrics.json").write_text(json.dumps({"validation": {"acc": accs[-1], "cka": 1 - accs[-1]}}))


def test_every_cell_draws_its_own_settings_within_the_bounds(search_of):
    plan, search = search_of(trials=5, seed=3)
    assert plan.trials == []
    asked = search.ask(100)
    assert len(asked) == 10
    assert search.ask(1) == []
    for trial in asked:
        lr, size = trial.settings["optim.lr"], trial.settings["train.batch_size"]
        assert 1e-5 <= lr <= 1e-3
        assert size in (32, 64, 96, 128)
        assert trial.settings["schedule.name"] in ("cosine", "constant")
        assert ("regularizer.strength" in trial.settings) == (trial.row == "rift")
        assert f"optim.lr={lr}" in trial.overrides
        assert trial.digest
    assert len({trial.settings["optim.lr"] for trial in asked}) == 10, "no two cells draw the same"


def test_a_search_goes_on_where_another_process_left_it(search_of, tmp_path):
    _, search = search_of(trials=3)
    first = search.ask(4)
    ended(tmp_path / "out", first[0], [0.5, 0.7])
    search.tell()
    _, again = search_of(trials=3)
    assert [trial.name for trial in sorted(again.known(), key=lambda t: t.name)] == sorted(trial.name for trial in first)
    rest = again.ask(100)
    assert len(rest) == 2, "those that are under way count"
    assert not {trial.settings["optim.lr"] for trial in rest} & {trial.settings["optim.lr"] for trial in first}
    for trial in [*first[1:], *rest]:
        ended(tmp_path / "out", trial, [0.6])
    again.tell()
    values = {name: study.trials for name, study in again._studies.items()}
    assert [[trial.value for trial in trials] for trials in values.values()] == [[0.7, 0.6, 0.6], [0.6, 0.6, 0.6]]


def test_a_setting_is_worth_its_mean_over_seeds_and_one_that_failed_is_waited_for(search_of, tmp_path):
    _, search = search_of(FILE + "seeds: 2\n", trials=1, objectives=["acc", "cka"])
    full, rift = search.ask(2)[:2], search.ask(2)
    assert rift == []
    trials = search.known()
    assert [trial.name.split("/")[1] for trial in trials] == ["s0", "s1", "s0", "s1"]
    for trial, acc in zip(trials[:2], (0.4, 0.6), strict=True):
        ended(tmp_path / "out", trial, [acc])
    ended(tmp_path / "out", trials[2], [0.9])
    ended(tmp_path / "out", trials[3], [0.9], status="failed")
    search.tell()
    (one,), (two,) = (study.trials for study in search._studies.values())
    assert one.values == pytest.approx([0.5, 0.5])
    assert two.state == optuna.trial.TrialState.RUNNING, "it may be tried again"
    ended(tmp_path / "out", trials[3], [0.7])
    search.tell()
    assert next(reversed(search._studies.values())).trials[0].values == pytest.approx([0.8, 0.2])
    assert full[0].group == trials[0].group


@pytest.mark.parametrize("pruner", ["median", "halving"])
def test_the_pruner_gives_up_what_lags_behind_the_others_with_all_its_seeds(search_of, tmp_path, pruner):
    text = "recipe: demo_full\nsearch: {optim.lr: {low: 1e-5, high: 1e-3}}\nseeds: 2\n"
    _, search = search_of(text, trials=8, pruner=pruner)
    for count in (1, 5):  # a pruner in rungs begins when one is complete
        for trial in search.ask(count):
            ended(tmp_path / "out", trial, [0.5, 0.9])
            assert not search.stops(trial)
        search.tell()
    bad, bad_too, fine, _ = search.ask(2)
    for trial, accs in ((bad, [0.2, 0.2]), (fine, [0.6, 0.95])):
        ended(tmp_path / "out", trial, accs, status="running")
    assert [search.stops(trial) for trial in (bad, bad, bad_too, fine)] == [True, True, True, False]
    (tmp_path / "out" / "status.json").write_text(json.dumps({bad.name: {"state": "pruned"}}))
    ended(tmp_path / "out", bad, [0.2], status="interrupted")
    _, again = search_of(text, trials=8, pruner=pruner)
    again.known()
    assert again.stops(bad_too), "also for a process that has not seen it lag"
    again.tell()
    states = [trial.state.name for trial in next(iter(again._studies.values())).trials]
    assert states == ["COMPLETE"] * 6 + ["PRUNED", "RUNNING"]


def test_a_point_that_is_no_recipe_is_said_and_left_out(search_of, capsys):
    lists = "regularizer.q: {choices: [learn, fixed]}, regularizer.rotation: {choices: [cayley, oft]}"
    text = f"recipe: demo_rift_paper\nsearch: {{{lists}}}\n"
    _, search = search_of(text, trials=12)
    asked = search.ask(12)
    tried = {(trial.settings["regularizer.q"], trial.settings["regularizer.rotation"]) for trial in asked}
    assert tried == {("learn", "cayley"), ("learn", "oft"), ("fixed", "cayley")}
    assert "left out: sweep study.yaml: trial q=fixed-rotation=oft/s0: " in capsys.readouterr().err
    assert search.ask(1) == []
    assert {trial.name for trial in search_of(text, trials=12)[1].known()} == {trial.name for trial in asked}


def test_what_a_kill_leaves_of_the_journal_is_mended(search_of, tmp_path):
    _, search = search_of(trials=3)
    first = search.ask(2)
    journal = tmp_path / "out" / JOURNAL
    journal.write_bytes(journal.read_bytes() + b'{"op_code": 4, "wor')
    Path(f"{journal}.lock").symlink_to("nowhere")
    _, again = search_of(trials=3)
    assert {trial.name for trial in again.known()} == {trial.name for trial in first}
    assert len(again.ask(100)) == 4


def test_a_recipe_that_is_edited_meanwhile_changes_nothing_and_another_space_goes_on(tmp_path, tiny_recipe, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny_recipe["train"]["epochs"] = 1
    Path("tiny.yaml").write_text(yaml.safe_dump(tiny_recipe))
    text = "recipe: tiny.yaml\nsearch: {optim.lr: {low: 1e-4, high: HIGH}}\noptuna: {trials: 1, sampler: random}\n"
    Path("study.yaml").write_text(text.replace("HIGH", "1e-3"))
    plan = read_plan(Path("study.yaml"), [])
    folder = SweepFolder(Path("out"))
    folder.begin(plan)
    search = Search(folder.path, plan)
    Path("tiny.yaml").write_text("model: {name: [}")
    asked = search.ask(1)
    folder.begin(plan.plus(asked))
    assert "local-dir" in folder.recipe_of(asked[0].recipe).read_text()
    Path("tiny.yaml").write_text(yaml.safe_dump(tiny_recipe))
    Path("study.yaml").write_text(text.replace("HIGH", "1e-2"))
    wider = read_plan(Path("study.yaml"), [])
    other = Search(folder.path, wider)
    assert other.known() == []
    folder.begin(wider.plus(other.ask(1)))
    assert len(read_sweep(folder.path)["trials"]) == 2, "the runs of the narrower space stay in the table"
    folder.close()


def test_the_pool_ends_what_is_given_up_and_does_not_begin_its_other_seeds(tmp_path, tiny_recipe, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    tiny_recipe["train"] |= {"epochs": 500, "save_every_steps": 3}
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(tiny_recipe))
    (tmp_path / "study.yaml").write_text("recipe: tiny.yaml\nseeds: 2\n")
    plan = read_plan(tmp_path / "study.yaml", [])
    folder = SweepFolder(tmp_path / "out")
    folder.begin(plan)
    saved = folder.path / "trials/all/s0/last"
    given_up = []

    def stops(trial) -> bool:
        if any(saved.glob("step-????????/manifest.json")):
            given_up.append(trial.name)
        return bool(given_up)

    told = []
    Pool(folder, [None], "cpu", lambda trial, found, left: told.append((trial.name, found.state)), stops).run(plan.trials, False)
    assert told == [("all/s0", "pruned"), ("all/s1", "pruned")]
    assert not (folder.path / "trials/all/s1").exists()
    assert not saved.exists()
    assert standing(folder.path, "all/s0").state == "pruned"
    Pool(folder, [None], "cpu", lambda *seen: told.append(seen)).run(plan.trials, False)
    assert len(told) == 2, "it is not tried again"
    folder.close()


def test_a_searched_sweep_ends_in_a_table_and_can_be_made_longer(rift, tiny_recipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny_recipe["train"]["epochs"] = 1
    Path("tiny.yaml").write_text(yaml.safe_dump(tiny_recipe))
    text = "recipe: tiny.yaml\nsearch: {optim.lr: {low: 1e-4, high: 1e-2, log: true}}\noptuna: {trials: N}\n"
    for trials in (1, 2):
        Path("study.yaml").write_text(text.replace("N", str(trials)))
        code, out, err = rift("sweep", "study.yaml", "--out", "out", "--device", "cpu", "--in-process", "--json")
        assert code == 0, err
        report = json.loads(out)
        assert report["trials"] == {"completed": trials}
        assert len(report["points"]) == trials
    assert "2 settings that Optuna chooses (tpe)" in err
    code, out, _ = rift("sweep", "study.yaml", "--dry-run", "--device", "cpu")
    assert code == 0
    assert out.splitlines()[0] == "all: 2 settings of optim.lr 0.0001 to 0.01, chosen by tpe"
    assert "all: 2 runs" in out


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("search: {optim.lr: {low: 1.0}}", "search.optim.lr: expected {low: .., high: ..}, or {choices: [..]}"),
        ("search: {optim.lr: {low: 1.0, high: 0.1}}", "search.optim.lr: low must be below high, got 1.0 and 0.1"),
        ("search: {optim.lr: {low: 0, high: 1, log: true}}", "search.optim.lr: with log: true low must be above 0"),
        ("search: {optim.lr: {choices: []}}", "search.optim.lr: an empty list: nothing to try"),
        ("search: {optim.lr: {choices: [1.0], log: true}}", "search.optim.lr: choices go alone"),
        ("search: {optim.lr: {low: 0.1, high: 1, log: true, step: 2}}", "search.optim.lr: with log: true there are no steps"),
        (
            "set: {optim.lr: 1.0}\nsearch: {optim.lr: {low: 0.1, high: 1.0}}",
            "search.optim.lr: stands in `set` of the same part too",
        ),
        ("grid: {optim.lr: [1.0]}\nsearch: {optim.lr: {low: 0.1, high: 1.0}}", "search.optim.lr: stands in a list of the same"),
        ("search: {optim.lr: {low: -1.0, high: 1.0}}", "optim.lr: expected a number > 0, got -1.0"),
        ("set: {data.val: null}\nsearch: {optim.lr: {low: 0.1, high: 1.0}}", "search: settings are chosen on validation images"),
        ("metrics: [nonsense]\nsearch: {optim.lr: {low: 0.1, high: 1.0}}", "metrics: 'nonsense': not measured by any trial"),
        ("search: {optim.lrr: {low: 0.1, high: 1.0}}", "optim.lrr: unknown key (did you mean 'lr'?)"),
        ("search: {optim.lr: {low: 0.1, high: 1.0}}\noptuna: {objectives: [f1x]}", "optuna.objectives 'f1x': not measured"),
        ("optuna: {objectives: [acc, cka], pruner: median}", "optuna.pruner: with several objectives nothing can be given up"),
        ("optuna: {sampler: best}", "optuna.sampler: "),
        ("optuna: {trial: 3}", "optuna.trial: unknown key (did you mean 'trials'?)\n  allowed here: trials, sampler, pruner,"),
        ("search: {optim.lr: {low: 0.1, hihg: 1.0}}", "search.optim.lr.hihg: unknown key (did you mean 'high'?)"),
        (
            "rows: {full: {sett: {}}}",
            "rows.full.sett: unknown key (did you mean 'set'?)\n  allowed here: recipe, label, set, grid,",
        ),
    ],
)
def test_what_is_wrong_with_a_search_is_said_before_anything_runs(tmp_path, text, message):
    (tmp_path / "study.yaml").write_text(f"recipe: demo_full\n{text}\n")
    with pytest.raises(UsageError) as caught:
        read_plan(tmp_path / "study.yaml", [])
    assert message in str(caught.value)


def test_without_optuna_the_extra_is_named(search_of, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(EnvironmentError, match=r"`search` needs Optuna: pip install 'riftcli\[search\]'"):
        search_of()
