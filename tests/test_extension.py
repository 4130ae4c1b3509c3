"""To extend riftcli is one new file and one line: one of each kind, in a package of its own, used on the command line."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from riftcli import catalog, cli

FILES = {
    "margin.py": '''
from dataclasses import dataclass
from typing import ClassVar

@dataclass(frozen=True)
class Margin:
    """Mean difference of the two largest logits."""
    higher_is_better: ClassVar[bool] = True
    needs_pretrained: ClassVar[bool] = False

    def compute(self, predictions):
        top = predictions.logits.topk(2, 1).values
        return {"value": float((top[:, 0] - top[:, 1]).mean())}
''',
    "last_block.py": '''
from dataclasses import dataclass
from typing import ClassVar

@dataclass(frozen=True)
class LastBlock:
    """The head and the last block train. norm: the final norm too."""
    norm: bool = True
    trains_backbone: ClassVar[bool] = True
    saved: ClassVar[str] = "plain"
    no_weight_decay: ClassVar[tuple] = ()

    def prepare(self, vit):
        vit.requires_grad_(False)
        for part in [vit.get_classifier(), vit.blocks[-1], *([vit.norm] if self.norm else [])]:
            part.requires_grad_(True)
''',
    "mean_norm.py": '''
from dataclasses import dataclass

@dataclass(frozen=True)
class MeanNorm:
    """strength * (mean squared norm of the features, relative to the pretrained one, - 1)^2."""
    strength: float = 1.0

    def build(self, context):
        return Bound(self.strength, context.pretrained_features().square().sum(1).mean())

class Bound:
    needs_pretrained = False
    lr_scale = 1.0

    def __init__(self, strength, start):
        self.strength, self.start = strength, start

    def loss(self, features, pretrained):
        return self.strength * (features.square().sum(1).mean() / self.start - 1) ** 2

    def diagnostics(self, features, pretrained):
        return {"mean_norm": float(features.square().sum(1).mean() / self.start)}

    def parameters(self):
        return []

    def state_dict(self):
        return {"start": self.start[None]}

    def load_state_dict(self, state):
        self.start = state["start"][0]
''',
    "ramp.py": '''
from dataclasses import dataclass
from typing import ClassVar

@dataclass(frozen=True)
class Ramp:
    """The strength rises with the learning rate spent. ramp: where it ends."""
    ramp: float
    wants: ClassVar[str] = "gradients"

    def begin(self, total_steps):
        return Rising(self.ramp)

class Rising:
    def __init__(self, end):
        self.end, self.strength = end, 0.1

    def due(self, step):
        return True

    def update(self, progress, rate, measured):
        self.strength = 0.1 + (self.end - 0.1) * progress
        return {"strength": self.strength}

    def outcome(self, similarity):
        return {"strength": self.strength, "note": None}

    def state_dict(self):
        return {"strength": self.strength}

    def load_state_dict(self, state):
        self.strength = state["strength"]
''',
    "stripes.py": '''
from dataclasses import dataclass

@dataclass(frozen=True)
class Stripes:
    """Drawn stripes. count: images per class."""
    count: int = 20

    def load(self, split):
        import numpy as np
        from riftcli.data.images import ArrayReader
        from riftcli.data.split import Split

        images = np.zeros((2 * self.count, 16, 16), dtype=np.uint8)
        images[: self.count, ::2] = 255
        images[self.count :, :, ::2] = 255
        images += np.random.default_rng(len(split)).integers(0, 9, images.shape, dtype=np.uint8)
        targets = np.repeat([0, 1], self.count)
        ids = [f"{split}-{i}" for i in range(len(images))]
        return Split(split, ids, targets, ["across", "down"], ArrayReader(images))
''',
    "feature_norm.py": '''
from dataclasses import dataclass

@dataclass(frozen=True)
class FeatureNorm:
    """Mean norm of the features of a split. split: which; power: of the norm."""
    split: str = "test"
    power: float = 1.0

    def measure(self, candidates, data, encoder):
        from riftcli.evaluation.data_sets import list_split
        from riftcli.runs.result_table import ResultTable

        rows = []
        for candidate in candidates:
            loaded = candidate.load(encoder.device)
            for source in data:
                table = encoder.encode(loaded, list_split(source, self.split), source.input, source.name)
                value = float((table.features.norm(dim=1) ** self.power).mean())
                rows.append({"model": candidate.label, "data": source.name, "split": self.split, "norm": value})
        return ResultTable("feature_norm", {"power": self.power}, [], rows, {})
''',
    "greet.py": '''
from typing import Annotated
import typer

def greet(name: Annotated[str, typer.Argument(help="Whom.")], loud: bool = False) -> None:
    """Say hello."""
    print(f"hello {name}".upper() if loud else f"hello {name}")
''',
}


@pytest.fixture
def extended(tmp_path, monkeypatch):
    """The files, and one line each."""
    package = tmp_path / "site" / "rift_extra"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    for name, text in FILES.items():
        (package / name).write_text(text)
    monkeypatch.syspath_prepend(tmp_path / "site")
    monkeypatch.setitem(catalog.CATALOG["metric"], "margin", "rift_extra.margin:Margin")
    monkeypatch.setitem(catalog.CATALOG["adapter"], "last_block", "rift_extra.last_block:LastBlock")
    monkeypatch.setitem(catalog.CATALOG["regularizer"], "mean_norm", "rift_extra.mean_norm:MeanNorm")
    monkeypatch.setitem(catalog.CATALOG["strength"], "ramp", "rift_extra.ramp:Ramp")
    monkeypatch.setitem(catalog.CATALOG["data"], "stripes", "rift_extra.stripes:Stripes")
    monkeypatch.setitem(catalog.CATALOG["evaluator"], "feature_norm", "rift_extra.feature_norm:FeatureNorm")
    monkeypatch.setitem(cli.COMMANDS, "greet", "rift_extra.greet:greet")
    yield
    for name in [name for name in sys.modules if name.startswith("rift_extra")]:
        del sys.modules[name]
    catalog.component.cache_clear()


def test_one_file_and_one_line(extended, rift, tiny_recipe, write_recipe):
    tiny_recipe |= {
        "data": {"format": "stripes", "count": 24, "val": {"fraction": 0.25, "from": "train"}},
        "adapter": {"name": "last_block", "norm": False},
        "regularizer": {"name": "mean_norm", "strength": {"ramp": 0.5}},
        "eval": {"metrics": ["acc", "margin"], "batch_size": 16},
    }
    tiny_recipe["train"] |= {"epochs": 1, "batch_size": 12}
    recipe = write_recipe(tiny_recipe)
    assert rift("recipes", "validate", recipe)[0] == 0
    code, _, err = rift("finetune", "--recipe", recipe, "--out", "r")
    assert code == 0, err
    report = json.loads(Path("r/metrics.json").read_text())
    assert report["metrics"]["margin"]["value"] > 0
    assert report["model"]["method"]["adapter"] == "last_block"
    assert report["model"]["trainable_params"] < report["model"]["params"]
    steps = [json.loads(line) for line in Path("r/metrics.jsonl").read_text().splitlines()]
    assert all("mean_norm" in row for row in steps if row["kind"] == "step")
    assert [row["strength"] for row in steps if row["kind"] == "strength"][-1] == pytest.approx(0.5)
    assert report["strength"]["strength"] == pytest.approx(0.5)
    assert rift("finetune", "--resume", "r")[0] == 0

    code, out, err = rift("feature_norm", "--run", "r", "--power", "2", "--json")
    assert code == 0, err
    (row,) = json.loads(out)["rows"]
    assert row["norm"] > 0
    assert Path("r/feature_norm").is_dir()
    assert "--power" in rift("feature_norm", "--help")[1]
    assert rift("greet", "you", "--loud") == (0, "HELLO YOU\n", "")


def test_a_wrong_value_is_told_as_any_other(extended, rift, tiny_recipe, write_recipe):
    tiny_recipe["adapter"] = {"name": "last_blok"}
    code, _, err = rift("recipes", "validate", write_recipe(tiny_recipe))
    assert code == 2
    assert "unknown adapter 'last_blok' (text) (did you mean 'last_block'?)" in err
