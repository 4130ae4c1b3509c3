"""Features that were computed before, found again by their content: same weights, same pixels, same transform."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from riftcli import files
from riftcli.console import note_line
from riftcli.data.image_store import file_state
from riftcli.data.split import Split
from riftcli.data.splits import fingerprint
from riftcli.data.transforms import Preprocessing
from riftcli.errors import ModelError
from riftcli.evaluation.features import FeatureTable
from riftcli.models.loading import read_tensors
from riftcli.models.published import sha256
from riftcli.models.weights import write_tensors

VERSION = 1  # of the files; raise it when the meaning of a feature changes


def weights_digest(model: nn.Module) -> str:
    """sha256 over names, dtypes, shapes and bytes of every tensor of a model."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        plain = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {plain.dtype} {tuple(plain.shape)}\n".encode())
        digest.update(plain.reshape(-1).view(torch.uint8).numpy().tobytes() if plain.numel() else b"")
    return digest.hexdigest()


def samples_digest(split: Split) -> str:
    """sha256 over ids, targets, and what is on disk: name, size and time of every file, or the pixels where there is none."""
    digest = hashlib.sha256(fingerprint(split).encode())
    for i in range(len(split)):
        if split.paths is not None:
            digest.update(f"{split.paths[i]}\t".encode() + file_state(split.paths[i]))
        else:
            image = split.read(i)
            digest.update(f"{image.mode} {image.size}\n".encode())
            digest.update(image.tobytes())
    return digest.hexdigest()


class FeatureCache:
    """A folder of feature tables; a file is there completely or not at all, and is checked before it is used (F26)."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder).expanduser()

    def path(self, model: nn.Module, pooling: Any, split: Split, preprocessing: Preprocessing, reading: dict[str, Any]) -> Path:
        """Where the table of these samples through this model belongs. `reading`: how files become pixels and batches."""
        return self._path(
            {
                "weights": weights_digest(model),
                "model": repr(model),
                "pooling": pooling,
                "samples": samples_digest(split),
                "transform": asdict(preprocessing),
                "reading": reading,
            }
        )

    def path_of_texts(self, tower: nn.Module, lines: Sequence[str], device: str) -> Path:
        """Where the embeddings of these texts belong."""
        lengths = hashlib.sha256("\0".join(lines).encode()).hexdigest()
        return self._path({"weights": weights_digest(tower), "model": repr(tower), "texts": lengths, "device": device})

    def _path(self, what: dict[str, Any]) -> Path:
        key = {"version": VERSION, "torch": torch.__version__, **what}
        name = hashlib.sha256(json.dumps(key, sort_keys=True, default=str).encode()).hexdigest()
        return self.folder / f"{name[:40]}.safetensors"

    def read(self, path: Path, count: int) -> FeatureTable | None:
        """The table, or None when there is none; one that is damaged is said, and None too."""
        if not path.is_file():
            return None
        try:
            if files.read_text(path.with_suffix(".sha256"), 1000) != sha256(path):
                raise ValueError("not what was written")
            tensors = read_tensors(path)
            table = FeatureTable(tensors["features"], tensors["logits"])
            if not (table.features.dim() == table.logits.dim() == 2 and len(table.features) == len(table.logits) == count):
                raise ValueError("tables of other shapes")
        except FileNotFoundError:  # another process is just then putting it there
            return None
        except (OSError, ValueError, KeyError, ModelError) as error:
            note_line(f"note: {path}: damaged ({error}); computed anew")
            return None
        return table

    def write(self, path: Path, table: FeatureTable) -> None:
        """Publish a table in one step; of two writers the last one wins, with the same content."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise files.unwritable(self.folder, error) from error
        write_tensors(path, {"features": table.features, "logits": table.logits})
        files.write_text(path.with_suffix(".sha256"), sha256(path))
