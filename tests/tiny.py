"""A data set and a recipe of seconds, and the command line in this process."""

from __future__ import annotations

import gzip
import os
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from regrow.app.cli.main import main

SRC = str(Path(__file__).parents[1] / "src")
# where regrow is not installed, processes that the tests start find it as the tests do
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join([SRC, os.environ.get("PYTHONPATH", "")])}


FASHION_MNIST = (
    Path("/usr/share/datasets/fashion-mnist"),
    Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "regrow" / "fashion-mnist",
)
NEEDS_FASHION_MNIST = pytest.mark.skipif(
    not any(folder.is_dir() for folder in FASHION_MNIST), reason="dataset-fashion-mnist is not here"
)


def idx_bytes(array: NDArray[np.uint8]) -> bytes:
    """`array` in the published format: magic number 0x00000803 for images, 0x00000801 for labels."""
    return struct.pack(f">I{array.ndim}i", 0x800 + array.ndim, *array.shape) + array.tobytes()


def images(count: int, seed: int, size: int = 8) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Noise in which one of four inner blocks is bright: the class."""
    random = np.random.default_rng(seed)
    pixels = random.integers(0, 120, (count, size, size), dtype=np.uint8)
    labels = random.integers(0, 4, count, dtype=np.uint8)
    pixels[:, :1] = 0  # a border without information
    for image, label in zip(pixels, labels, strict=True):
        row, column = 2 + 2 * (label // 2), 2 + 2 * (label % 2)
        image[row : row + 2, column : column + 2] += 100
    return pixels, labels


def write_folder(folder: Path, train: int = 200, test: int = 60, size: int = 8) -> Path:
    """A folder in MNIST's format: training files gzipped, test files plain."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, count, seed in (("train", train, 1), ("t10k", test, 2)):
        pixels, labels = images(count, seed, size)
        for name, array in (("images-idx3", pixels), ("labels-idx1", labels)):
            content = idx_bytes(array)
            if split == "train":
                (folder / f"{split}-{name}-ubyte.gz").write_bytes(gzip.compress(content))
            else:
                (folder / f"{split}-{name}-ubyte").write_bytes(content)
    return folder


def write_recipe(folder: Path) -> Path:
    """The recipe of most tests: 60 steps, an update every 5, a checkpoint every 10."""
    data = write_folder(folder / "images")
    path = folder / "tiny.yaml"
    path.write_text(
        f"""
model: {{name: mlp, inputs: 64, hidden: [32, 16], classes: 4}}
data: {{name: idx, folder: {data}, classes: 4}}
sparsify: {{sparsity: 0.8}}
method: {{name: rigl, update_every: 5}}
optimizer: {{name: SGD, lr: 0.05, momentum: 0.9}}
schedule: cosine
batch_size: 20
steps: 60
log_every: 7
checkpoint_every: 10
evaluate_every: 20
device: cpu
threads: 1
"""
    )
    return path


@dataclass
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str


def cli(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> Ended:
    """``regrow`` with `arguments`, in this process."""
    threads = torch.get_num_threads()
    capsys.readouterr()
    try:
        with pytest.raises(SystemExit) as ended:
            main([str(argument) for argument in arguments])
    finally:
        torch.set_num_threads(threads)
    code = ended.value.code
    return Ended(0 if code is None else int(code), *capsys.readouterr())
