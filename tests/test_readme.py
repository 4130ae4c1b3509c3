"""Every command of the README and of docs/ runs as written, page after page in one folder, as a reader would go."""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from vision_language import write_captions, write_clip

from riftcli import cli
from riftcli.data.datasets.digits import Digits
from riftcli.data.holdout import limit
from riftcli.data.split import Split

ROOT = Path(__file__).parent.parent
PAGES = ["README.md", "docs/guide.md", "docs/retrieval.md", "docs/methods.md", "docs/data.md"]
TWO_TOWERS = "docs/vision_language.md"
OTHERS = [TWO_TOWERS, "docs/results.md", "docs/paper_map.md", "docs/reliability.md", "CONTRIBUTING.md"]
TEXTS = {page: (ROOT / page).read_text() for page in [*PAGES, *OTHERS]}
BLOCKS = [block for page in PAGES for block in re.findall(r"```bash\n(.*?)```", TEXTS[page], flags=re.DOTALL)]
README = TEXTS["README.md"]
DEMO, TESTS, *TOUR = BLOCKS


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("readme")


def shell(command: str, place: Path) -> subprocess.CompletedProcess:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        ["bash", "-euo", "pipefail", "-c", command],
        cwd=place,
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        timeout=400,
    )


def test_the_demo_command(place):
    """Environment and installation are what .ci/run does with the test command; the demo itself is run here."""
    install = "python3 -m venv .venv && .venv/bin/pip install -e "
    assert DEMO.startswith(f"{install}. && ")
    assert f'{install}".[dev]" && .venv/bin/python -m pytest\n' == TESTS
    done = shell(DEMO.removeprefix(f"{install}. && ").replace(".venv/bin/", ""), place)
    assert done.returncode == 0, done.stderr
    last = done.stderr.splitlines()[-8:]
    assert any(line.startswith("  accuracy: ") for line in last), done.stderr
    assert any(line.startswith("  CKA to the pretrained model: ") for line in last)
    assert any(line.startswith("  cost: ") for line in last)
    assert any(line.startswith("  kept on demo_fashion: kNN ") for line in last)


@pytest.fixture
def fewer_digits(monkeypatch):
    """A quarter of them, for commands that run in this process."""
    whole = Digits.load

    def load(self: Digits, split: str) -> Split:
        found = whole(self, split)
        return limit(found, len(found) // 4, 0)

    monkeypatch.setattr(Digits, "load", load)


def follow(block: str, place: Path, capfd) -> None:
    """Every command of a block, in the folder that is the working directory. `rift` itself in this process: to start one takes
    longer than most of what it is started for. The demo and the installed wheel are processes of their own.
    """
    for command in block.strip().splitlines():
        if "--nproc-per-node 2" in command and " finetune " in command:
            command += " --set train.epochs=2"  # of ten: these processes have all of the digits
        program, *arguments = shlex.split(command, comments=True)
        if program == "rift" and not set(command) & set("|&;<>$*`"):
            code, said = cli.run(arguments), capfd.readouterr().err
        else:
            done = shell(command, place)
            code, said = done.returncode, done.stderr
        assert code == 0, f"{command}\n{said}"


@pytest.mark.parametrize("block", TOUR, ids=lambda block: block.splitlines()[0][:60])
def test_tour(block, place, monkeypatch, capfd, fewer_digits):
    monkeypatch.chdir(place)
    follow(block, place, capfd)


def test_the_page_on_vision_language_models(tmp_path, monkeypatch, capfd):
    """With the folders that it speaks of: a tiny model, and captioned pictures."""
    write_clip(tmp_path / "clip")
    write_captions(tmp_path / "pairs")
    (recipe,) = re.findall(r"```yaml\n(.*?)```", TEXTS[TWO_TOWERS], flags=re.DOTALL)
    (tmp_path / "flyp.yaml").write_text(recipe)
    (block,) = re.findall(r"```bash\n(.*?)```", TEXTS[TWO_TOWERS], flags=re.DOTALL)
    monkeypatch.chdir(tmp_path)
    follow(block, tmp_path, capfd)


def test_the_map_of_the_page_on_retrieval_is_read_by_python(place):
    (snippet,) = re.findall(r"```python\n(.*?)```", TEXTS["docs/retrieval.md"], flags=re.DOTALL)
    features = "import torch\nwidth = riftcli.load('runs/full').num_features\nnew_features = torch.randn(3, width)"
    lines = snippet.replace("import riftcli\n", f"import riftcli\n{features}\n")
    done = shell(f"python - <<'END'\n{lines}\nprint(rows.shape == new_features.shape)\nEND", place)
    assert done.stdout == "True\n", done.stderr


def test_python_snippet(place):
    (snippet,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    done = shell(f"python - <<'END'\n{snippet}\nprint(model.num_classes)\nEND", place)
    assert done.stdout == "10\n", done.stderr


@pytest.mark.parametrize("page", TEXTS)
def test_everything_that_a_page_names_exists(page):
    for path in re.findall(r"`((?:benchmarks|riftcli|tests|recipes|docs)/[\w/.]+|\.ci/run)`", TEXTS[page]):
        assert (ROOT / path).exists(), path
    for link in re.findall(r"\]\((?!http)([^)#]+)\)", TEXTS[page]):
        assert ((ROOT / page).parent / link).exists(), link


def test_the_readme_is_short():
    assert len(README.splitlines()) <= 150


def test_the_list_of_commands_is_that_of_the_app():
    spec = importlib.util.spec_from_file_location("make_commands", ROOT / "docs" / "make_commands.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert (ROOT / "docs" / "commands.md").read_text() == module.document(), "run: python docs/make_commands.py"


def test_the_real_run_names_what_exists():
    script = (ROOT / "benchmarks" / "real_run.sh").read_text()
    assert subprocess.run(["bash", "-n", ROOT / "benchmarks" / "real_run.sh"]).returncode == 0
    for method in ("linear", "full", "rift", "rift_fixed", "rsc", "scratch"):
        assert method in script
        assert (ROOT / "recipes" / f"fashion_dinov2_{method}.yaml").exists()


def test_an_installed_wheel_has_its_recipes_and_its_demo(tmp_path):
    """No checkout around: recipes by name, the embedded model, the embedded data. Built twice, it is the same file."""
    site, pip = tmp_path / "site", [sys.executable, "-m", "pip"]
    built = []
    for name in ("one", "two"):
        subprocess.run(
            [*pip, "wheel", "--quiet", "--no-deps", "--wheel-dir", tmp_path / name, ROOT], check=True, capture_output=True
        )
        built += (tmp_path / name).glob("*.whl")
    assert len(built) == 2 and built[0].read_bytes() == built[1].read_bytes()
    subprocess.run([*pip, "install", "--quiet", "--no-deps", "--target", site, built[0]], check=True, capture_output=True)
    command = [sys.executable, "-m", "riftcli", "finetune", "--recipe", "demo_rift", "--set", "train.epochs=1", "--out", "r"]
    done = subprocess.run(
        command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(site)}, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    where = [sys.executable, "-c", "import riftcli; print(riftcli.__file__)"]
    found = subprocess.run(where, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(site)}, capture_output=True, text=True)
    assert found.stdout.startswith(str(site))
