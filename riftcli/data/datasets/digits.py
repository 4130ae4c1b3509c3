"""scikit-learn's handwritten digits: the downstream task of the demo."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from riftcli.data.split import Split
from riftcli.protocols import Task


@dataclass(frozen=True)
class Digits:
    """1,797 grey 8 x 8 images of handwritten digits in 10 classes, shipped inside scikit-learn: nothing to download.

    Splits: train (1,297) and test (500), stratified with a fixed seed.
    """

    known_task: ClassVar[Task] = "multiclass"

    def load(self, split: str) -> Split:
        """One of the two splits."""
        import numpy as np
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split

        from riftcli.data.folders import check_split
        from riftcli.data.images import ArrayReader

        check_split("digits", split, ["train", "test"])
        bunch: Any = load_digits()
        index = np.arange(len(bunch.target))
        train, test = train_test_split(index, test_size=500, random_state=0, stratify=bunch.target)
        chosen = np.sort(train if split == "train" else test)
        images = (bunch.images[chosen] * (255 / 16)).round().astype("uint8")  # (N, 8, 8), values 0..16
        return Split(
            name=split,
            ids=[f"digits-{i:04d}" for i in chosen],
            targets=bunch.target[chosen].astype("int64"),
            classes=[str(digit) for digit in range(10)],
            read=ArrayReader(images),
        )
