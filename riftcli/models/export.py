"""A finished model for other run times: ONNX or torch.export, with a batch of any size, and compared before it is called done."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from riftcli.data.transforms import Preprocessing
from riftcli.errors import EnvironmentError, ModelError
from riftcli.files import replacing
from riftcli.models.classifier import Classifier

SUFFIXES = {"onnx": ".onnx", "torch_export": ".pt2"}
BATCHES = (1, 3)  # sizes at which the exported model must answer as ours does
TOLERANCE = 1e-4  # of the largest: other kernels sum in another order
OUTPUTS = ("logits", "features")


class Exported(nn.Module):
    """images -> (logits (n, C), features (n, D)). images: standardised float32 (n, 3, S, S), or with `pixels` the uint8 pixels of
    resized and cropped images, which are standardised inside.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, classifier: Classifier, preprocessing: Preprocessing, pixels: bool) -> None:
        super().__init__()
        self.classifier, self.pixels = classifier, pixels
        scale = 255.0
        self.register_buffer("mean", torch.tensor(preprocessing.mean).view(1, -1, 1, 1) * scale)
        self.register_buffer("std", torch.tensor(preprocessing.std).view(1, -1, 1, 1) * scale)

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """One forward."""
        if self.pixels:
            images = (images.float() - self.mean) / self.std
        output = self.classifier(images)
        return output.logits, output.features


def export_model(
    classifier: Classifier,
    preprocessing: Preprocessing,
    about: dict[str, Any],
    out: Path,
    kind: str,
    pixels: bool = False,
) -> float:
    """Write the model and return how far its outputs are from ours, relative to the largest; nothing that differs is left.

    kind: onnx | torch_export. about: what a reader needs beside the tensors (classes, task, size, how to resize): ONNX metadata,
    or `about.json` inside a .pt2 file. Raises ModelError where the exported model answers otherwise, EnvironmentError without the
    extra.
    """
    module = Exported(classifier, preprocessing, pixels).eval()
    example = example_images(preprocessing, max(BATCHES), pixels)
    with replacing(out) as partial:  # a model that answers otherwise is never put in place
        with torch.inference_mode(False), torch.no_grad():
            try:
                (_write_onnx if kind == "onnx" else _write_torch)(module, example, partial, about)
            except (EnvironmentError, OSError):
                raise
            except Exception as error:  # torch's exporters have no one kind of error
                other = next(name for name in SUFFIXES if name != kind)
                text = str(error).strip().splitlines()
                why = f"{type(error).__name__}: {text[0][:200] if text else ''}"
                raise ModelError(f"--format {kind}: this model cannot be exported ({why}); try --format {other}") from error
        run = onnx_session(partial) if kind == "onnx" else torch_session(partial)
        return compare(module, run, preprocessing, pixels)


def example_images(preprocessing: Preprocessing, count: int, pixels: bool, seed: int = 0) -> torch.Tensor:
    """Images of noise as the exported model takes them."""
    generator = torch.Generator().manual_seed(seed)
    shape = (count, *preprocessing.input_size)
    if pixels:
        return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    return torch.randn(shape, generator=generator)


def compare(
    module: Exported, run: Callable[[torch.Tensor], Sequence[torch.Tensor]], preprocessing: Preprocessing, pixels: bool
) -> float:
    """The largest difference of logits and features at several batch sizes, over the largest of ours; raise ModelError above
    TOLERANCE.
    """
    worst = 0.0
    for count in BATCHES:
        images = example_images(preprocessing, count, pixels, seed=count)
        with torch.no_grad():
            ours = module(images)
        for name, expected, found in zip(OUTPUTS, ours, run(images), strict=True):
            if found.shape != expected.shape:
                shapes = f"{tuple(found.shape)} {name} for {count} images, ours {tuple(expected.shape)}"
                raise ModelError(f"the exported model gives {shapes}")
            difference = float((found - expected).abs().max() / expected.abs().max().clamp_min(1e-12))
            if not difference <= TOLERANCE:  # NaN is a difference, too
                raise ModelError(
                    f"the exported model answers otherwise than ours ({name} differ by {difference:.2g} of the largest, allowed "
                    f"{TOLERANCE:g}); nothing was kept; try another --format, or another version of torch or onnxruntime"
                )
            worst = max(worst, difference)
    return worst


def _write_onnx(module: Exported, example: torch.Tensor, out: Path, about: dict[str, Any]) -> None:
    try:
        import onnx
        import onnxruntime  # noqa: F401 - what it is compared with afterwards
        import onnxscript  # noqa: F401 - torch.onnx needs it
    except ImportError as error:
        raise EnvironmentError(f"--format onnx needs the extra onnx ({error.name}): pip install 'riftcli[onnx]'") from None
    program = torch.onnx.export(
        module,
        (example,),
        dynamo=True,
        dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
        input_names=["images"],
        output_names=[*OUTPUTS],
        verbose=False,
    )
    assert program is not None
    proto = program.model_proto
    onnx.helper.set_model_props(
        proto, {key: value if isinstance(value, str) else json.dumps(value) for key, value in about.items()}
    )
    onnx.save(proto, out)


def _write_torch(module: Exported, example: torch.Tensor, out: Path, about: dict[str, Any]) -> None:
    program = torch.export.export(module, (example,), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},))
    torch.export.save(program, out, extra_files={"about.json": json.dumps(about)})


def onnx_session(path: Path) -> Callable[[torch.Tensor], list[torch.Tensor]]:
    """images -> OUTPUTS of an ONNX file, by onnxruntime on the CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda images: [torch.from_numpy(found) for found in session.run([*OUTPUTS], {"images": images.numpy()})]


def torch_session(path: Path) -> Callable[[torch.Tensor], list[torch.Tensor]]:
    """images -> OUTPUTS of a .pt2 file."""
    loaded = torch.export.load(path).module()

    def run(images: torch.Tensor) -> list[torch.Tensor]:
        with torch.no_grad():
            return list(loaded(images))

    return run
