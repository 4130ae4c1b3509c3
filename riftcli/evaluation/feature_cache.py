"""Features that were computed before, found again by their content: same weights, same pixels, same transform."""

from __future__ import annotations

import hashlib
import json
import os
import weakref
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from riftcli import files
from riftcli.console import note_line
from riftcli.data.image_store import file_states
from riftcli.data.paths import texts
from riftcli.data.split import Split
from riftcli.data.splits import fingerprint
from riftcli.data.transforms import Preprocessing
from riftcli.errors import ModelError, StorageError
from riftcli.evaluation import cache_folder
from riftcli.evaluation.features import FeatureTable
from riftcli.models.head import FIT
from riftcli.models.image_text import TextTower
from riftcli.models.loading import read_tensors
from riftcli.models.published import sha256
from riftcli.models.weights import write_tensors
from riftcli.runs.provenance import installed

LIBRARIES = ("torch", "torchvision", "timm", "pillow")  # whose other versions may give other features
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
    if split.paths is not None:
        for path, state in zip(texts(split.paths), file_states(split.paths), strict=True):
            digest.update(f"{path}\t".encode("utf-8", "surrogateescape") + state)
        return digest.hexdigest()
    for i in range(len(split)):
        image = split.read(i)
        digest.update(f"{image.mode} {image.size}\n".encode())
        digest.update(image.tobytes())
    return digest.hexdigest()


class FeatureCache:
    """A folder of feature tables; a file is there completely or not at all, and is checked before it is used (F26)."""

    def __init__(self, folder: str | Path, most: int | None = None) -> None:
        """most: bytes of the user's own cache, which is kept below them, and whose failures are no failure of a command."""
        self.folder, self.most = Path(folder).expanduser(), most
        self._failed = False
        self._digests: dict[int, tuple[Any, Any, str]] = {}

    @classmethod
    def of_setting(cls, setting: str | None) -> FeatureCache | None:
        """`eval.cache` of a recipe: a folder, auto, or None."""
        if setting != "auto":
            return cls(setting) if setting else None
        own = cache_folder.user_folder()
        return None if own is None else cls(own, cache_folder.MOST)

    def path(self, model: nn.Module, pooling: Any, split: Split, preprocessing: Preprocessing, reading: dict[str, Any]) -> Path:
        """Where the table of these samples through this model belongs. `reading`: how files become pixels and batches."""
        return self._path(
            {
                "weights": self._weights(model),
                "model": repr(model),
                "arguments": getattr(getattr(model, "vit", model), "rift_args", None),  # not all of them show in the rest
                "pooling": pooling,
                "samples": samples_digest(split),
                "transform": asdict(preprocessing),
                "reading": reading,
            }
        )

    def path_of_texts(self, tower: TextTower, lines: Sequence[str], device: str) -> Path:
        """Where the embeddings of these texts belong."""
        form = tower.format
        tokens = {name: hashlib.sha256(content).hexdigest() for name, content in form.files.items()}
        return self._path(
            {
                "weights": self._weights(tower),
                "model": repr(tower),
                "texts": hashlib.sha256("\0".join(lines).encode()).hexdigest(),
                "tokens": [tokens, form.context_length, form.padding],
                "device": device,
            }
        )

    def path_of_head(
        self, features: torch.Tensor, targets: torch.Tensor, classes: int, objective: dict[str, Any], device: torch.device
    ) -> Path:
        """Where the head belongs that was fitted to these features (N, D) and targets, there: with as many threads, or by such a
        GPU.
        """
        digest = hashlib.sha256()
        for tensor in (features, targets):
            digest.update(f"{tensor.dtype} {tuple(tensor.shape)}\n".encode())
            digest.update(tensor.detach().cpu().contiguous().numpy().data)
        threads = f"{device.type}, {torch.get_num_threads()} threads"
        where = torch.cuda.get_device_name(device) if device.type == "cuda" else threads
        what = {"head": digest.hexdigest(), "fit": FIT, "classes": classes, "objective": objective}
        return self._path({**what, "device": where})

    def _weights(self, model: nn.Module) -> str:
        """The digest of a model, computed again only when one of its tensors is another or was written to."""
        state = model.state_dict()
        versions = [(tensor.data_ptr(), tensor._version) for tensor in state.values()]
        known = self._digests.get(id(model))
        if known is None or known[0]() is not model or known[1] != versions:
            known = (weakref.ref(model), versions, weights_digest(model))
            self._digests[id(model)] = known
        return known[2]

    def _path(self, what: dict[str, Any]) -> Path:
        key = {"version": VERSION, **{name: installed(name) for name in LIBRARIES}, **what}
        name = hashlib.sha256(json.dumps(key, sort_keys=True, default=str).encode()).hexdigest()
        return self.folder / f"{name[:40]}.safetensors"

    def read(self, path: Path, count: int) -> FeatureTable | None:
        """The table, or None when there is none; one that is damaged is said, and None too."""
        found = self.read_named(path, {"features": (count, None), "logits": (count, None)})
        return None if found is None else FeatureTable(found["features"], found["logits"])

    def read_named(self, path: Path, shapes: dict[str, tuple[int | None, ...]]) -> dict[str, torch.Tensor] | None:
        """The same of any tensors. shapes: of each, None where it may have any length."""
        if not os.path.isfile(path):  # False for a folder that may not be read, where Path.is_file raises
            return None
        try:
            if files.read_text(path.with_suffix(".sha256"), 1000) != sha256(path):
                raise ValueError("not what was written")
            tensors = read_tensors(path)
            for name, shape in shapes.items():
                there = tensors[name].shape
                if len(there) != len(shape) or any(n not in (None, m) for n, m in zip(shape, there, strict=True)):
                    raise ValueError("tables of other shapes")
        except FileNotFoundError:  # another process is just then putting it there
            return None
        except (OSError, ValueError, KeyError, ModelError) as error:
            note_line(f"note: {path}: damaged ({error}); computed anew")
            return None
        cache_folder.touch(path)
        return tensors

    def write(self, path: Path, table: FeatureTable) -> None:
        """Publish a table in one step; of two writers the last one wins, with the same content. Raises StorageError, but of the
        user's own cache, which is then left alone, and which takes no table larger than a quarter of it.
        """
        self.write_named(path, {"features": table.features, "logits": table.logits})

    def write_named(self, path: Path, tensors: dict[str, torch.Tensor]) -> None:
        """The same of any tensors."""
        if self.most is not None and sum(tensor.nbytes for tensor in tensors.values()) > self.most // 4:
            return  # it would push out all others
        try:
            try:
                self.folder.mkdir(mode=0o777 if self.most is None else 0o700, parents=True, exist_ok=True)
            except OSError as error:
                raise files.unwritable(self.folder, error) from error
            write_tensors(path, tensors)
            files.write_bytes(path.with_suffix(".sha256"), sha256(path).encode())
            if self.most is not None:
                cache_folder.prune(self.folder, self.most)
        except (StorageError, OSError) as error:
            if self.most is None:
                raise
            if not self._failed:
                note_line(f"note: features are not kept for the next command: {error}")
            self._failed = True
