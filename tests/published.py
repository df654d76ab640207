"""Small data sets in the exact formats that the papers' data is published in."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Bytes = NDArray[np.uint8]


def cifar_images(count: int, seed: int = 0) -> Bytes:
    """Noise, uint8 [count, 3072]; beyond 500 images it repeats, so that full sets are made in no time."""
    block = np.random.default_rng(seed).integers(0, 256, (min(count, 500), 3072), dtype=np.uint8)
    return np.resize(block, (count, 3072))


def cifar_labels(count: int, classes: int, seed: int = 0) -> Bytes:
    return np.random.default_rng(seed).integers(0, classes, count, dtype=np.uint8)


def binary(images: Bytes, *labels: Bytes) -> bytes:
    """A file of CIFAR's binary version: a record is its label bytes, coarse before fine, and 3,072 pixels."""
    return np.concatenate([*(column[:, None] for column in labels), images], axis=1).tobytes()


def write_cifar10(folder: Path, count: int = 10_000) -> tuple[list[Bytes], list[Bytes]]:
    """``data_batch_1.bin`` to ``data_batch_5.bin`` and ``test_batch.bin``; images and labels by file."""
    folder.mkdir(parents=True, exist_ok=True)
    names = [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]
    images = [cifar_images(count, seed) for seed in range(6)]
    labels = [cifar_labels(count, 10, seed) for seed in range(6)]
    for name, some, theirs in zip(names, images, labels, strict=True):
        (folder / name).write_bytes(binary(some, theirs))
    return images, labels


def write_cifar100(folder: Path, train: int = 50_000, test: int = 10_000) -> dict[str, dict[str, Any]]:
    """``train`` and ``test`` of CIFAR-100's Python version; their content."""
    folder.mkdir(parents=True, exist_ok=True)
    written = {}
    for seed, (name, count) in enumerate((("train", train), ("test", test))):
        content = {
            "filenames": [f"image_{i % 500:06}.png" for i in range(count)],
            "batch_label": f"{name}ing batch 1 of 1",
            "fine_labels": cifar_labels(count, 100, seed).tolist(),
            "coarse_labels": cifar_labels(count, 20, seed).tolist(),
            "data": cifar_images(count, seed),
        }
        (folder / name).write_bytes(python2_pickle(content))
        written[name] = content
    return written


def python2_pickle(content: dict[str, Any]) -> bytes:
    """`content` as Python 2's cPickle writes it with protocol 2, numpy's arrays included.

    CIFAR's Python files are such pickles; no pickler of Python 3 writes the opcodes of Python 2's byte strings.
    """
    memo = iter(range(1, 1 << 31))

    def put() -> bytes:
        number = next(memo)
        return b"q" + bytes([number]) if number < 256 else b"r" + struct.pack("<I", number)

    def text(value: bytes) -> bytes:
        short = b"U" + bytes([len(value)]) if len(value) < 256 else b"T" + struct.pack("<i", len(value))
        return short + value + put()

    def number(value: int) -> bytes:
        if 0 <= value < 256:
            return b"K" + bytes([value])
        return b"M" + struct.pack("<H", value) if 0 <= value < 65536 else b"J" + struct.pack("<i", value)

    def items(values: Sequence[Any]) -> bytes:
        head = b"]" + put()
        parts = [b"(" + b"".join(map(one, values[i : i + 1000])) + b"e" for i in range(0, len(values), 1000)]
        return head + b"".join(parts)

    def array(value: Bytes) -> bytes:
        empty = b"cnumpy.core.multiarray\n_reconstruct\n" + put() + b"cnumpy\nndarray\n" + put()
        empty += b"K\x00\x85" + put() + text(b"b") + b"\x87" + put() + b"R" + put()
        kind = b"cnumpy\ndtype\n" + put() + text(b"u1") + b"K\x00K\x01\x87" + put() + b"R" + put()
        kind += b"(K\x03" + text(b"|") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00t" + put() + b"b"
        shape = b"".join(map(number, value.shape)) + b"\x86" + put()
        return empty + b"(K\x01" + shape + kind + b"\x89" + text(value.tobytes()) + b"t" + put() + b"b"

    def one(value: Any) -> bytes:
        if isinstance(value, int):
            return number(value)
        if isinstance(value, str):
            return text(value.encode())
        return items(value) if isinstance(value, list) else array(value)

    head = b"\x80\x02}" + put() + b"("
    return head + b"".join(text(key.encode()) + one(value) for key, value in content.items()) + b"u."


def write_images(
    root: Path,
    classes: Sequence[str] = ("cat", "dog", "eel"),
    train: int = 4,
    test: int = 2,
    sizes: Sequence[tuple[int, int]] = ((8, 8),),
    test_name: str = "test",
) -> dict[str, Bytes]:
    """``train/<class>/*`` and ``test/<class>/*``: PNG files, and every other one a JPEG; the PNG's pixels by path."""
    random = np.random.default_rng(0)
    written = {}
    for split, count in (("train", train), (test_name, test)):
        for name in classes:
            (root / split / name).mkdir(parents=True, exist_ok=True)
            for i in range(count):
                width, height = sizes[i % len(sizes)]
                pixels = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
                path = root / split / name / f"{i:04}.{'JPEG' if i % 2 else 'png'}"
                Image.fromarray(pixels).save(path, quality=95) if i % 2 else Image.fromarray(pixels).save(
                    path
                )
                if not i % 2:
                    written[str(path.relative_to(root))] = pixels
    return written
