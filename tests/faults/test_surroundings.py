"""What is around a command: no network, no file elsewhere, small or missing places, a log that is not read any more."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from riftcli import files

WATCHED = """
import json, os, sys, tempfile
from pathlib import Path
allowed = [os.path.realpath(place) for place in {allowed!r}]
outside, sockets = set(), []

def hook(event, arguments):
    if event.startswith("socket.") and event in ("socket.connect", "socket.getaddrinfo", "socket.bind", "socket.sendto"):
        address = arguments[1] if event in ("socket.connect", "socket.bind", "socket.sendto") else arguments[0]
        if not isinstance(address, (str, bytes)) or event == "socket.getaddrinfo":  # those of a file are of this machine
            sockets.append(repr(address))
    written = []
    if event == "open" and isinstance(arguments[0], (str, bytes)):
        path, mode, flags = arguments
        if (isinstance(mode, str) and set(mode) & set("wax+")) or (flags or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            written.append(path)
    elif event in ("os.mkdir", "os.remove", "os.rmdir", "os.truncate"):
        written.append(arguments[0])
    elif event in ("os.rename", "os.link", "os.symlink"):
        written += arguments[:2]
    for path in written:
        place = os.path.realpath(os.fsdecode(path))
        if not place.startswith(("/dev/", "/proc/")) and not any(place.startswith(own) for own in allowed):
            outside.add(place)

sys.addaudithook(hook)
from riftcli import cli

codes = [cli.run(command) for command in {commands!r}]
Path({found!r}).write_text(json.dumps({{"codes": codes, "outside": sorted(outside), "sockets": sockets}}))
"""


def test_no_network_and_no_file_elsewhere(tmp_path, tiny_recipe, write_recipe):
    """A whole day of commands: nothing leaves the machine, and files are written in the working folder, the folder for temporary
    files and the user's cache alone.
    """
    work, home, scratch = tmp_path / "work", tmp_path / "home", tmp_path / "scratch"
    for place in (work, home / ".cache", scratch):
        place.mkdir(parents=True)
    tiny_recipe["train"]["epochs"] = 1
    recipe = str(write_recipe(tiny_recipe))
    commands = [
        ["recipes", "ls"],
        ["doctor"],
        ["finetune", "--recipe", recipe, "--out", "r"],
        ["eval", "--run", "r"],
        ["runs", "--in", "."],
    ]
    commands += [
        ["knn", "--run", "r"],
        ["similarity", "--run", "r", "--bootstrap", "0"],
        ["report", "r"],
        ["compare", "r", "--out", "c"],
    ]
    places = [str(place) for place in (work, home / ".cache", scratch)]
    found = work / "found.json"
    code = WATCHED.format(allowed=places, commands=commands, found=str(found))
    surroundings = {
        "HOME": str(home),
        "TMPDIR": str(scratch),
        "XDG_CACHE_HOME": str(home / ".cache"),
        "MPLCONFIGDIR": str(home / ".cache"),
    }
    kept = {
        key: value
        for key, value in os.environ.items()
        if key not in ("HF_HUB_OFFLINE", "RIFTCLI_CACHE", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")
    }
    environment = {**kept, **surroundings, "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run([sys.executable, "-c", code], cwd=work, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    seen = json.loads(found.read_text())
    assert seen["codes"] == [0] * len(commands), done.stderr
    assert seen["sockets"] == []
    assert seen["outside"] == []


def test_the_watch_sees_what_it_should(tmp_path):
    """The test above can fail."""
    found = tmp_path / "found.json"
    code = WATCHED.format(
        allowed=[str(tmp_path / "none")], commands=[["recipes", "cp", "demo_rift", str(tmp_path / "x.yaml")]], found=str(found)
    )
    code = code.replace(
        "codes = [", "import socket\ntry: socket.create_connection(('127.0.0.1', 9), 0.1)\nexcept OSError: pass\ncodes = ["
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, capture_output=True, timeout=60)
    seen = json.loads(found.read_text())
    assert str(tmp_path / "x.yaml") in seen["outside"] and "('127.0.0.1', 9)" in seen["sockets"]


def test_without_a_home(tmp_path, tiny_recipe, write_recipe):
    tiny_recipe["train"]["epochs"] = 1
    command = [sys.executable, "-m", "riftcli", "finetune", "--recipe", str(write_recipe(tiny_recipe)), "--out", "r"]
    environment = {key: value for key, value in os.environ.items() if key not in ("HOME", "XDG_CACHE_HOME")}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_shared_memory_is_too_small(rift, tiny_recipe, write_recipe, monkeypatch):
    """What torch says when /dev/shm is full, as in a container that was given 64 MB of it."""
    from riftcli.training import loop

    def full(*arguments):
        raise RuntimeError(
            "DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that dataloader's workers are out of "
            "shared memory. Please try to raise your shared memory limit."
        )

    monkeypatch.setattr(loop, "set_lr", full)
    code, _, err = rift("finetune", "--recipe", write_recipe(tiny_recipe), "--out", "r")
    assert (code, err.splitlines()[-1]) == (
        5,
        "error: data workers ran out of shared memory (/dev/shm); give it more (docker run --shm-size=8g), or none of "
        "them: train.workers=0",
    )


# ---- output that nobody reads


@pytest.mark.parametrize("command", ["recipes ls", "finetune --help"])
def test_a_closed_pipe_is_no_error(command, tmp_path):
    """`rift recipes ls | head -1`."""
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "riftcli", *command.split()],
        cwd=tmp_path,
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr


@pytest.mark.parametrize("how", ["full", "a pipe that nobody reads"])
def test_training_goes_on_without_its_output(how, tmp_path, tiny_recipe, write_recipe):
    """The reader of the log has quit, the terminal is gone, the disk of the log is full."""
    tiny_recipe["train"]["epochs"] = 1
    words = [sys.executable, "-m", "riftcli", "finetune", "--recipe", str(write_recipe(tiny_recipe)), "--out", "r", "--json"]
    reader, writer = os.pipe()
    os.close(reader)
    full = os.open("/dev/full", os.O_WRONLY)
    redirected = {"full": f">/dev/null 2>&{full}", "a pipe that nobody reads": f">&{writer} 2>&{writer}"}[how]
    line = " ".join(f"'{word}'" for word in words)
    code = subprocess.run(["bash", "-c", f"{line} {redirected}"], cwd=tmp_path, pass_fds=(writer, full), timeout=120).returncode
    os.close(writer)
    os.close(full)
    assert code == 0
    assert json.loads((tmp_path / "r/run.json").read_text())["status"] == "completed"
    assert "report: r/metrics.json" in (tmp_path / "r/train.log").read_text()


def test_an_error_without_an_output_has_its_code(tmp_path):
    code = subprocess.run(
        ["bash", "-c", f"'{sys.executable}' -m riftcli finetune --recipe nowhere >&- 2>&-"], cwd=tmp_path
    ).returncode
    assert code == 2


# ---- folders that cannot be written

WRITERS = [
    "eval --run r",
    "knn --run r",
    "similarity --run r --bootstrap 0",
    "sharpness --run r",
    "retrieval --run r",
    "attention --run r --count 2",
    "clinical --run r --draws 100",
    "align pretrained r --map procrustes",
    "report r --out page.html",
    "compare r --out tables",
    "predict r x.png --out p.csv",
    "export r --format torch_export",
    "wise r --alphas 0,1",
    "recipes cp demo_rift mine.yaml",
]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS], ids=["a full disk", "a disk that may only be read"])
@pytest.mark.parametrize("command", WRITERS)
def test_what_cannot_be_written_is_one_line(one_epoch_run, rift, monkeypatch, command, number):
    """No file can be begun and no folder made, as on such a disk (root, which runs the tests, may write everywhere else)."""
    Image.new("L", (16, 16)).save("x.png")
    shutil.copytree(one_epoch_run, "r")
    before = {path: path.read_bytes() for path in Path("r").rglob("*") if path.is_file()}

    def refuse(*arguments, **options):
        raise OSError(number, os.strerror(number), options.get("dir"))

    monkeypatch.setattr(files.tempfile, "mkstemp", refuse)
    monkeypatch.setattr(Path, "mkdir", refuse)
    code, _, err = rift(*command.split())
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert (code, len(lines), "Traceback" in err) == (8, 1, False), err
    assert os.strerror(number) in lines[0]
    assert {path: path.read_bytes() for path in Path("r").rglob("*") if path.is_file()} == before, "what was there is as it was"
