"""What a user of two-tower models does wrong gets one line, before anything is written."""

from __future__ import annotations

import pytest
import yaml
from vision_language import two_tower_recipe, with_reference, write_captions, write_clip


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    return write_clip(tmp_path_factory.mktemp("clip") / "tiny-errors")


@pytest.fixture(scope="module")
def caption_folder(tmp_path_factory):
    return write_captions(tmp_path_factory.mktemp("captions") / "pairs")


def changed(recipe: dict, **sections) -> dict:
    for key, value in sections.items():
        part, _, field = key.partition("__")
        if field:
            recipe[part] = {**recipe.get(part, {}), field: value}
        else:
            recipe[part] = value
    return recipe


WRONG = [
    ({"model__name": "vit_tiny_patch16_224"}, 2, "objective.name: reads texts, and vit_tiny_patch16_224 has no text tower"),
    ({"model__feature": "cls"}, 2, "model.feature: texts are compared with the model's own embedding; use pooled"),
    ({"prompts": {"templates": ["a photo"]}}, 2, "'a photo' has no place for the class name"),
    ({"prompts": {"templates": "openai81"}}, 2, "unknown set 'openai81' (did you mean 'openai80'?)"),
    ({"prompts": {"class_names": ["zero", "one"]}}, 3, "prompts.class_names: 2 names for 10 classes"),
    ({"prompts": {"class_names": "nosuch"}}, 2, "class_names 'nosuch': neither a shipped set"),
    ({"adapter": {"name": "linear"}}, 2, "adapter.name: trains the head alone"),
    ({"adapter": {"name": "full", "towers": "none"}}, 2, "adapter.towers: expected"),
    ({"regularizer": {"name": "dive"}}, 2, "regularizer.on: 'reference' needs the images: name them below `reference:`"),
    (
        {"regularizer": {"name": "dive", "average": False, "pairwise": False}},
        2,
        "with pairwise false too there is nothing to add",
    ),
    (
        {"objective": {"name": "cross_entropy"}, "regularizer": {"name": "dive", "on": "task"}},
        2,
        "only objective.name contrastive",
    ),
    ({"eval__metrics": ["acc", "worst_group"]}, 2, "eval.group: worst_group needs it"),
    ({"eval__shifted": [{"format": "demo_fashion"}]}, 3, "classes are not of the task (e.g. 'T-shirt/top')"),
    ({"eval__captions": [{"format": "digits"}]}, 3, "images without captions; use format captions"),
    ({"eval__zero_shot": {"format": "digits"}}, 2, "eval.zero_shot: expected a list of data sources"),
    ({"eval__zero_shot": [{"format": "digits", "metric": "accc"}]}, 2, "unknown metric 'accc' (text) (did you mean 'acc'?)"),
    ({"data": {"format": "captions", "root": "x", "labels": {"train": "t.csv", "test": "t.csv"}}}, 3, "x: no such data folder"),
]


@pytest.mark.parametrize(("changes", "code", "part"), WRONG, ids=lambda value: str(value)[:50] if isinstance(value, dict) else "")
def test_wrong_recipes(rift, write_recipe, clip_folder, caption_folder, tmp_path, changes, code, part):
    recipe = changed(two_tower_recipe(clip_folder, caption_folder), **changes)
    got, _, err = rift("finetune", "--recipe", write_recipe(recipe), "--out", "run", "--device", "cpu")
    assert (got, part in err) == (code, True), err
    assert all(line.startswith(("error: ", "  ")) for line in err.splitlines() if not line.startswith("data: ")), err
    assert not (tmp_path / "run").exists()


def test_a_reference_set_without_captions(rift, write_recipe, clip_folder, caption_folder):
    recipe = with_reference(two_tower_recipe(clip_folder, caption_folder), caption_folder, name="dive")
    recipe["eval"].pop("zero_shot")
    recipe["reference"] = {"format": "demo_fashion", "split": {"from": "test", "limit": 20}, "batch_size": 8}
    code, _, err = rift("finetune", "--recipe", write_recipe(recipe), "--out", "run")
    assert code == 3 and "images without captions, and the regularizer reads texts; use format captions" in err


def test_what_is_kept_is_not_measured_on_what_was_held(rift, write_recipe, clip_folder, caption_folder):
    recipe = with_reference(two_tower_recipe(clip_folder, caption_folder), caption_folder, name="dive")
    recipe["reference"] |= {"split": "test"}
    code, _, err = rift("finetune", "--recipe", write_recipe(recipe), "--out", "run")
    assert code == 3 and "share 9 samples" in err, err


def test_long_captions_are_told_once(rift, write_recipe, clip_folder, caption_folder, tmp_path):
    place = write_captions(tmp_path / "long")
    lines = (place / "reference.csv").read_text().splitlines()
    lines[1] = lines[1] + " and so on" * 12
    (place / "reference.csv").write_text("\n".join(lines) + "\n")
    recipe = with_reference(two_tower_recipe(clip_folder, caption_folder), place, name="replay")
    recipe["train"]["epochs"] = 1
    code, _, err = rift("finetune", "--recipe", write_recipe(recipe), "--out", "run")
    assert code == 0 and err.count("1 of 36 captions of the reference set are longer than the 16 tokens") == 1, err


def test_models_without_a_text_tower_are_refused_by_name(rift, tiny_weights, tmp_path):
    recipe = tmp_path / "d.yaml"
    recipe.write_text(yaml.safe_dump({"model": {"name": "none"}, "data": {"format": "digits"}}))
    code, _, err = rift("zeroshot", "--model", f"local-dir:{tiny_weights}", "--data", recipe)
    assert code == 2 and "has no text tower, so nobody can tell it a class by its name" in err
    code, _, err = rift("zeroshot", "--model", f"local-dir:{tiny_weights}", "--data", recipe, "--templates", "a photo")
    assert code == 2 and "error: --templates: unknown set 'a photo'" in err


def test_wise_of_an_image_model_has_no_zero_shot_head(rift, trained):
    run = next(path for path in sorted(trained.iterdir()) if (path / "recipe.resolved.yaml").is_file())
    code, _, err = rift("wise", run, "--head", "zero_shot")
    assert code == 2 and "has no text tower to make a head of" in err


def test_without_the_extra_a_run_says_what_to_install(rift, write_recipe, clip_folder, caption_folder, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "open_clip", None)
    recipe = write_recipe(two_tower_recipe(clip_folder, caption_folder))
    code, _, err = rift("finetune", "--recipe", recipe, "--out", "run")
    assert code == 5 and err.count("\n") < 6 and "pip install 'riftcli[clip]'" in err, err


def test_data_check_reads_caption_sets(rift, caption_folder, tmp_path):
    place = write_captions(tmp_path / "pairs")
    lines = (place / "test.csv").read_text().splitlines()
    lines[2] = lines[2].partition(",")[0] + "," + lines[1].partition(",")[2]
    lines[3] += " long" * 60
    (place / "test.csv").write_text("\n".join(lines) + "\n")
    recipe = tmp_path / "pairs.yaml"
    data = {
        "format": "captions",
        "root": str(place),
        "images": "images",
        "labels": {"reference": "reference.csv", "test": "test.csv"},
    }
    recipe.write_text(yaml.safe_dump({"model": {"name": "none"}, "data": {**data, "train": "reference", "test": "test"}}))
    code, out, err = rift("data", "check", "--recipe", recipe)
    said = out + err
    assert code == 0 and "1 captions stand for several images" in said and "1 captions have more than 50 words" in said, said
