"""YAML traps, every error at once, whole messages."""

from __future__ import annotations

import copy
import json

import pytest
import yaml
from jsonschema import Draft202012Validator

from riftcli import recipe
from riftcli.errors import UsageError
from riftcli.recipe import strict_yaml
from riftcli.recipe.schema import recipe_schema

GOOD = """\
model: {name: vit_tiny_patch16_224}
data: {format: digits}
"""


def message(text: str, *overrides: str) -> str:
    with pytest.raises(UsageError) as caught:
        recipe.parse(text, "r.yaml", list(overrides))
    return str(caught.value)


# ---- YAML


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("1E3", 1e3),
        (".5", 0.5),
        ("-3", -3),
        ("no", "no"),
        ("on", "on"),
        ("true", True),
        ("null", None),
        ("~", None),
        ("1_000", "1_000"),
        ("1:30", "1:30"),
        ("2026-11-21", "2026-11-21"),
        ("0x10", "0x10"),
        ("'1'", "1"),
        ("[1, a, 2.5]", [1, "a", 2.5]),
        (".inf", float("inf")),
    ],
)
def test_scalars_are_yaml_1_2(text, value):
    parsed = strict_yaml.parse(text).data
    assert parsed == value
    assert type(parsed) is type(value)


@pytest.mark.parametrize(
    ("text", "line", "what"),
    [
        ("a: 1\nb: 2\na: 3", 3, "a: given twice; keep one of them"),
        ("a:\n  b: 1\n  b: 2", 3, "a.b: given twice; keep one of them"),
        ("a: 012", 1, "a: 012 has a leading zero, which YAML 1.1 reads as octal; write it without"),
        ("a: &x 1\nb: *x", 1, "anchors and aliases are not allowed in a recipe; write the value out"),
        (
            "a: 1\nb: !!python/object/apply:os.system [echo]",
            2,
            "tag 'tag:yaml.org,2002:python/object/apply:os.system' is not allowed in a recipe; it holds plain data only",
        ),
        ("[" * 40, 1, "nested deeper than 12 levels"),
        ("a: 1\n b: 2", 2, "not valid YAML: mapping values are not allowed here"),
        ("? [a]\n: 1", 1, "keys must be plain words"),
        ("a: " + "x" * 300_000, 1, "larger than 256 kB: this is not a recipe"),
    ],
)
def test_yaml_that_is_refused(text, line, what):
    with pytest.raises(strict_yaml.YamlError) as caught:
        strict_yaml.parse(text)
    assert (caught.value.line, caught.value.what) == (line, what)


# ---- the recipe


def test_defaults():
    checked = recipe.parse(GOOD, "r.yaml", [])
    assert checked.optim.lr == 1e-4
    assert checked.train.head_init == "linear_probe"
    assert checked.component_name("regularizer") == "none"
    assert checked.sources["model.name"] == "recipe"
    assert checked.sources["optim.lr"] == "default"


