"""What the tests of evaluation and report share: data, schemas, and slow ways to the same numbers."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import torch
from jsonschema import Draft202012Validator
from PIL import Image

import riftcli
from riftcli.data.datasets.digits import Digits
from riftcli.data.transforms import EvalTransform, Preprocessing
from riftcli.models.classifier import Classifier

SCHEMAS = {
    f"rift.{name}/1": Draft202012Validator(
        json.loads((Path(riftcli.__file__).parent / "assets" / f"{name}.schema.json").read_text())
    )
    for name in ("table", "compare", "predictions")
}


DATA = {
    "format": "digits",
    "train": {"from": "train", "limit": 160},
    "val": {"fraction": 0.2, "from": "train"},
    "test": {"from": "test", "limit": 60},
}


CLOTHES = {"from": "test", "limit": 60}


NOT_THE_RUN = "evaluation can change data.*, input.*, eval.*, model.weights and train.workers, not the run"


NO_FOLDER = "no such data folder (looked in {cwd}); set root, e.g. --set data.root=/path/to/data"


def table(folder: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((folder / "table.csv").open()))


def features(path: Path, split: str, limit: int) -> tuple[np.ndarray, np.ndarray]:
    """The slow way: image by image through the saved model."""
    from riftcli.data.holdout import limit as cut

    vit = riftcli.load(str(path))
    samples = cut(Digits().load(split), limit, 0)
    prepare = Preprocessing.of_model(vit, 16, 1.0)
    transform = EvalTransform(prepare)
    with torch.no_grad():
        rows = [Classifier(vit)(prepare.normalise(transform(samples.read(i))[None])).features[0] for i in range(len(samples))]
    return torch.stack(rows).numpy(), samples.targets


def read(text: str) -> dict:
    """The JSON of a command, which must fit its schema."""
    report = json.loads(text)
    SCHEMAS[report["schema"]].validate(report)
    return report


def make_folder(place: Path) -> str:
    """Two classes of plain colours with train/ and test/: nobody can miss them."""
    for split, count in (("train", 6), ("test", 4)):
        for name, colour in (("red", (220, 30, 30)), ("blue", (20, 30, 220))):
            folder = place / "shapes" / split / name
            folder.mkdir(parents=True, exist_ok=True)
            for i in range(count):
                Image.new("RGB", (20, 20), tuple(c + i for c in colour)).save(folder / f"{split}{i}.png")
    return f"imagefolder:{place / 'shapes'}"
