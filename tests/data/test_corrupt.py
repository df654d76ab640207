"""Data sets that are damaged, or made to do harm: each has its answer, and nothing runs or fills the memory."""

from __future__ import annotations

import gzip
import os
import pickle
import socket
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from corrupt import answers, check, serve
from PIL import Image
from published import cifar_images, cifar_labels, write_images
from tiny import idx_bytes, images, write_folder

import regrow.data.packed
from regrow.data import cifar10, idx, image_folder, text
from regrow.data.cifar import read_python

Make = Callable[[Path], Any]
PIXELS, LABELS = cifar_images(7), cifar_labels(7, 10)

POINTERS = b"cnumpy\nndarray\n(I8\ntR(I1\n(I8\ntcnumpy\ndtype\n(S'O8'\nI0\nI1\ntR"
DTYPE = b"cnumpy\ndtype\n(S'u1'\nI0\nI1\ntR"
EMPTY = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR"


def python(content: bytes) -> Make:
    return lambda folder: (folder / "data_batch_1").write_bytes(content)


def batch(**changes: Any) -> bytes:
    return pickle.dumps({"labels": LABELS.tolist(), "data": PIXELS} | changes, 4)


def nested(depth: int, key: bool = False) -> bytes:
    """A dictionary of tuples in tuples, so deep that whoever compares, hashes or prints them crashes."""
    deep = b"N" + b"\x85" * depth
    labels = b"X\x06\0\0\0labelsNs"
    return b"}" + (deep + b"Ns." if key else labels + b"X\x04\0\0\0data" + deep + b"s.")


PICKLES = {
    "python-pointers": (python(POINTERS + b"S'AAAAAAAA'\ntb."), r"is not a pickle of arrays: an array|call"),
    "python-objects": (
        python(batch(data=np.array([{}, 1]))),
        r"is not a pickle of arrays: an array of objects",
    ),
    "python-object-array": (
        python(EMPTY + b"(I1\n(I1\ntcnumpy\ndtype\n(S'O8'\nI0\nI1\ntRI00\nS'AAAAAAAA'\ntb."),
        r"an array of objects",
    ),
    "python-dtype-state": (
        python(DTYPE + b"(I3\nS'|'\n(S'u1'\n(I7\ntt(S'a'\ntNI8\nI8\nI63\ntb0."),
        r"which no pickle of arrays holds",
    ),
    "python-dtype-order": (python(DTYPE + b"(I3\nS'?'\ntb."), r"in a state that numpy does not write"),
    "python-array-state": (python(EMPTY + b"(I1\n(I9\nttb."), r"an array in a state that numpy does not wri"),
    "python-array-size": (
        python(EMPTY + b"(I1\n(I9\nt" + DTYPE + b"I00\nS'ab'\ntb."),
        r"with sides that do not fit its bytes",
    ),
    "python-array-negative": (
        python(EMPTY + b"(I1\n(I-1\nI-2\nt" + DTYPE + b"I00\nS'ab'\ntb."),
        r"with sides that do not fit its bytes",
    ),
    "python-array-called": (python(EMPTY + b"(tR."), r"a call that no pickle of arrays holds"),
    "python-new": (python(b"cnumpy\nndarray\n(I9\nt\x81."), r"the operation NEWOBJ, which no pickle of arr"),
    "python-system": (python(b"cos\nsystem\n(S'touch RAN'\ntR."), r"it asks for os.system, allowed are"),
    "python-escapes": (
        python(b"\x8c\x02os\x8c\x08\x1b[31m\nrm\x93."),
        r"it asks for os.\\x1b\[31m\\nrm, allowed",
    ),
    "python-deep": (python(nested(300_000)), r"has `data` that is a tuple, allowed is uint8"),
    "python-deep-key": (python(nested(300_000, key=True)), r"a dictionary whose keys are no words"),
    "python-memo": (python(b"Nr\xff\xff\xff\x7f."), r"holds a NoneType, allowed is a dictionary"),
    "python-promise": (python(b"\x8e" + struct.pack("<Q", 2**60) + b"x."), r"is cut short: its pickle has"),
    "python-number": (python(batch(labels=[10**4000] * 7)), r"`labels` of more than 64 bits"),
    "python-huge": (
        lambda folder: ((folder / "data_batch_1").touch(), os.truncate(folder / "data_batch_1", 2**33)),
        r"has 8,589,934,592 bytes, allowed are at most",
    ),
    "python-pipe": (lambda folder: os.mkfifo(folder / "data_batch_1"), r"CIFAR-10 is not in .*\nDownload"),
}