def test_all_errors_at_once_with_their_lines():
    text = """\
model: {name: vit_tiny_patch16_224, image_size: true}
data: {format: digits}
regularizer:
  name: rift
  strenght: 2
optim:
  lrr: 1
  lr: fast
train: {epochs: 0}
eval: {metrics: [acc, ckaa], best: f1}
zzz: 1
"""
    assert message(text, "optim.weight_decay=-1") == "\n".join(
        [
            "recipe r.yaml:1: model.image_size: expected a whole number, got true (true/false)",
            "recipe r.yaml:5: regularizer.strenght: unknown key (did you mean 'strength'?)",
            "  allowed here: strength, compare, normalize, estimator, q, q_lr_scale, rotation, solver, block_size, factors, "
            "soft_threshold, alpha, mean, ema_decay, on",
            "recipe r.yaml:7: optim.lrr: unknown key (did you mean 'lr'?)",
            "  allowed here: name, lr, weight_decay, layer_decay, betas, momentum, selective_projection, clip_grad",
            "recipe r.yaml:8: optim.lr: expected a number, got 'fast' (text)",
            "recipe r.yaml:9: train.epochs: expected a number > 0, got 0",
            "recipe r.yaml:10: eval.metrics.1: unknown metric 'ckaa' (did you mean 'cka'?)",
            "  allowed here: acc, top5, bacc, f1, worst_group, auroc, map, kappa, ece, ece_adaptive, brier, nll, knn, cka, "
            "cka_debiased, cka_rbf, "
            "rsa, rsa_centred, rsa_spearman, rsa_euclid, procrustes, cca, svcca, mutual_knn, "
            "centre_distance, overlap, effective_rank",
            "recipe r.yaml:10: eval.best: 'f1' must be one of eval.metrics",
            "  allowed here: acc, ckaa",
            "recipe r.yaml:11: zzz: unknown key",
            "  allowed here: model, data, prompts, objective, adapter, regularizer, input, augment, optim, schedule, train, "
            "eval, retention, reference, launch",
            "--set optim.weight_decay=-1: optim.weight_decay: expected a number >= 0, got -1",
        ]
    )


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("train: {epochs: 1.5}", "recipe r.yaml:3: train.epochs: expected a whole number, got 1.5"),
        ("train: {epochs: true}", "recipe r.yaml:3: train.epochs: expected a whole number, got true (true/false)"),
        ("optim: {lr: .nan}", "recipe r.yaml:3: optim.lr: expected a finite number, got nan"),
        ("optim: {lr: '1e-4'}", "recipe r.yaml:3: optim.lr: expected a number, got '1e-4' (text)"),
        ("optim: 3", "recipe r.yaml:3: optim: expected keys below it, got 3\n  allowed here: name, lr, weight_decay, "
         "layer_decay, betas, momentum, selective_projection, clip_grad"),
        ("schedule: {name: cosin}", "recipe r.yaml:3: schedule.name: expected 'cosine', 'linear' or 'constant', got "
         "'cosin' (text)"),
        ("regularizer: {name: rif}", "recipe r.yaml:3: regularizer.name: unknown regularizer 'rif' (text) (did you mean "
         "'rift'?)\n  allowed here: none, rift, rsc, l2sp, feature_distill, cosine_gram, "
         "difference_vector, ldifs, replay, snd, dive, cosine, trajectory_distill"),
        ("regularizer: {name: rift, strength: -1}", "recipe r.yaml:3: regularizer.strength: must be 0 or more, got -1"),
        ("regularizer: rift", "recipe r.yaml:3: regularizer: expected keys below it, e.g. {name: none}, got 'rift' (text)"),
        ("objective: {class_weights: heavy}", "recipe r.yaml:3: objective.class_weights: expected 'none', "
         "'balanced' or 'effective' or a list, got 'heavy' (text)"),
        ("eval: {patience: 2}", "recipe r.yaml:3: eval.patience: needs a validation split: set data.val"),
        ("regularizer: {name: rsc, strength: 2, hcs_lambda: 0.5}", "recipe r.yaml:3: regularizer.hcs_lambda: give either "
         "strength or hcs_lambda, got 0.5"),
        ("train: {seed: 99999999999999999999}", "recipe r.yaml:3: train.seed: a number of 20 digits is too large"),
        ("optim: {betas: [0.9, 1.5]}", "recipe r.yaml:3: optim.betas.1: expected a number < 1, got 1.5"),
        ("objective: {name: bce, class_weights: heavy}", "recipe r.yaml:3: objective.class_weights: expected 'none', "
         "'balanced' or 'effective' or a list, got 'heavy' (text)"),
        ("train: {batch_size: 128, micro_batch_size: 48}", "recipe r.yaml:3: train.micro_batch_size: 48 does not divide "
         "train.batch_size 128"),
        ("retention: {format: digits}", "recipe r.yaml:3: retention: expected a list of data sources, got a mapping"),
    ],
)  # fmt: skip
def test_one_wrong_line(line, expected):
    assert message(GOOD + line + "\n") == expected


def test_a_regularizer_needs_something_to_keep():
    text = GOOD.replace("224}", "224, pretrained: false}") + "regularizer: {name: rift}\n"
    assert message(text) == (
        "recipe r.yaml:3: regularizer.name: 'rift' keeps a pretrained representation and model.pretrained is false "
        "(from scratch); use regularizer.name none"
    )


