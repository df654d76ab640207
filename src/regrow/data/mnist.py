"""Data sets in MNIST's format: four IDX files in a folder, Fashion-MNIST among them."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import Tensor

from regrow.arguments import require_count, require_flag, require_path
from regrow.data.dataset import Dataset
from regrow.data.idx import read_idx
from regrow.errors import RegrowValueError

_SYSTEM = Path("/usr/share/datasets/fashion-mnist")


def idx(folder: str, classes: int = 10, limit: int | None = None, normalize: bool = True) -> Dataset:
    """Load MNIST-format files in `folder`: ``{train,t10k}-{images-idx3,labels-idx1}-ubyte``, ``.gz`` or not.

    Pixels are scaled to [0, 1] and normalised by the mean and deviation of the training images.

    Args:
        folder: the folder; ``~`` is the home directory.
        classes: labels are 0 .. classes - 1.
        limit: take only so many training images, from the beginning. Default: all.
        normalize: false leaves the pixels in [0, 1].

    Returns:
        Images as float32 [N, 1, H, W].

    Raises:
        RegrowValueError: for a file that is missing or damaged, images of two sizes, labels that are not as
            many as the images or out of range.
    """
    root = Path(require_path("data.folder", folder)).expanduser()
    normalize = require_flag("data.normalize", normalize)
    classes = require_count("data.classes", classes)
    if not root.is_dir():
        raise RegrowValueError(
            f"`data.folder` is not a folder: {root}\nName the folder that holds the four IDX files."
        )
    return _load(root, root.name or "idx", classes, limit, normalize)


def fashion_mnist(folder: str | None = None, limit: int | None = None) -> Dataset:
    """Load Fashion-MNIST, complete: 60,000 + 10,000 grey images 28x28 of clothing, 10 classes.

    Args:
        folder: where its four IDX files are. Default: the folder of the Debian package
            dataset-fashion-mnist, then the user's cache, ``$XDG_CACHE_HOME/regrow/fashion-mnist``.
        limit: take only so many training images, from the beginning. Default: all.

    Returns:
        Images as float32 [N, 1, 28, 28], normalised by the training set's mean and deviation.

    Raises:
        RegrowValueError: where it is in none of these, with how to get it; or as `idx` does.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "regrow" / "fashion-mnist"
    places = (
        [Path(require_path("data.folder", folder)).expanduser()] if folder is not None else [_SYSTEM, cache]
    )
    for place in places:
        if _find(place, "train-images-idx3-ubyte") is not None:
            return _load(place, "fashion-mnist", 10, limit)
    raise RegrowValueError(
        f"Fashion-MNIST is not in {' or '.join(map(str, places))}\n"
        "Get it on Debian or Ubuntu as root:  apt-get install dataset-fashion-mnist\n"
        "or without root:  apt-get download dataset-fashion-mnist && dpkg-deb -x dataset-fashion-mnist_*.deb unpacked\n"
        f"    && mkdir -p {cache.parent} && mv unpacked/usr/share/datasets/fashion-mnist {cache}\n"
        "or name its folder with `data.folder`."
    )


def _load(folder: Path, name: str, classes: int, limit: int | None, normalize: bool = True) -> Dataset:
    train, train_targets = _split(folder, "train", classes)
    test, test_targets = _split(folder, "t10k", classes)
    if train.shape[1:] != test.shape[1:]:
        raise RegrowValueError(
            f"{folder}: training images are {list(train.shape[1:])}, test images {list(test.shape[1:])}; "
            "allowed is one size\nPut the files of one data set into the folder."
        )
    if limit is not None:
        limit = require_count("data.limit", limit)
        train, train_targets = train[:limit], train_targets[:limit]
    # float32 once rather than uint8 converted batch by batch: a batch is then one index_select
    inputs, test_inputs = (images.unsqueeze(1).float().div_(255) for images in (train, test))
    mean, std = float(inputs.mean()), float(inputs.std())
    if not std > 0:
        raise RegrowValueError(f"{folder}: all pixels of the training images have the same value")
    if not normalize:
        mean, std = 0.0, 1.0
    for images in (inputs, test_inputs):
        images.sub_(mean).div_(std)
    return Dataset(name, inputs, train_targets, test_inputs, test_targets, classes, mean, std)


def _split(folder: Path, split: str, classes: int) -> tuple[Tensor, Tensor]:
    """Load images uint8 [N, H, W] and labels int64 [N]."""
    images = read_idx(_path(folder, f"{split}-images-idx3-ubyte"), 3)
    path = _path(folder, f"{split}-labels-idx1-ubyte")
    labels = read_idx(path, 1).to(torch.int64)
    if len(labels) != len(images):
        raise RegrowValueError(
            f"{path} has {len(labels):,} labels, allowed is {len(images):,}, one for each image beside it\n"
            "Put the files of one data set into the folder."
        )
    if (wrong := (labels >= classes).nonzero()).numel():
        first = int(wrong[0])
        raise RegrowValueError(
            f"{path} has label {int(labels[first])} at position {first}, allowed is 0 .. {classes - 1}\n"
            "Say how many classes there are with `data.classes`, or fetch the file again."
        )
    return images, labels


def _path(folder: Path, name: str) -> Path:
    path = _find(folder, name)
    if path is None:
        raise RegrowValueError(
            f"{folder} has no file {name}[.gz]\nName the folder that holds all four IDX files."
        )
    return path


def _find(folder: Path, name: str) -> Path | None:
    """Return the file under its usual names: MNIST's archives are also unpacked as ``train-images.idx3-ubyte``."""
    for stem in (name, name.replace("-idx", ".idx")):
        for path in (folder / stem, folder / f"{stem}.gz"):
            if path.is_file():
                return path
    return None