def idx_set(split: str, content: bytes | None) -> Make:
    def make(folder: Path) -> None:
        write_folder(folder / "idx", train=8, test=4)
        path = folder / "idx" / f"{split}-images-idx3-ubyte.gz"
        path.unlink()
        if content is None:
            os.mkfifo(path)
        else:
            path.write_bytes(content)

    return make


IDX = {
    "idx-empty": (idx_set("train", b""), r"holds 0 bytes, allowed is an IDX header"),
    "idx-text": (idx_set("train", b"<html>not found</html>"), r"begins with bytes 3c 68, allowed is an IDX"),
    "idx-cut": (idx_set("train", gzip.compress(idx_bytes(images(8, 1)[0]))[:-9]), r"its gzip stream has no"),
    "idx-bomb": (
        idx_set("train", gzip.compress(idx_bytes(np.zeros((1, 1, 2**26), np.uint8)))),
        r"bytes and unpacks to more than 16,777,216, which no data set does",
    ),
    "idx-promise": (
        idx_set("train", struct.pack(">I3i", 0x803, 2**31 - 1, 2**31 - 1, 1)),
        r"is cut short: 0",
    ),
    "idx-pipe": (idx_set("train", None), r"has no file train-images-idx3-ubyte"),
    "idx-lengths": (
        idx_set("train", idx_bytes(images(7, 1)[0])),
        r"has 8 labels, allowed is 7, one for each",
    ),
}


def text_set(name: str, content: bytes | None) -> Make:
    def make(folder: Path) -> None:
        (folder / "text").mkdir()
        (folder / "text" / "a.txt").write_bytes(b"words " * 2000)
        if content is None:
            (folder / "text" / name).symlink_to("nowhere")
        else:
            (folder / "text" / name).write_bytes(content)

    return make


TEXTS = {
    "text-bomb": (
        text_set("b.gz", gzip.compress(bytes(2**26))),
        r"b.gz has .* bytes and unpacks to more than",
    ),
    "text-no-gzip": (text_set("b.gz", b"plain"), r"b.gz is damaged: .*, allowed is a whole gzip file"),
    "text-cut": (text_set("b.gz", gzip.compress(bytes(999))[:-4]), r"b.gz is cut short"),
    "text-dangling": (text_set("b.txt", None), r"b.txt is a link to nothing\nMend or remove it"),
}


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width: int, height: int, pixels: bytes = b"") -> bytes:
    """A PNG that claims a size."""
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(pixels))
        + chunk(b"IEND", b"")
    )


POSTSCRIPT = b"""%!PS-Adobe-3.0 EPSF-3.0
%%BoundingBox: 0 0 8 8
(RAN) (w) file closefile
showpage
"""


def image_set(name: str, content: bytes | Make) -> Make:
    """A good folder, and one file that is not."""

    def make(folder: Path) -> None:
        write_images(folder / "animals")
        path = folder / "animals" / "train" / "cat" / name
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            content(path)

    return make


def bound(path: Path) -> None:
    here = Path.cwd()
    os.chdir(path.parent)  # a socket's path is short
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(path.name)
    os.chdir(here)


def saved(format_: str) -> Make:
    return lambda path: Image.new("RGB", (8, 8)).save(path, format_)


IMAGES = {
    "image-postscript": (
        image_set("x.png", POSTSCRIPT),
        r"x.png cannot be decoded: it is neither a PNG nor a J",
    ),
    "image-tiff": (
        image_set("x.jpg", saved("TIFF")),
        r"x.jpg cannot be decoded: it is neither a PNG nor a J",
    ),
    "image-gif": (image_set("x.jpeg", saved("GIF")), r"x.jpeg cannot be decoded: it is neither a PNG nor a"),
    "image-empty": (image_set("x.png", b""), r"x.png cannot be decoded: it is neither a PNG nor a JPEG"),
    "image-cut": (image_set("x.png", png(8, 8, bytes(20))), r"x.png cannot be decoded: .*\nFetch the file"),
    "image-bomb": (
        image_set("x.png", png(50_000, 50_000)),
        r"x.png has too many pixels, allowed are at most",
    ),
    "image-large": (
        image_set("x.png", png(10_000, 9_000)),
        r"x.png of 10000x9000 pixels has too many pixels, allowed are at most",
    ),
    "image-line": (image_set("x.png", png(1, 80_000_000)), r"x.png of 1x80000000 pixels has too many pixels"),
    "image-pipe": (image_set("x.png", os.mkfifo), r"x.png is a pipe, allowed are files\nMove it out"),
    "image-socket": (image_set("x.png", bound), r"x.png is a socket, allowed are files\nMove it out"),
    "image-folder": (image_set("x.png", Path.mkdir), r"x.png is a folder, allowed are files\nMove it out"),
    "image-dangling": (
        image_set("x.png", lambda p: p.symlink_to("nowhere")),
        r"x.png is a link to nothing\nMend",
    ),
    "image-circle": (image_set("x.png", lambda p: p.symlink_to(p.name)), r"x.png is a link to nothing\nMend"),
    "image-name": (
        image_set("x", lambda p: (p.parent / os.fsdecode(b"caf\xe9.png")).write_bytes(b"")),
        r"caf\\xe9.png' is a name that is not UTF-8\nRename",
    ),
    "image-class-dangling": (
        image_set("x", lambda p: (p.parents[1] / "fox").symlink_to("nowhere")),
        r"train/fox is a link to nothing\nMend the link",
    ),
}


