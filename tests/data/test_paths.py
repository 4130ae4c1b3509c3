"""The files of a large split: as many paths as there are names, in the order of paths, without looking at a file twice."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from riftcli.data import folders
from riftcli.data.datasets.image_folder import ImageFolder
from riftcli.data.folders import OutsideRoot, check_inside, images_below
from riftcli.data.image_store import file_state, file_states
from riftcli.data.paths import PathsBelow, take, texts
from riftcli.errors import DataError


def test_it_is_a_list_of_paths():
    names = ["a/1.png", "a/2.png", "b c/é.png"]
    for root in (Path("/data"), Path("data"), Path("/"), Path(".")):
        paths, plain = PathsBelow(root, names), [root / name for name in names]
        assert list(paths) == plain == [paths[i] for i in range(3)] and paths == plain and plain[2] in paths
        assert list(texts(paths)) == list(map(str, plain)) == list(texts(plain))
        assert paths[1:] == plain[1:] and len(paths[:0]) == 0 and not PathsBelow(root, [])
        assert take(paths, [2, 0]) == take(plain, [2, 0]) == [plain[2], plain[0]]
        assert pickle.loads(pickle.dumps(paths)) == paths  # noqa: S301 - what a data worker does
    assert paths[-1] == plain[-1]
    with pytest.raises(IndexError):
        paths[3]


def test_images_are_in_the_order_of_their_paths(tmp_path):
    """A run of an earlier version, which sorted paths, goes on with the same samples in the same order."""
    names = ["b/2.png", "b-1.png", "b/10.png", "a.PNG", "b/c/x.jpg", "b.c/y.jpg", "B.png", "ü.webp", "b/.hidden.png", ".h/z.png"]
    others = ["notes.txt", "b/scan.gif", "b/noext", "trailing.", "b/__MACOSX/w.png"]
    for name in names + others:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    images, ignored = images_below(tmp_path)
    visible = [tmp_path / name for name in names if "/." not in f"/{name}"]
    assert images == sorted(visible)
    assert ignored == {".txt": 1, ".gif": 1, "no suffix": 2}


def test_links_that_lead_nowhere_or_in_a_circle_are_no_folders(tmp_path):
    for name in ("a", "b"):
        (tmp_path / "train" / name).mkdir(parents=True)
        (tmp_path / "train" / name / "0.png").touch()
    for place in (tmp_path, tmp_path / "train"):
        (place / "loop").symlink_to(place / "loop")
        (place / "through_a_file").symlink_to(tmp_path / "train/a/0.png/x")
    assert ImageFolder(str(tmp_path)).load("train").ids == ["train/a/0.png", "train/b/0.png"]


def test_files_that_a_table_names_are_looked_at_one_by_one(tmp_path, monkeypatch):
    """Not by listing their folder, which may be large, closed to us, or on a disk that does not tell A from a."""
    (tmp_path / "root").mkdir()
    for i in range(3):
        (tmp_path / f"root/{i}.png").touch()
    (tmp_path / "outside.png").touch()
    (tmp_path / "root/link.png").symlink_to(tmp_path / "outside.png")
    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", lambda *a: pytest.fail("a folder was listed"))
        check_inside([tmp_path / "root/0.png", tmp_path / "root/1.png"], str(tmp_path / "root"))
        with pytest.raises(OutsideRoot, match="link.png: leads out of the data root"):
            check_inside([tmp_path / "root/0.png", tmp_path / "root/link.png"], str(tmp_path / "root"))
        check_inside([Path("/a.png")], "/")


@pytest.mark.parametrize("kind", ["file", "nested file", "folder", "class", "a name that begins alike", "none"])
def test_images_of_class_folders_lie_below_the_root(tmp_path, kind):
    """Which files are links is known from the listing, also of a part of it."""
    root, outside = tmp_path / "root", tmp_path / ("root2" if "alike" in kind else "outside")
    for place in (root / "train/a/inner", root / "train/b", outside):
        place.mkdir(parents=True)
        (place / "0.png").touch()
    (root / "train/b/own.png").symlink_to(root / "train/a/inner/0.png")  # stays inside
    link = {"file": "train/a/1.png", "nested file": "train/a/inner/1.png", "class": "train/c", "folder": "train/b/more"}
    if kind != "none":
        where = root / link.get(kind, "train/a/1.png")
        where.symlink_to(outside if kind in ("folder", "class") else outside / "0.png")
    paths = ImageFolder(str(root), follow_links=True).load("train").paths
    assert isinstance(paths, PathsBelow)
    bad = [i for i, path in enumerate(paths) if not path.resolve().is_relative_to(root)]
    assert len(bad) == (kind != "none")
    for some in (paths, paths[:], take(paths, range(len(paths))), take(paths, bad or [0])):
        if kind == "none":
            check_inside(some, str(root))
            continue
        with pytest.raises(OutsideRoot) as caught:
            check_inside(some, str(root))
        assert str(caught.value).startswith(f"{paths[bad[0]]}: leads out of the data root, to {outside}/0.png; ")
    check_inside(take(paths, [i for i in range(len(paths)) if i not in bad]), str(root))


def test_links_are_followed_once_and_broken_ones_told(tmp_path):
    for name in ("train/a", "train/b", "elsewhere"):
        (tmp_path / name).mkdir(parents=True)
    for place in ("train/a/1.png", "train/b/1.png", "elsewhere/2.png"):
        Image.fromarray(np.zeros((2, 2, 3), dtype=np.uint8)).save(tmp_path / place)
    (tmp_path / "train/a/more").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "train/a/more_again").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "train/b/up").symlink_to(tmp_path / "train")
    split = ImageFolder(str(tmp_path), follow_links=True).load("train")
    assert split.ids[:2] == ["train/a/1.png", "train/a/more/2.png"] and "train/b/1.png" in split.ids
    (tmp_path / "train/b/gone.png").symlink_to(tmp_path / "nowhere.png")
    (tmp_path / "train/b/gone.txt").symlink_to(tmp_path / "nowhere.txt")
    with pytest.raises(DataError) as caught:
        ImageFolder(str(tmp_path)).load("train")
    assert str(caught.value) == (f"{tmp_path}/train/b/gone.png: a link to nowhere; fetch it again or take it out of the list")


def test_no_file_is_looked_at_while_a_folder_is_listed(tmp_path, monkeypatch):
    """A million files are listed in the time of their folders."""
    (tmp_path / "train/a").mkdir(parents=True)
    for i in range(50):
        (tmp_path / f"train/a/{i:03d}.png").touch()
    looked: list[str] = []
    for name in ("stat", "lstat"):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda path, *a, real=real, **k: (looked.append(str(path)), real(path, *a, **k))[1])
    split = ImageFolder(str(tmp_path)).load("train")
    folders.check_inside(split.paths, str(tmp_path))
    assert len(split) == 50 and not [path for path in looked if path.endswith(".png")]


def test_the_state_of_a_file_is_that_of_what_a_link_points_to(tmp_path, monkeypatch):
    (tmp_path / "a'b").mkdir()
    file = tmp_path / "a'b/x é.png"
    file.write_bytes(b"1")
    (tmp_path / "link.png").symlink_to(file)
    (tmp_path / "folder").symlink_to(tmp_path / "a'b")
    places = [file, tmp_path / "link.png", tmp_path / "folder/x é.png"]
    states = {*map(file_state, places), *file_states(places)}
    assert len(states) == 1
    monkeypatch.chdir(tmp_path)
    assert file_state(Path("a'b/x é.png")) in states
    (tmp_path / "other/a'b").mkdir(parents=True)
    (tmp_path / "other/a'b/x é.png").write_bytes(b"1")
    monkeypatch.chdir(tmp_path / "other")
    assert file_state(Path("a'b/x é.png")) not in states, "another file of that name"
    status = file.stat()
    import hashlib

    facts = (file.resolve(), status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)
    assert states == {hashlib.blake2b(repr(facts).encode(), digest_size=8).hexdigest().encode()}, "as stores were written before"
    with pytest.raises(DataError, match="image not found"):
        file_state(tmp_path / "none.png")
