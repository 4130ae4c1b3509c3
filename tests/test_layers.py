"""The layers of the architecture: an import only goes down."""

from __future__ import annotations

import ast
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "riftcli"

LAYERS = {
    5: "cli __main__ commands/*",
    4: "train build inputs session evaluate evaluate_run dry_run launch repeats data_check "
    "kept_model merge_run wise_run report/* subjects encoding retention image_files knn_run similarity_run sharpness_run "
    "recipe/naming centrality_run correlate_run predict_run attention_run",
    3: "recipe recipe/__init__ recipe/reader recipe/sections recipe/check recipe/messages recipe/family recipe/schema catalog",
    2: "objectives/* adapters/* regularizers/* datasets/* metrics/*",
    1: "model head saved_model features optim loader transforms checkpoint run console splits holdout step "
    "surgery layers/* peft_format paired_penalty images parallel decode label_table sample_list audit "
    "classes feature_cache layer_features functional/sharpness attention",
    0: "functional/* targets dist errors protocols recipe/strict_yaml version assets/* __init__",
}
SHARED = {"riftcli/objectives/class_weights.py"}  # one table of weights for both objectives


def layer(module: str) -> int:
    name = module.removeprefix("riftcli.").replace(".", "/") if module != "riftcli" else "__init__"
    folder = name.split("/")[0]
    for number, line in LAYERS.items():
        names = line.split()
        if name in names or f"{folder}/*" in names:
            return number
    raise AssertionError(f"{module} has no layer: add it to LAYERS, and to the picture in your head")


def imports(path: Path) -> list[tuple[int, str]]:
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            whole = node.module == "riftcli"
            found += [(node.lineno, f"riftcli.{a.name}" if whole else node.module) for a in node.names]
    return [(line, name) for line, name in found if name.split(".")[0] == "riftcli" and not name.endswith("__version__")]


MODULES = sorted(ROOT.rglob("*.py"))


@pytest.mark.parametrize("path", MODULES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_imports_only_go_down(path):
    module = "riftcli." + path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".")
    own = layer("riftcli" if path.name == "__init__.py" and path.parent == ROOT else module)
    if path == ROOT / "__init__.py":
        return  # load() is the door to the house and opens lazily
    for line, name in imports(path):
        target = ROOT.parent / (name.replace(".", "/") + ".py")
        if target.relative_to(ROOT.parent).as_posix() in SHARED:
            continue
        assert layer(name) <= own, f"{path.name}:{line} imports {name}, which is above it"
        if own == 2:
            assert layer(name) < 2, f"{path.name}:{line}: components do not know each other"


def test_layer_1_never_sees_the_recipe():
    for path in MODULES:
        if layer("riftcli." + path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".")) <= 1:
            assert "Recipe" not in {n.id for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Name)}, path


def test_no_unsafe_loader_anywhere():
    banned = {"torch.load", "pickle.load", "pickle.loads", "yaml.load", "yaml.unsafe_load", "eval", "exec"}
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                assert ast.unparse(node.func) not in banned, f"{path}:{node.lineno}"


def test_git_and_the_wheel_take_every_module():
    """hatchling leaves out what git ignores, so an unanchored `data/` there would drop a package without a word."""
    if not (ROOT.parent / ".git").exists():
        pytest.skip("not a git checkout")
    seen = subprocess.run(["git", "check-ignore", *map(str, MODULES)], cwd=ROOT.parent, capture_output=True, text=True)
    assert seen.stdout == "", f"ignored by .gitignore: {seen.stdout}"