def test_missing_parts():
    assert message("model: {}\n") == (
        "recipe r.yaml:1: model.name: missing; it has no default\n"
        "recipe r.yaml:1: data: missing: a recipe needs a data source\n"
        "  allowed here: digits, demo_fashion, torchvision, image_folder, csv_table, isic2018, aptos2019, medfm, "
        "cub200, imagenet, imagenet_shift, iwildcam, fmow, captions"
    )
    assert message("- 1\n").startswith("recipe r.yaml:1: a recipe is a mapping with the keys model, data, ")


def test_validation_fraction_comes_from_training():
    assert message(GOOD.replace("digits", "digits, val: {fraction: 0.1, from: test}")) == (
        "recipe r.yaml:2: data.val.from: must be the training split 'train', got 'test'"
    )


def test_set_wins_and_another_component_forgets_the_old_keys():
    text = GOOD + "regularizer: {name: rift, strength: 0.3, normalize: raw}\noptim: {lr: 1}\n"
    checked = recipe.parse(text, "r.yaml", ["optim.lr=2e-5", "regularizer.name=rsc"])
    assert checked.optim.lr == 2e-5
    assert checked.sources["optim.lr"] == "--set"
    fields = {"strength": 1.0, "hcs_lambda": None, "estimator": "biased", "on": "task"}
    assert checked.resolved["regularizer"] == {"name": "rsc", **fields}
    assert recipe.parse(text, "r.yaml", ["regularizer.name=none"]).component_name("regularizer") == "none"


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("optim.lr", "--set optim.lr: expected KEY=VALUE, e.g. --set optim.lr=1e-5"),
        ("optim.lr=[", "--set optim.lr=[: not valid YAML: "),
        ("model.name.deep=1", "--set model.name.deep=1: model.name: expected a text, got a mapping"),
        ("eval.metrics.0=ece", "--set eval.metrics.0=ece: eval.metrics: expected a list, got a mapping"),
        ("data.train=null", "--set data.train=null: data.train: expected the name of a split or keys below it, got null"),
        ("data.val={limit: 3, fraction: 0.1}", "--set data.val={limit: 3, fraction: 0.1}: data.val.limit: give only one of"),
        ("regularizer.name=[1]", "--set regularizer.name=[1]: regularizer.name: unknown regularizer a list"),
        ("optim.lr=x", "--set optim.lr=x: optim.lr: expected a number, got 'x' (text)"),
        ("nope=1", "--set nope=1: nope: unknown key"),
    ],
)
def test_wrong_overrides(override, expected):
    assert message(GOOD, override).startswith(expected)


def test_a_limit_keeps_the_split_it_limits():
    checked = recipe.parse(GOOD.replace("digits", "digits, val: test"), "r.yaml", ["data.test.limit=5", "data.val.limit=3"])
    assert (checked.data.test.name, checked.data.test.limit) == ("test", 5)
    assert (checked.data.val.name, checked.data.val.limit) == ("test", 3)
    held = recipe.parse(GOOD, "r.yaml", ["data.val.fraction=0.1"])
    assert (held.data.val.name, held.data.train.name) == ("train", "train")


def test_sources_of_a_whole_section_set_at_once():
    checked = recipe.parse(GOOD, "r.yaml", ["optim={lr: 1e-3}"])
    assert (checked.sources["optim.lr"], checked.sources["optim.name"]) == ("--set", "default")


@pytest.mark.parametrize("name", ["08", "1e-4", "no", "null", "true", "1_0", "a: b", "#x", "", "é", "x\ny", "[1", "012"])
def test_any_text_survives_dump_and_parse(name):
    text = recipe.dump({"classes": [name], "again": [name]})
    assert strict_yaml.parse(text).data == {"classes": [name], "again": [name]}


def test_a_share_is_held_out_of_the_training_split_whatever_its_name():
    text = GOOD.replace("digits", "torchvision, name: OxfordIIITPet, train: trainval, val: {fraction: 0.1}")
    assert recipe.parse(text, "r.yaml", []).data.val.name == "trainval"


