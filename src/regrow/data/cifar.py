"""CIFAR-10 and CIFAR-100 in the two formats their authors publish, checked as they are read.

The binary format is records of one label byte (CIFAR-100: two, the coarse label first) and 3,072 pixels, 32x32
red, then green, then blue. The Python format is a pickle, written by Python 2, of a dictionary with ``data``, uint8
[N, 3072] in the same order, and lists of labels.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from regrow._places import locate
from regrow.arguments import require_count, require_flag, require_path
from regrow.data.dataset import Dataset, statistics
from regrow.data.pickles import read_pickle
from regrow.errors import RegrowValueError

PIXELS = 3 * 32 * 32
_BESIDE = 1024
"""Bytes that a pickle may take for an image's label and name, and around all of them; pixels as text take two each."""
_REMEDY = "Unpack the published archive again, or name another folder with `data.folder`."


@dataclass(frozen=True)
class _Labels:
    """One kind of label: where it stands in a binary record, what a pickle calls it, how many there are."""

    column: int
    key: str
    classes: int


@dataclass(frozen=True)
class _Layout:
    """One set as it is published: `labels` in the order of a binary record, `files` and images a file by split."""

    title: str
    folders: tuple[str, str]
    labels: tuple[_Labels, ...]
    train: tuple[str, ...]
    test: tuple[str, ...]
    counts: tuple[int, int]
    archives: str


_TEN = _Layout(
    "CIFAR-10",
    ("cifar-10-batches-bin", "cifar-10-batches-py"),
    (_Labels(0, "labels", 10),),
    tuple(f"data_batch_{i}" for i in range(1, 6)),
    ("test_batch",),
    (10_000, 10_000),
    "cifar-10-binary.tar.gz or cifar-10-python.tar.gz",
)
_HUNDRED = _Layout(
    "CIFAR-100",
    ("cifar-100-binary", "cifar-100-python"),
    (_Labels(0, "coarse_labels", 20), _Labels(1, "fine_labels", 100)),
    ("train",),
    ("test",),
    (50_000, 10_000),
    "cifar-100-binary.tar.gz or cifar-100-python.tar.gz",
)


def cifar10(folder: str | None = None, limit: int | None = None, per_image: bool = False) -> Dataset:
    """Load CIFAR-10: 50,000 + 10,000 colour images 32x32, 10 classes.

    Args:
        folder: the unpacked archive, binary or Python. Default: ``cifar-10-batches-bin`` or
            ``cifar-10-batches-py`` in the system's data sets, then in the user's cache.
        limit: take only so many training images, from the beginning. Default: all.
        per_image: normalise each image by its own mean and deviation, as `Dataset` says.

    Returns:
        Images in bytes [N, 3, 32, 32]; batches are normalised by each channel's mean and deviation.

    Raises:
        RegrowValueError: where it is in none of these, with how to get it; for a file that is missing, cut
            short, has bytes to spare, or a label out of range.
    """
    return _load(_TEN, _TEN.labels[0], folder, limit, per_image)


def cifar100(
    folder: str | None = None, coarse: bool = False, limit: int | None = None, per_image: bool = False
) -> Dataset:
    """Load CIFAR-100: 50,000 + 10,000 colour images 32x32, 100 classes, or the 20 `coarse` ones.

    Args:
        folder: the unpacked archive, binary or Python. Default: ``cifar-100-binary`` or ``cifar-100-python`` in
            the system's data sets, then in the user's cache.
        coarse: the 20 superclasses.
        limit: take only so many training images, from the beginning. Default: all.
        per_image: normalise each image by its own mean and deviation, as `Dataset` says.

    Returns:
        As `cifar10`.

    Raises:
        RegrowValueError: as `cifar10`.
    """
    kind = _HUNDRED.labels[0 if require_flag("data.coarse", coarse) else 1]
    return _load(_HUNDRED, kind, folder, limit, per_image)


def read_binary(path: Path, labels: int, count: int) -> tuple[Tensor, Tensor]:
    """Read labels uint8 [count, labels] and images uint8 [count, 3, 32, 32] from the binary file at `path`.

    Raises:
        RegrowValueError: for a file that cannot be read, is cut short or has bytes to spare.
    """
    record = labels + PIXELS
    try:
        off = path.stat().st_size - count * record
        content = np.fromfile(path, np.uint8, count * record)
    except OSError as error:
        raise RegrowValueError(f"cannot read {path}: {error.strerror}\n{_REMEDY}") from error
    if off:
        how = f"has {off:,} bytes to spare" if off > 0 else f"is cut short by {-off:,} bytes"
        raise RegrowValueError(
            f"{path} {how}, allowed is {count * record:,} bytes, {count:,} records of {record:,}\n{_REMEDY}"
        )
    records = torch.from_numpy(content).view(count, record)
    return records[:, :labels], records[:, labels:].view(count, 3, 32, 32)


