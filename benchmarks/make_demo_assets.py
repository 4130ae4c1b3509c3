"""Make riftcli/assets from a finished `demo_pretrain` run and Fashion-MNIST.

    python benchmarks/make_demo_assets.py --run runs/DEMO_PRETRAIN_RUN --data PATH/TO/FASHION

Writes assets/demo_vit (config.json, model.safetensors in fp16, without head) and assets/fashion_mnist_1000.npz (the first
100 test images of each class). Without options: assets/digits.npz alone, scikit-learn's digits and which of them are test images.
"""

import argparse
import json
from pathlib import Path

import numpy as np
from safetensors.torch import load_file, save_file
from torchvision.datasets import FashionMNIST

ASSETS = Path(__file__).parent.parent / "riftcli" / "assets"


def weights(run: Path) -> None:
    folder = ASSETS / "demo_vit"
    folder.mkdir(parents=True, exist_ok=True)
    config = json.loads((run / "model" / "config.json").read_text())
    config.pop("label_names")
    config["num_classes"] = config["pretrained_cfg"]["num_classes"] = 0
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    tensors = load_file(run / "model" / "model.safetensors")
    backbone = {name: tensor.half() for name, tensor in tensors.items() if not name.startswith("head.")}
    save_file(backbone, folder / "model.safetensors", metadata={"format": "pt"})


def images(data: Path) -> None:
    test = FashionMNIST(data, train=False)
    targets = test.targets.numpy()
    index = np.sort(np.concatenate([np.flatnonzero(targets == label)[:100] for label in range(10)]))
    np.savez_compressed(
        ASSETS / "fashion_mnist_1000.npz",
        images=test.data.numpy()[index],
        targets=targets[index].astype("uint8"),
        index=index.astype("int32"),
    )


def digits() -> None:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    bunch = load_digits()
    _, test = train_test_split(np.arange(len(bunch.target)), test_size=500, random_state=0, stratify=bunch.target)
    chosen = np.zeros(len(bunch.target), dtype=bool)
    chosen[test] = True
    arrays = {"images": bunch.images.astype("uint8"), "targets": bunch.target.astype("uint8"), "test": chosen}
    np.savez_compressed(ASSETS / "digits.npz", **arrays)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--run", type=Path)
    parser.add_argument("--data", type=Path)
    options = parser.parse_args()
    if options.run:
        weights(options.run)
    if options.data:
        images(options.data)
    digits()
