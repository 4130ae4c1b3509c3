"""A finished run in a program or notebook: its numbers, its model, its predictions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property, partial
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from riftcli.errors import RiftError, UsageError

if TYPE_CHECKING:
    import torch
    from PIL import Image


class Run:
    """A run folder, or the folder that several seeds or folds of one recipe share (then `model` and `predict` need one run)."""

    def __init__(self, path: str | PathLike[str]) -> None:
        """Raise UsageError when there is no such folder."""
        self.path = Path(path).expanduser()
        if not self.path.is_dir():
            raise UsageError(f"{self.path}: no such folder; riftcli.finetune() makes one, `rift finetune` too")

    def __repr__(self) -> str:
        try:
            numbers = ", ".join(f"{name} {value:.4f}" for name, value in self.metrics.items() if value is not None)
        except RiftError:
            numbers = "not finished"
        return f"Run({str(self.path)!r}: {numbers})"

    @property
    def report(self) -> dict[str, Any]:
        """metrics.json (schema rift.metrics/1), read anew; raise UsageError for a run that has not finished."""
        from riftcli.runs.reader import read_report

        return read_report(self.path)

    @property
    def metrics(self) -> dict[str, float | None]:
        """Name -> value on the test split; None where it is undefined (`report` says why)."""
        return {name: entry["value"] for name, entry in self.report["metrics"].items()}

    @property
    def log(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl: every step and every evaluation."""
        from riftcli.runs.reader import read_rows

        return read_rows(self.path)

    def model(self) -> torch.nn.Module:
        """The finetuned timm model with the kept weights, in eval mode on the CPU; a new one at each call."""
        from riftcli.models.weights import load_saved

        return load_saved(self.path)

    def transform(self) -> Callable[[Image.Image], torch.Tensor]:
        """PIL image -> standardised fp32 tensor (3, H, W): what `model()` was evaluated with."""
        from riftcli.data.images import to_rgb
        from riftcli.data.transforms import EvalTransform

        preprocessing = self._loaded.preprocessing
        steps = EvalTransform(preprocessing)
        return lambda image: preprocessing.normalise(steps(to_rgb(image, "image"))[None])[0]

    def predict(self, images: Any, batch_size: int = 64, device: str = "auto") -> list[dict[str, Any]]:
        """[{"image", "class", "probabilities": {class: p}}, ...], one per image.

        images: paths of images or folders of them, PIL images, or tensors as `transform()` makes them, (3, H, W) or
        (n, 3, H, W); one or a list. `image` is the path, else the position. Multi-label: `class` is the list of labels above
        0.5. Raises UsageError for anything else, and for a model without class names.
        """
        import torch

        from riftcli import dist
        from riftcli.evaluation.predict import decide

        loaded = self._loaded
        if not loaded.classes:
            raise UsageError(f"{self.path}: its folder names no classes (label_names in config.json); nothing to predict")
        names, tensors = self._inputs(images)
        chosen = dist.pick_device(device)
        model = loaded.vit.to(chosen).eval()
        logits = []
        with torch.inference_mode():
            for start in range(0, len(tensors), batch_size):
                batch = torch.stack([tensor() for tensor in tensors[start : start + batch_size]])
                logits.append(model(batch.to(chosen)).cpu())
        answers = []
        for name, (labels, shares) in zip(names, decide(torch.cat(logits), loaded.classes, loaded.task), strict=True):
            answer = labels if loaded.task == "multilabel" else labels[0]
            answers.append({"image": name, "class": answer, "probabilities": shares})
        return answers

    @cached_property
    def _loaded(self) -> Any:
        import torch

        from riftcli.evaluation.candidates import open_run

        return open_run(self.path, []).load(torch.device("cpu"))

    def _inputs(self, images: Any) -> tuple[list[Any], list[Callable[[], torch.Tensor]]]:
        """(what each image is called, how to make its tensor), of whatever kinds `predict` was given."""
        import torch
        from PIL import Image

        if isinstance(images, torch.Tensor):
            images = list(images[None] if images.dim() == 3 else images)
        elif isinstance(images, str | PathLike | Image.Image):
            images = [images]
        if not isinstance(images, Sequence) or len(images) == 0:
            raise UsageError(f"predict: expected paths, PIL images or tensors, got {type(images).__name__}; give at least one")
        transform, size = self.transform(), self._loaded.preprocessing.input_size
        names: list[Any] = []
        tensors: list[Callable[[], torch.Tensor]] = []
        for i, image in enumerate(images):
            if isinstance(image, str | PathLike):
                found, readers = self._files(Path(image), transform)
                names += found
                tensors += readers
                continue
            names.append(i)
            if isinstance(image, Image.Image):
                tensors.append(partial(transform, image))
            elif isinstance(image, torch.Tensor) and tuple(image.shape) == tuple(size):
                tensors.append(image.float)
            else:
                what = f"a tensor of shape {tuple(image.shape)}" if isinstance(image, torch.Tensor) else type(image).__name__
                raise UsageError(f"predict: image {i} is {what}; expected a path, a PIL image or a tensor {tuple(size)}")
        return names, tensors

    def _files(self, path: Path, transform: Any) -> tuple[list[str], list[Callable[[], torch.Tensor]]]:
        """An image, or all of a folder, read as the run reads its own."""
        from riftcli.data.image_files import image_split
        from riftcli.evaluation.candidates import open_run

        split = image_split([path], open_run(self.path, []).recipe.input)
        return split.ids, [partial(lambda i: transform(split.read(i)), i) for i in range(len(split))]
