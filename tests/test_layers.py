"""The architecture: an import only goes down, without a cycle; components do not know each other; heavy imports are lazy."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from riftcli.catalog import CATALOG

PACKAGE = Path(__file__).parent.parent / "riftcli"

# From the top. What stands on one line does not import its neighbours, except on the two lowest lines.
FLOORS = [
    ["__main__"],
    ["cli"],
    ["commands", "__init__"],
    ["sweeps"],
    ["api"],
    ["training", "report"],
    ["evaluation", "methods"],
    ["models"],
    ["data"],
    ["runs"],
    ["recipe"],
    ["functional", "catalog", "launch", "dist"],
    ["errors", "escaping", "files", "signals", "heartbeat", "console", "protocols", "version", "assets"],
]
FLOOR = {room: len(FLOORS) - i for i, rooms in enumerate(FLOORS) for room in rooms}
GROUND = {*FLOORS[-1], *FLOORS[-2]}
MODULES = sorted(PACKAGE.rglob("*.py"))


def name_of(path: Path) -> str:
    """riftcli.data.splits of .../riftcli/data/splits.py; a package is named by its folder."""
    dotted = ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
    return dotted.removesuffix(".__init__")


def room_of(module: str) -> str:
    return module.split(".")[1] if "." in module else "__init__"


NAMES = {name_of(path) for path in MODULES}


def imports(path: Path) -> list[tuple[int, str]]:
    """(line, module of ours) of every import in a file, wherever it stands."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                found.append((node.lineno, inner if inner in NAMES else node.module))
    return [(line, name) for line, name in found if name in NAMES]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_imports_only_go_down(path):
    own = room_of(name_of(path))
    assert own in FLOOR, f"{own} has no place in FLOORS"
    for line, name in imports(path):
        room = room_of(name)
        where = f"{path.relative_to(PACKAGE)}:{line} imports {name}"
        if room == own or (own in GROUND and FLOOR[room] == FLOOR[own]):
            continue
        assert FLOOR[room] < FLOOR[own], f"{where}, which is not below {own}"


def test_no_cycle():
    """Of modules: packages re-export, so a cycle through an __init__ counts as well."""
    arrows = {name_of(path): {name for _, name in imports(path)} - {name_of(path)} for path in MODULES}
    done: set[str] = set()

    def walk(name: str, trail: list[str]) -> None:
        assert name not in trail, " -> ".join([*trail[trail.index(name) :], name])
        if name not in done:
            for target in sorted(arrows[name]):
                walk(target, [*trail, name])
            done.add(name)

    for name in sorted(arrows):
        walk(name, [])


COMPONENTS = {target.partition(":")[0] for table in CATALOG.values() for target in table.values()}


@pytest.mark.parametrize("module", sorted(COMPONENTS))
def test_components_do_not_know_each_other(module):
    path = PACKAGE.parent / (module.replace(".", "/") + ".py")
    known = {name for _, name in imports(path)} & COMPONENTS - {module}
    assert not known, f"{module} imports {known}: only the catalog reaches components, by name"


TAKE_RECIPES = {"training", "evaluation", "report", "api", "sweeps", "commands", "recipe", "cli", "__main__", "__init__"}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_only_the_upper_floors_take_a_whole_recipe(path):
    if room_of(name_of(path)) in TAKE_RECIPES:
        return
    assert "Recipe" not in {n.id for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Name)}


LIGHT = ["commands", "recipe", "methods", "data/datasets", "evaluation/metrics"]


def test_light_modules_do_not_import_torch():
    """`rift --help` and `rift recipes` answer at once: what they may touch imports torch inside its functions."""
    names = [name_of(path) for path in MODULES if path.relative_to(PACKAGE).as_posix().startswith(tuple(f"{p}/" for p in LIGHT))]
    program = (
        "import sys, importlib\n"
        f"for name in {sorted(names)!r}:\n"
        "    importlib.import_module(name)\n"
        "    assert 'torch' not in sys.modules, name\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=PACKAGE.parent)
    assert done.returncode == 0, done.stderr[-800:]


def test_the_list_of_commands_does_not_read_recipes():
    program = (
        "import sys; from riftcli.cli import build_app; build_app(); assert not {'torch', 'pydantic', 'yaml'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=PACKAGE.parent)
    assert done.returncode == 0, done.stderr[-800:]


def test_no_function_is_long():
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                length = node.end_lineno - node.lineno + 1
                assert length <= 60, f"{path}:{node.lineno}: {node.name} has {length} lines"


def test_no_mocks_in_the_product():
    for path in MODULES:
        assert "unittest" not in path.read_text(), path


def test_no_unsafe_loader_anywhere():
    banned = {"torch.load", "pickle.load", "pickle.loads", "yaml.load", "yaml.unsafe_load", "eval", "exec"}
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                assert ast.unparse(node.func) not in banned, f"{path}:{node.lineno}"


def test_git_and_the_wheel_take_every_module():
    """hatchling leaves out what git ignores, so an unanchored `data/` there would drop a package without a word."""
    if not (PACKAGE.parent / ".git").exists():
        pytest.skip("not a git checkout")
    seen = subprocess.run(["git", "check-ignore", *map(str, MODULES)], cwd=PACKAGE.parent, capture_output=True, text=True)
    assert seen.stdout == "", f"ignored by .gitignore: {seen.stdout}"
