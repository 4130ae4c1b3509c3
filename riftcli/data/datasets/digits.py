"""scikit-learn's handwritten digits: the downstream task of the demo."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from riftcli.assets import ASSETS
from riftcli.data.split import Split
from riftcli.protocols import Task


@dataclass(frozen=True)
class Digits:
    """1,797 grey 8 x 8 images of handwritten digits in 10 classes, scikit-learn's, embedded: nothing to download.

    Splits: train (1,297) and test (500), stratified with a fixed seed.
    """

    known_task: ClassVar[Task] = "multiclass"

    def load(self, split: str) -> Split:
        """One of the two splits."""
        import numpy as np

        from riftcli.data.folders import check_split
        from riftcli.data.images import ArrayReader

        check_split("digits", split, ["train", "test"])
        # embedded: a run needs scikit-learn for nothing else, and importing it takes most of what importing torch does
        with np.load(ASSETS / "digits.npz", allow_pickle=False) as archive:
            images, targets, test = archive["images"], archive["targets"], archive["test"]
        chosen = np.flatnonzero(test == (split == "test"))
        return Split(
            name=split,
            ids=[f"digits-{i:04d}" for i in chosen],
            targets=targets[chosen].astype("int64"),
            classes=[str(digit) for digit in range(10)],
            read=ArrayReader((images[chosen] * (255 / 16)).round().astype("uint8")),  # (N, 8, 8), values 0..16
        )
