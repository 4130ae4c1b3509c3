"""The file that `model.weights` names."""

from __future__ import annotations

from pathlib import Path

from riftcli.errors import ModelError


def weights_file(weights: str | None) -> Path:
    """The .safetensors file behind `model.weights`; raise ModelError when there is none."""
    assert weights is not None
    path = Path(weights).expanduser()
    if path.is_dir():
        files = sorted(path.glob("*.safetensors"))
        if len(files) != 1:
            raise ModelError(f"model.weights {weights}: expected exactly one .safetensors file in it, found {len(files)}")
        path = files[0]
    if not path.is_file():
        raise ModelError(f"model.weights {weights}: no such file or folder")
    if path.suffix != ".safetensors":
        raise ModelError(f"model.weights {weights}: only .safetensors is read (other formats can run code when loaded)")
    return path
