"""A sweep file becomes a list of trials, or every error in it at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from riftcli.errors import UsageError
from riftcli.sweeps.plan import read_plan


@pytest.fixture
def plan_of(tmp_path):
    def make(text: str, *overrides: str):
        path = tmp_path / "study.yaml"
        path.write_text(text)
        return read_plan(path, list(overrides))

    return make


def test_grids_multiply_and_pairs_go_side_by_side(plan_of):
    plan = plan_of(
        """
recipe: demo_full
grid: {optim.lr: [1e-3, 1e-4]}
pairs: {train.epochs: [1, 2], train.batch_size: [32, 64]}
seeds: [3, 5]
"""
    )
    assert len(plan.trials) == 2 * 2 * 2
    first = plan.trials[0]
    assert first.name == "lr=0.001-epochs=1-batch_size=32/s3"
    assert first.overrides == ["optim.lr=0.001", "train.epochs=1", "train.batch_size=32", "train.seed=3"]
    assert [trial.seed for trial in plan.trials] == [3] * 4 + [5] * 4, "the whole table once before the next seed"
    pairs = {(t.settings["train.epochs"], t.settings["train.batch_size"]) for t in plan.trials}
    assert pairs == {(1, 32), (2, 64)}


def test_rows_and_columns_fill_in_names_and_win_over_what_holds_for_all(plan_of):
    plan = plan_of(
        """
recipe: "{column}_{row}"
parameters: {place: data, size: 16}
set: {optim.lr: 1e-3, data.root: "{place}/{column}", train.batch_size: "{size}"}
rows:
  full: {label: FULL}
  full_rift: {label: RIFT*, grid: {regularizer.strength: [1.0, 0.1]}, set: {optim.lr: 1e-5}}
columns:
  isic: {label: ISIC2018}
  aptos:
