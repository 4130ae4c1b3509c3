"""1,000 Fashion-MNIST test images, shipped with riftcli: what the demo's model was pretrained on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from riftcli.assets import ASSETS
from riftcli.data.split import Split
from riftcli.protocols import Task


@dataclass(frozen=True)
class DemoFashion:
    """1,000 Fashion-MNIST test images (100 per class), embedded: the demo's `what did it forget` set.

    The only split is test. Zalando SE, MIT licence.
    """

    known_task: ClassVar[Task] = "multiclass"

    def load(self, split: str) -> Split:
        """The one split."""

        import numpy as np

        from riftcli.data.folders import check_split
        from riftcli.data.images import ArrayReader

        check_split("demo_fashion", split, ["test"])
        with np.load(ASSETS / "fashion_mnist_1000.npz", allow_pickle=False) as archive:
            images, targets, index = archive["images"], archive["targets"], archive["index"]
        return Split(
            name=split,
            ids=[f"fashion-test-{i:05d}" for i in index],
            targets=targets.astype("int64"),
            classes=[
                "T-shirt/top",
                "Trouser",
                "Pullover",
                "Dress",
                "Coat",
                "Sandal",
                "Shirt",
                "Sneaker",
                "Bag",
                "Ankle boot",
            ],
            read=ArrayReader(images),
        )
