"""RIFT paper Fig. 2: which features of an autoencoder may be turned by a random rotation without losing the image?

python experiments/autoencoder_rotations.py ROOT [--out DIR] [--seeds 3] [--epochs 15]
    ROOT: what torchvision's FashionMNIST reads. About a minute a seed on one CPU core.

An autoencoder of six layers (784-256-256-64-256-256-784) learns to reconstruct. Then the output of one layer is multiplied by a
random orthogonal matrix, and the layers above stay as they are. Two read-outs: the last linear layer as trained, and one that is
fitted again (least squares on training images) to the turned network's last features, as a new head would be. The paper's (a)
turns the encoder's output, (b) the last features; it does not say how its read-out knows of the rotation, so both are here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from figures import axes, options, rotation, spread, write
from torch import nn

WIDTHS = (784, 256, 256, 64, 256, 256)
NAMES = ("encoder 1", "encoder 2", "encoder's output", "decoder 1", "last features")
SHOWN = 6


def load(root: str, count: int, test: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(count, 784) and (test, 784) in [0, 1], fp64."""
    from torchvision.datasets import FashionMNIST

    parts = ((True, count), (False, test))
    return tuple(FashionMNIST(root, train).data[:n].flatten(1).double() / 255 for train, n in parts)  # type: ignore[return-value]


def build(seed: int) -> nn.ModuleList:
    """Five layers with GELU, and the linear read-out."""
    torch.manual_seed(seed)
    return nn.ModuleList(nn.Linear(one, other) for one, other in zip(WIDTHS, (*WIDTHS[1:], 784), strict=True))


def last_features(layers: nn.ModuleList, images: torch.Tensor, turned: int | None, q: torch.Tensor | None) -> torch.Tensor:
    """(n, 784) -> (n, 256); q is applied to the output of layer `turned`."""
    rows = images
    for place, layer in enumerate(layers[:-1]):
        rows = nn.functional.gelu(layer(rows))
        if place == turned:
            rows = rows @ q.to(rows)
    return rows


def train(layers: nn.ModuleList, images: torch.Tensor, epochs: int, seed: int) -> None:
    """Adam at 1e-3, batches of 128, mean squared error."""
    optimizer = torch.optim.Adam(layers.parameters(), lr=1e-3)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        for rows in torch.randperm(len(images), generator=generator).split(128):
            found = layers[-1](last_features(layers, images[rows], None, None))
            loss = (found - images[rows]).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


def fitted(features: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    """The best linear read-out with an offset, ridge 1e-6; (D + 1, 784)."""
    rows = torch.cat([features, torch.ones(len(features), 1, dtype=features.dtype)], 1)
    return torch.linalg.solve(rows.T @ rows + 1e-6 * len(rows) * torch.eye(rows.shape[1], dtype=rows.dtype), rows.T @ images)


def psnr(found: torch.Tensor, images: torch.Tensor) -> float:
    """Peak signal-to-noise ratio of images in [0, 1], in dB."""
    return float(-10 * (found.clamp(0, 1) - images).square().mean().log10())


@torch.no_grad()
def measure(layers: nn.ModuleList, train_images: torch.Tensor, test: torch.Tensor, seed: int) -> tuple[dict[str, Any], list]:
    """PSNR of every place and read-out, and pictures of the first test images: the encoder's output turned with the read-out as
    trained, then every place with the read-out that was fitted again.
    """
    generator = torch.Generator().manual_seed(seed + 100)
    rows: dict[str, Any] = {}
    pictures = [("image", test[:SHOWN])]
    for place in (None, *range(len(NAMES))):
        q = None if place is None else rotation(WIDTHS[place + 1], generator)
        name = "untouched" if place is None else NAMES[place]
        features = last_features(layers, test, place, q)
        readout = fitted(last_features(layers, train_images, place, q), train_images)
        again = features @ readout[:-1] + readout[-1]
        rows[name] = {"as trained": psnr(layers[-1](features), test), "fitted again": psnr(again, test)}
        if name == "encoder's output":
            pictures.insert(1, (f"{name},\nread-out as trained", layers[-1](features)[:SHOWN].clamp(0, 1)))
        pictures.append((name, again[:SHOWN].clamp(0, 1)))
    return rows, pictures


def run(root: str, out: Path, seeds: int, epochs: int, count: int, test: int) -> dict[str, Any]:
    """All seeds; writes the JSON and the figure."""
    images, held = load(root, count, test)
    found = []
    for seed in range(seeds):
        layers = build(seed).double()
        train(layers, images, epochs, seed)
        rows, pictures = measure(layers, images, held, seed)
        found.append(rows)
    psnrs = {name: {way: spread([rows[name][way] for rows in found]) for way in found[0][name]} for name in found[0]}
    settings = {"seeds": seeds, "epochs": epochs, "training images": count, "test images": test, "torch": torch.__version__}
    result = {"psnr_db": psnrs, "settings": settings}
    figure, grid = axes(len(pictures), SHOWN, (SHOWN * 1.1 + 2.2, len(pictures) * 1.1))
    for line, (name, rows) in zip(grid, pictures, strict=True):
        for axis, picture in zip(line, rows, strict=True):
            axis.imshow(picture.reshape(28, 28), cmap="gray", vmin=0, vmax=1)
            axis.axis("off")
        place, _, way = name.partition(",\n")
        mean = "" if name == "image" else f"\n{psnrs[place]['as trained' if way else 'fitted again']['mean']:.1f} dB"
        line[0].text(-6, 14, f"{name}{mean}", ha="right", va="center", fontsize=9)
    figure.suptitle("Turned at ...: reconstructions, by a read-out that was fitted again where nothing else is said", fontsize=10)
    write(out, "autoencoder_rotations", result, figure)
    return result


if __name__ == "__main__":
    parser = options(__doc__, 3)
    parser.add_argument("root")
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--test", type=int, default=1_000)
    given = parser.parse_args()
    run(given.root, given.out, given.seeds, given.epochs, given.count, given.test)