def cached(change: Make) -> Make:
    """A folder that was read once, and an array file that was changed since."""

    def make(folder: Path) -> None:
        write_images(folder / "animals")
        image_folder(str(folder / "animals"), cache=str(folder / "kept"))
        (array,) = (folder / "kept").iterdir()
        change(array)

    return make


def as_array(array: Any, **options: Any) -> Make:
    def write(path: Path) -> None:
        with path.open("wb") as stream:
            np.save(stream, array, **options)

    return cached(write)


def zipped(path: Path) -> None:
    with path.open("wb") as stream:
        np.savez(stream, np.zeros(3))


CACHES = {
    "cache-float": (
        as_array(np.zeros((18, 3, 8, 8), np.float32)),
        r"holds float32 of shape \[18, 3, 8, 8\], allo",
    ),
    "cache-shape": (
        as_array(np.zeros((18, 8, 8, 3), np.uint8)),
        r"\[18, 8, 8, 3\], allowed is uint8 of shape \[18",
    ),
    "cache-count": (as_array(np.zeros((17, 3, 8, 8), np.uint8)), r"holds uint8 of shape \[17, 3, 8, 8\]"),
    "cache-sides": (as_array(np.zeros((18, 3), np.uint8)), r"holds uint8 of shape \[18, 3\]"),
    "cache-columns": (
        as_array(np.zeros((18, 3, 8, 8), np.uint8, "F")),
        r"holds uint8 of shape .*\nDelete the fi",
    ),
    "cache-objects": (
        as_array(np.array([{}]), allow_pickle=True),
        r"cannot read .*: it is damaged\nDelete the file",
    ),
    "cache-pickle": (
        cached(lambda path: path.write_bytes(b"cos\nsystem\n(S'touch RAN'\ntR.")),
        r"cannot read .*: it is damaged\nDelete the file",
    ),
    "cache-zip": (cached(zipped), r"cannot read .*: it is damaged\nDelete the file; it is made again"),
    "cache-empty": (
        cached(lambda path: path.write_bytes(b"")),
        r"cannot read .*: it is damaged\nDelete the file",
    ),
}

CASES = {**PICKLES, **IDX, **TEXTS, **IMAGES, **CACHES}


def read(folder: Path) -> None:
    """Read the data set in `folder` as its name says."""
    kind = folder.name.partition("-")[0]
    if folder.name == "python-pipe":
        cifar10(str(folder))
    elif kind == "python":
        read_python(folder / "data_batch_1", ["labels"], 7 if "deep" not in folder.name else 1000)
    elif kind == "idx":
        idx(str(folder / "idx"), classes=4)
    elif kind == "text":
        text(str(folder / "text"), length=8)
    elif kind == "image":
        image_folder(str(folder / "animals"), size=16 if folder.name == "image-line" else None)
    else:
        image_folder(str(folder / "animals"), cache=str(folder / "kept"))


@pytest.fixture(scope="module")
def answered(tmp_path_factory):
    made = {name: make for name, (make, _) in CASES.items()}
    return answers(__file__, made, tmp_path_factory.mktemp("corrupt"))


@pytest.mark.parametrize("case", CASES)
def test_a_data_set_that_is_corrupt_has_its_answer(answered, case):
    check(answered.get(case), CASES[case][1])


if __name__ == "__main__":
    regrow.data.packed.LARGE = 2**24
    serve(read)