""",
        "place=/mnt",
        "train.epochs=1",
    )
    assert plan.rows == {"full": "FULL", "full_rift": "RIFT*"}
    assert plan.columns == {"isic": "ISIC2018", "aptos": "aptos"}
    assert [trial.name for trial in plan.trials] == [
        "isic-full/s0",
        "isic-full_rift-strength=1.0/s0",
        "isic-full_rift-strength=0.1/s0",
        "aptos-full/s0",
        "aptos-full_rift-strength=1.0/s0",
        "aptos-full_rift-strength=0.1/s0",
    ]
    trial = plan.trials[1]
    assert trial.recipe == "isic_full_rift"
    assert trial.overrides == [
        "optim.lr=1e-05",
        'data.root="/mnt/isic"',
        "train.batch_size=16",
        "regularizer.strength=1.0",
        "train.seed=0",
        "train.epochs=1",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- a", "sweep study.yaml:1: a sweep is a mapping with the keys recipe, label, set, grid, pairs, search, also, "),
        ("recipe: demo_full\ngird: {}", "sweep study.yaml:2: gird: unknown key (did you mean 'grid'?)"),
        ("recipe: demo_full\nseeds: 0", "sweep study.yaml:2: seeds: expected a number of 1 or more, or different seeds, got 0"),
        ("recipe: demo_full\nseeds: [1, 1]", "sweep study.yaml:2: seeds: expected a number of 1 or more, or different seeds"),
        ("recipe: demo_full\ngrid:\n  optim.lr: []", "sweep study.yaml:3: grid.optim.lr: an empty list: nothing to try"),
        (
            "recipe: demo_full\npairs: {a: [1], b: [1, 2]}",
            "sweep study.yaml:2: pairs: lists that go side by side have one length, got [1, 2]",
        ),
        ("rows: {a: {}}", "sweep study.yaml:1: recipe: missing: name a recipe here, or in every row or column"),
        ("recipe: demo_full\nbaseline: x", "sweep study.yaml:2: baseline: no such row 'x'\n  allowed here: all"),
        (
            "recipe: demo_full\nmetrics: [acc]\npaper: {all: {all: [1.0, 2.0]}}",
            "sweep study.yaml:3: paper.all.all: expected 1 values, one for each of metrics",
        ),
        ("recipe: demo_ful", "sweep study.yaml: trial all/s0: recipe demo_ful: no such file and no shipped recipe of that name"),
        ("recipe: demo_{rwo}", "sweep study.yaml: 'demo_{rwo}': no such parameter 'rwo' (did you mean 'row'?)"),
        (
            "recipe: demo_full\ngrid: {optim.lrr: [1, 2]}",
            "sweep study.yaml: trial lrr=1/s0: --set optim.lrr=1: optim.lrr: unknown key (did you mean 'lr'?)",
        ),
        (
            "recipe: demo_full\ngrid: {optim.lr: [1.0, 1.0]}",
            "two trials have the folder lr=1.0/s0: a value stands twice in a list",
        ),
        (
            "recipe: demo_full\nset: {optim.lr: 1.0}\ngrid: {optim.lr: [1.0]}",
            "sweep study.yaml:3: grid.optim.lr: stands in `set` of the same part too: give one of them",
        ),
        ("recipe: demo_full\nselect: acuracy", "select 'acuracy': not measured (did you mean 'acc'?); it is one of"),
        (
            "recipe: demo_full\nset: {data.root: 'a{b'}",
            "'a{b': expected '}' before end of string; write {{ and }} for braces",
        ),
        ("rows: {a: {recipe: demo_full, also: [b]}}", "sweep study.yaml:1: rows.a.also: no such other row 'b'"),
        ("recipe: [", "sweep study.yaml:1: not valid YAML: "),
    ],
)
def test_errors_name_file_line_and_key(plan_of, text, message):
    with pytest.raises(UsageError) as caught:
        plan_of(text)
    assert message in str(caught.value)


def test_every_error_of_a_file_at_once(plan_of):
    with pytest.raises(UsageError) as caught:
        plan_of("recipe: demo_full\nseeds: 0\nbaseline: x\ngrid: {optim.lr: []}\n")
    assert [line.split(":")[1] for line in str(caught.value).splitlines() if line.startswith("sweep")] == ["2", "3", "4"]


def test_a_recipe_is_looked_for_beside_the_file(plan_of, tmp_path, tiny_recipe, write_recipe):
    write_recipe(tiny_recipe, "mine.yaml")
    plan = plan_of("recipe: mine.yaml\nset: {regularizer: {name: rsc}}")
    assert Path(plan.trials[0].recipe) == tmp_path / "mine.yaml"
    assert plan.trials[0].overrides[0] == 'regularizer={"name": "rsc"}'


def test_set_changes_parameters_in_their_own_kind_and_nothing_that_is_varied(plan_of):
    text = "recipe: demo_full\nparameters: {n: 2, place: here, w: null}\nset: {train.epochs: '{n}', model.weights: '{w}'}\n"
    plan = plan_of(text, "n=3", "w=null")
    assert plan.trials[0].overrides[:2] == ["train.epochs=3", "model.weights=null"]
    assert 'model.weights="/a/\u00e4.safetensors"' in plan_of(text, "w=/a/\u00e4.safetensors").trials[0].overrides
    varied = "recipe: demo_full\ngrid: {optim.lr: [1.0, 2.0]}\n"
    for override, what in (
        ("optim.lr=1", "the list of optim.lr"),
        ("optim={lr: 1}", "the list of optim.lr"),
        ("train.seed=3", "seeds"),
    ):
        with pytest.raises(UsageError) as caught:
            plan_of(varied, override)
        assert str(caught.value) == f"--set {override}: the sweep varies it; change {what} in study.yaml"


def test_a_column_that_no_trial_measures_is_refused(plan_of):
    plan_of("recipe: demo_full\nmetrics: [acc, probe demo_fashion, cka retention, steered cka]")
    for name, close in (("cka_debised", "cka_debiased"), ("prob clothes", ""), ("auroc", "")):
        with pytest.raises(UsageError) as caught:
            plan_of(f"recipe: demo_full\nmetrics: [acc, {name}]")
        assert f"sweep study.yaml: metrics: '{name}': not measured by any trial" in str(caught.value)
        assert close in str(caught.value)


def test_long_names_stay_apart():
    from riftcli.sweeps.trial import group_name

    names = [group_name(["row"], {"k": "a" * 200 + end}) for end in "xy"]
    assert names[0] != names[1]
    assert all(len(name) <= 150 for name in names)


def test_a_name_that_is_neither_parameter_nor_key_is_told_what_there_is(plan_of):
    with pytest.raises(UsageError) as caught:
        plan_of("recipe: demo_full\nparameters: {data_root: data}\n", "data_rot=/x")
    assert str(caught.value) == (
        "--set data_rot=/x: no parameter of study.yaml (it has: data_root) and no recipe key (did you mean 'data_root'?)"
    )


def test_what_is_more_specific_fixes_or_varies_a_key(plan_of):
    text = """
recipe: demo_full
set: {optim.weight_decay: 0.1}
grid: {optim.lr: [1.0, 2.0]}
pairs: {train.epochs: [1, 2], train.batch_size: [32, 64]}
columns:
  a: {grid: {optim.weight_decay: [0.0, 0.5]}}
rows:
  fixed: {set: {optim.lr: 3.0, train.epochs: 9}}
"""
    plan = plan_of(text)
    assert len(plan.trials) == 4, "two decays and two batch sizes"
    values = [dict(item.split("=") for item in trial.overrides) for trial in plan.trials]
    assert {v["optim.lr"] for v in values} == {"3.0"}
    assert {v["train.epochs"] for v in values} == {"9"}
    assert {(v["optim.weight_decay"], v["train.batch_size"]) for v in values} == {
        (decay, size) for decay in ("0.0", "0.5") for size in ("32", "64")
    }