def read_python(path: Path, keys: list[str], count: int) -> tuple[Tensor, Tensor]:
    """Read labels int64 [count, labels], named by `keys`, and images uint8 [count, 3, 32, 32] from a pickle at `path`.

    Raises:
        RegrowValueError: for a file that cannot be read, is damaged, asks for anything but arrays, or does not
            hold what it should.
    """
    content = read_pickle(path, count * (2 * PIXELS + _BESIDE) + _BESIDE, _REMEDY)
    if not isinstance(content, dict):
        raise _error(path, f"holds a {type(content).__name__}", "a dictionary with `data` and labels")
    for key in ("data", *keys):
        if key not in content:
            others = [other for other in content if other.isidentifier()]
            raise _error(path, f"has no `{key}`, but {', '.join(others)[:200]}", "all of a published batch")
    data = content["data"]
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.shape != (count, PIXELS):
        found = (
            f"{data.dtype} of shape {list(data.shape)}"
            if isinstance(data, np.ndarray)
            else f"that is a {type(data).__name__}"
        )
        raise _error(path, f"has `data` {found}", f"uint8 of shape [{count}, {PIXELS}]")
    for key in keys:
        labels = content[key]
        if not isinstance(labels, list) or not all(type(label) is int for label in labels):
            raise _error(path, f"has `{key}` that are no list of whole numbers", "one label an image")
        if len(labels) != count:
            raise _error(path, f"has {len(labels):,} `{key}`", f"{count:,}, one an image")
        if not all(-(2**63) <= label < 2**63 for label in labels):
            raise _error(path, f"has `{key}` of more than 64 bits", "class numbers")
    columns = torch.tensor([content[key] for key in keys], dtype=torch.int64, device="cpu").T
    return columns, torch.from_numpy(data.copy()).view(count, 3, 32, 32)


def _load(
    layout: _Layout, wanted: _Labels, folder: str | None, limit: int | None, per_image: bool
) -> Dataset:
    per_image = require_flag("data.per_image", per_image)
    if limit is not None:
        limit = require_count("data.limit", limit)
    if folder is not None:
        folder = require_path("data.folder", folder)
    place = locate(
        layout.title,
        folder,
        layout.folders,
        lambda place: any((place / f"{layout.train[0]}{end}").is_file() for end in (".bin", "")),
        f"Download {layout.archives} from www.cs.toronto.edu/~kriz/cifar.html\n"
        f"and unpack it:  mkdir -p {{cache}} && tar xf {layout.archives.split()[0]} -C {{cache}}/..",
    )
    train, train_targets = _split(layout, wanted, place, layout.train, layout.counts[0])
    test, test_targets = _split(layout, wanted, place, layout.test, layout.counts[1])
    if limit is not None:
        train, train_targets = train[:limit], train_targets[:limit]
    mean, std = statistics(train)
    name = layout.title.lower()
    return Dataset(name, train, train_targets, test, test_targets, wanted.classes, mean, std, per_image)


def _split(
    layout: _Layout, wanted: _Labels, place: Path, files: tuple[str, ...], count: int
) -> tuple[Tensor, Tensor]:
    """Read images uint8 [N, 3, 32, 32] and labels int64 [N] from all `files`, `count` each."""
    images = torch.empty(len(files) * count, 3, 32, 32, dtype=torch.uint8, device="cpu")
    targets = torch.empty(len(files) * count, dtype=torch.int64, device="cpu")
    for number, name in enumerate(files):
        part = slice(number * count, (number + 1) * count)
        binary = (place / f"{layout.train[0]}.bin").is_file()
        path = place / (f"{name}.bin" if binary else name)
        if not path.is_file():
            raise RegrowValueError(f"{place} has no file {path.name}\n{_REMEDY}")
        if binary:
            labels, images[part] = read_binary(path, len(layout.labels), count)
        else:
            labels, images[part] = read_python(path, [kind.key for kind in layout.labels], count)
        for kind in layout.labels:
            column = labels[:, kind.column].to(torch.int64)
            if (wrong := ((column < 0) | (column >= kind.classes)).nonzero()).numel():
                first = int(wrong[0])
                raise _error(
                    path,
                    f"has label {int(column[first])} among the {kind.key} at position {first}",
                    f"0 .. {kind.classes - 1}",
                )
            if kind is wanted:
                targets[part] = column
    return images, targets


def _error(path: Path, found: str, allowed: str) -> RegrowValueError:
    return RegrowValueError(f"{path} {found}, allowed is {allowed}\n{_REMEDY}")
