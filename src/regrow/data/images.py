"""Folders of images, one folder a class: decoded once, kept as one array file in the user's cache."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from regrow._files import sweep
from regrow._places import cache as user_cache
from regrow.arguments import require_count, require_flag, require_path
from regrow.data.dataset import Dataset, statistics
from regrow.data.decoding import decode, require_file
from regrow.data.waiting import waiting
from regrow.data.whole import ImageFiles
from regrow.errors import RegrowRuntimeError, RegrowValueError
from regrow.ops.compiling import cores

SUFFIXES = (".png", ".jpg", ".jpeg")
TESTS = ("test", "val")
_FORMAT = 1
"""Of the array file; another number makes older files unknown."""
_AGAIN = "Delete the file; it is made again."


@dataclass(frozen=True)
class _Split:
    """The image files of train or test, by class, and the class number of each."""

    files: list[Path]
    targets: list[int]


def image_folder(
    folder: str,
    size: int | None = None,
    channels: int = 3,
    limit: int | None = None,
    cache: str | None = None,
    whole: bool = False,
) -> Dataset:
    """Load the images in ``folder/train/<class>/`` and ``folder/test/<class>/`` (or ``val``): png, jpg or jpeg.

    They are decoded when they are first read, into one array file, which is mapped into memory from then on: a set
    larger than the memory is read from disk batch by batch. The file is named after all that decides its
    content: names, sizes and times of the image files, `size` and `channels`.

    Args:
        folder: the folder; ``~`` is the home directory.
        size: resize the shorter side of each image to so many pixels (bilinear) and cut to the central square.
            Default: as they are, which must be one size.
        channels: 3 for colour, 1 for grey; images of the other kind are converted.
        limit: take only so many training images, evenly spaced over the classes. Default: all.
        cache: the folder of the array file. Default: ``$XDG_CACHE_HOME/regrow/images``.
        whole: leave the training images in their files, from which each batch decodes its own, so that
            ``augment.resized_crop`` cuts parts out of the whole images rather than out of their central squares. Only
            the test images are in the array file then.

    Returns:
        Images in bytes [N, C, H, W], classes numbered in the order of their names; batches are normalised by
        each channel's mean and deviation.

    Raises:
        RegrowValueError: for a folder without these parts, a class that only the test has, a file that is no
            image or is damaged, or images of two sizes where `size` is not given.
        RegrowRuntimeError: where the array file cannot be written.
    """
    root = Path(require_path("data.folder", folder)).expanduser()
    if size is not None:
        size = require_count("data.size", size)
    if (channels := require_count("data.channels", channels, most=3)) == 2:
        raise RegrowValueError(f"`data.channels` must be 1 (grey) or 3 (colour), got {channels}")
    whole = require_flag("data.whole", whole)
    if limit is not None:
        limit = require_count("data.limit", limit)
    if cache is not None:
        require_path("data.cache", cache)
    if whole and size is None:
        raise RegrowValueError(
            "`data.whole` is true without `data.size`, the size of the test images.\nGive `data.size` too."
        )
    _require_name(root.resolve())
    train, test, classes = _list(root)
    if limit is not None:
        every = len(train.files) / min(limit, len(train.files))
        kept = [int(i * every) for i in range(min(limit, len(train.files)))]
        train = _Split([train.files[i] for i in kept], [train.targets[i] for i in kept])
    place = Path(cache).expanduser() if cache is not None else user_cache() / "images"
    files = test.files if whole else [*train.files, *test.files]
    path = place / f"{root.resolve().name}-{_key(root, files, size, channels)}.npy"
    if not path.is_file():
        _decode(files, path, size, channels)
    images = torch.from_numpy(_mapped(path, len(files), size, channels))
    inputs = images[: len(images) - len(test.files)]
    if whole and size is not None:  # as a run sees it, these are a tensor too
        inputs = cast(torch.Tensor, ImageFiles(train.files, size, channels))
    try:
        mean, std = statistics(inputs)
    except RegrowValueError as error:
        raise RegrowValueError(f"{root}: {error}") from error
    return Dataset(
        root.resolve().name,
        inputs,
        torch.tensor(train.targets, device="cpu"),
        images[len(images) - len(test.files) :],
        torch.tensor(test.targets, device="cpu"),
        len(classes),
        mean,
        std,
    )


def _list(root: Path) -> tuple[_Split, _Split, list[str]]:
    """List training and test files, and the classes by number."""
    tests = [root / name for name in TESTS if (root / name).is_dir()]
    if not (root / "train").is_dir() or not tests:
        raise RegrowValueError(
            f"{root} has no folders `train` and `test` (or `val`)\n"
            "Name with `data.folder` a folder that holds train/<class>/*.png (or .jpg) and test/<class>/*.png."
        )
    if len(tests) > 1:
        raise RegrowValueError(f"{root} has both `test` and `val`, allowed is one\nMove the other away.")
    classes = _folders(root / "train")
    if len(classes) < 2:
        raise RegrowValueError(f"{root / 'train'} has {len(classes)} class folders, allowed are at least 2")
    unknown = [name for name in _folders(tests[0]) if name not in classes]
    if unknown:
        raise RegrowValueError(
            f"{tests[0]} has the class `{unknown[0]}`, which {root / 'train'} has not\n"
            f"Its classes are: {', '.join(classes[:20])}{', ...' if len(classes) > 20 else ''}."
        )
    return _split(root / "train", classes, True), _split(tests[0], classes, False), classes


def _split(folder: Path, classes: list[str], all_: bool) -> _Split:
    files: list[Path] = []
    targets: list[int] = []
    for number, name in enumerate(classes):
        inside = folder / name
        entries = _entries(inside) if inside.is_dir() else []
        found = [path for path in entries if path.suffix.lower() in SUFFIXES]
        for path in found:
            require_file(path)
        if not found and all_:
            raise RegrowValueError(f"{inside} has no images, allowed are files {', '.join(SUFFIXES)}")
        files += found
        targets += [number] * len(found)
    if not files:
        raise RegrowValueError(
            f"{folder} has no images, allowed are files {', '.join(SUFFIXES)} in its classes"
        )
    return _Split(files, targets)


def _entries(folder: Path) -> list[Path]:
    """List what lies in `folder`, by name, but for what is hidden.

    Raises:
        RegrowValueError: a folder that cannot be read, or a name that cannot be printed.
    """
    try:
        found = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise RegrowValueError(
            f"cannot read {folder}: {error.strerror}\nMake the folder readable."
        ) from error
    for path in found:
        _require_name(path)
    return found


def _require_name(path: Path) -> None:
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        raise RegrowValueError(
            f"{os.fsencode(path)!r} is a name that is not UTF-8\nRename the file or folder."
        ) from error


def _folders(folder: Path) -> list[str]:
    """Name the folders in `folder`; a link to nothing may be one, and leaving out a class changes the task."""
    entries = _entries(folder)
    for path in entries:
        if path.is_symlink() and not path.exists():
            raise RegrowValueError(f"{path} is a link to nothing\nMend the link, or remove it.")
    return [path.name for path in entries if path.is_dir()]


def _key(root: Path, files: list[Path], size: int | None, channels: int) -> str:
    """Return a digest of all that decides the decoded array."""
    digest = hashlib.sha256(f"{_FORMAT} {size} {channels}".encode())
    for path in files:
        status = path.stat()
        digest.update(f"\0{path.relative_to(root)}\0{status.st_size}\0{status.st_mtime_ns}".encode())
    return digest.hexdigest()[:16]


def _decode(files: list[Path], path: Path, size: int | None, channels: int) -> None:
    """Write the array file at `path`, whole or not at all."""
    first = decode(files[0], size, channels)
    shape = (len(files), *first.shape)
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        sweep(path.parent)
        require_room(path.parent, len(files) * first.nbytes)
        array = np.lib.format.open_memmap(partial, mode="w+", dtype=np.uint8, shape=shape)
        for number, image in enumerate(
            waiting(_images(files, size, channels), len(files), f"decoding to {path}")
        ):
            if image.shape != first.shape:
                raise RegrowValueError(
                    f"{files[number]} has {_pixels(image)} pixels, {files[0]} {_pixels(first)}, allowed is one size\n"
                    f"Resize and cut all of them with `data.size`, for example data.size={min(first.shape[1:])}."
                )
            array[number] = image
        array.flush()
        os.replace(partial, path)
    except OSError as error:
        raise RegrowRuntimeError(
            f"cannot write {path}: {error.strerror or error}\n"
            "Name another folder with `data.cache`, or free some space."
        ) from error
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


def require_room(folder: Path, needed: int) -> None:
    """Refuse to begin what a disk has no room for, `needed` being in bytes.

    Raises:
        RegrowRuntimeError: with what is needed, what is free, and a remedy.
    """
    room = shutil.disk_usage(folder).free
    if needed > room:
        raise RegrowRuntimeError(
            f"the decoded images take {needed / 1e9:,.1f} GB, but {folder} has {room / 1e9:,.1f} GB free\n"
            "Name a folder with room with `data.cache`, or a smaller `data.size`."
        )


def _images(files: list[Path], size: int | None, channels: int) -> Iterator[NDArray[np.uint8]]:
    """Yield the decoded files in order; Pillow decodes outside Python's lock, so threads help."""
    with ThreadPoolExecutor(cores()) as pool:
        for start in range(0, len(files), 512):
            some = files[start : start + 512]
            yield from pool.map(lambda file: decode(file, size, channels), some)


def _mapped(path: Path, count: int, size: int | None, channels: int) -> NDArray[np.uint8]:
    """Return the array file in memory as far as it is looked at; what is written to it stays in this process."""
    try:
        # which reads no other format of numpy's
        array: NDArray[Any] = np.lib.format.open_memmap(path, mode="c")
    except Exception as error:  # numpy raises many kinds for a damaged file
        reason = error.strerror if isinstance(error, OSError) else "it is damaged"
        raise RegrowRuntimeError(f"cannot read {path}: {reason}\n{_AGAIN}") from error
    sides = ["height", "width"] if size is None else [size, size]
    if (
        array.dtype != np.uint8
        or array.ndim != 4
        or array.shape[:2] != (count, channels)
        or (size is not None and array.shape[2:] != (size, size))
        or not array.flags.c_contiguous
    ):
        raise RegrowRuntimeError(
            f"{path} holds {array.dtype} of shape {list(array.shape)}, allowed is uint8 of shape "
            f"[{', '.join(map(str, [count, channels, *sides]))}]\n{_AGAIN}"
        )
    return array


def _pixels(image: NDArray[np.uint8]) -> str:
    return f"{image.shape[2]}x{image.shape[1]}"
