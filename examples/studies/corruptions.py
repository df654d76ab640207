"""The common corruptions (Hendrycks and Dietterich, arXiv 1903.12261) of a data set's test images, as a picture.

    python examples/studies/corruptions.py [--data fashion-mnist] [--folder FOLDER] [--first 0] [--seed 0] [--out runs]

Each row is one test image: as it is, and at severity 1 to 5. Leaves corruptions.png and corruptions.pdf.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor

from regrow.app.report import style
from regrow.data import CORRUPTIONS, MISSING, corrupt, datasets

NAMES = [name for name in CORRUPTIONS if name not in MISSING]


def strip(image: Tensor, name: str, seed: int, place: int) -> Tensor:
    """`image` [C, H, W] and its five corruptions side by side, white between them, [H, 6 W + gaps, C]."""
    row = [image, *(corrupt(image[None], name, level, seed, start=place)[0] for level in range(1, 6))]
    gap = torch.full((len(image), image.shape[1], max(1, image.shape[2] // 12)), 255, dtype=torch.uint8)
    parts = [part for one in row for part in (one, gap)][:-1]
    return torch.cat(parts, dim=2).permute(1, 2, 0)


def draw(images: Tensor, first: int, seed: int, out: Path) -> None:
    """One row for each corruption, in two columns."""
    half = -(-len(NAMES) // 2)
    figure = style.Figure(figsize=(13, 0.9 * half + 0.7), layout="constrained")
    figure.suptitle("Common corruptions: the image, and severity 1 to 5", fontweight="bold")
    axes = figure.subplots(half, 2).T.flatten()
    for number, (name, axis) in enumerate(zip(NAMES, axes, strict=False)):
        row = strip(images[number], name, seed, first + number)
        axis.imshow(row.expand(-1, -1, 3), interpolation="nearest")
        axis.set_ylabel(f"{name}\n({CORRUPTIONS[name]})", rotation=0, ha="right", va="center")
    for axis in axes:
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
    for ending in ("png", "pdf"):
        print(style.save(figure, out / f"corruptions.{ending}"))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", choices=list(datasets()), default="fashion-mnist")
    parser.add_argument("--folder", help="of the data set, where it is not found by itself")
    parser.add_argument("--first", type=int, default=0, help="number of the test image in the first row")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs"))
    options = parser.parse_args()
    data = datasets()[options.data].load(**({"folder": options.folder} if options.folder else {}))
    last = len(data.test_inputs) - len(NAMES)
    if not 0 <= options.first <= last:
        parser.error(f"--first must be in 0 .. {last}, got {options.first}")
    options.out.mkdir(parents=True, exist_ok=True)
    images = data.test_inputs[options.first : options.first + len(NAMES)]
    draw(data.in_bytes(images), options.first, options.seed, options.out)


if __name__ == "__main__":
    main()