def test_find_suggests():
    with pytest.raises(UsageError) as caught:
        recipe.find("demo_rft.yaml")
    assert str(caught.value) == (
        "recipe demo_rft.yaml: no such file and no shipped recipe of that name (did you mean 'demo_rift'?); "
        "`rift recipes ls` lists the shipped ones"
    )
    assert recipe.find("demo_rift") == recipe.find("demo_rift.yaml")


@pytest.mark.parametrize("name", recipe.shipped_names())
def test_shipped_recipes_are_valid_and_survive_a_round_trip(name):
    checked = recipe.load(name)
    again = recipe.parse(recipe.dump(checked.resolved), f"{name}.yaml", [])
    assert again.resolved == checked.resolved
    assert checked.text.startswith("# ")
    assert f"--recipe {name}.yaml" in checked.text, "the header gives the exact command"


@pytest.fixture(scope="module")
def validator() -> Draft202012Validator:
    return Draft202012Validator(recipe_schema())


@pytest.mark.parametrize("name", recipe.shipped_names())
def test_the_schema_accepts_what_the_parser_accepts(name, validator):
    data = recipe.load(name).resolved
    validator.validate(json.loads(json.dumps(data)))
    broken = copy.deepcopy(data)
    broken["optim"]["lrr"] = 1
    assert list(validator.iter_errors(broken))


def test_schema_is_json():
    assert json.loads(json.dumps(recipe_schema()))["required"] == ["model", "data"]
    assert yaml.safe_load(GOOD)["data"] == {"format": "digits"}


def test_families_make_whole_recipes():
    text, filename = recipe.source("isic_lora_rift")
    assert filename == "isic_lora_rift.yaml"
    lines = text.splitlines()
    assert lines[0] == "# ISIC 2018 task 3 (dermoscopy, 7 classes): LoRA of rank 4 on queries and values, with RIFT."
    assert lines[2] == "#   rift finetune --recipe isic_lora_rift.yaml --set data.root=PATH"
    plain = " ".join(recipe.source("isic_lora")[0].splitlines()).replace(" # ", " ")
    assert "Stands for row LoRA, column ISIC2018 of Table 1 of the RIFT paper." in plain
    assert max(map(len, lines)) <= 130
    made, base = recipe.load("isic_lora_rift"), recipe.load("isic_full")
    differ = {key for key in base.resolved if made.resolved[key] != base.resolved[key]}
    assert differ == {"adapter", "regularizer", "optim"}
    assert made.name == "isic_lora_rift"
    assert made.resolved["adapter"]["rank"] == 4 and made.component_name("regularizer") == "rift"


def test_a_family_scales_the_rate_of_its_base():
    assert recipe.load("medfm_chest_lp_ft").optim.lr == pytest.approx(0.1 * recipe.load("medfm_chest_full").optim.lr)
    assert recipe.load("demo_lp_ft").optim.lr == pytest.approx(1e-4)
    assert (recipe.load("demo_full").optim.weight_decay, recipe.load("demo_l2sp").optim.weight_decay) == (0.05, 0)


def test_every_set_has_every_method():
    names = recipe.shipped_names()
    for part in ("isic", "aptos", "medfm_chest", "medfm_colon", "medfm_endo", "fashion_dinov2", "demo"):
        for method in ("lora", "adaptformer", "vpt"):
            assert f"{part}_{method}" in names and f"{part}_{method}_rift" in names
    assert len(set(names)) == len(names)
    assert "claims no number" and all("Measured with" not in recipe.source(n)[0] for n in names if n.startswith("isic"))
    assert "Measured with" not in recipe.source("fashion_dinov2_lora")[0], "what was measured is the base"


def test_a_member_is_shown_copied_and_suggested(rift, tmp_path):
    assert rift("recipes", "show", "demo_vpt_rift")[1] == recipe.source("demo_vpt_rift")[0]
    assert rift("recipes", "cp", "demo_vpt_rift")[0] == 0
    assert rift("recipes", "validate", "demo_vpt_rift.yaml")[0] == 0
    code, out, _ = rift("recipes", "ls")
    assert code == 0 and "\nand SET_METHOD for every\n  SET     aptos, demo" in out and "adaptformer_rift" in out
    assert "did you mean 'isic_lora_rift'?" in rift("recipes", "show", "isic_lora_rft")[2]
