"""Text as bytes: what comes after each of them is to be predicted."""

from __future__ import annotations

import sysconfig
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from regrow._places import cache
from regrow.arguments import require_count, require_path, require_text
from regrow.data.dataset import Dataset
from regrow.data.packed import read_packed
from regrow.errors import RegrowValueError

SYMBOLS = 256
"""Texts are bytes, so every file can be read, and networks of all texts have one shape."""

_GCIDE = Path("/usr/share/dictd/gcide.dict.dz")


@dataclass(frozen=True)
class Text(Dataset):
    """Windows of a text. Inputs and targets [N, T] share the text's memory, the targets one byte further on."""

    def prepare(self, inputs: Tensor) -> Tensor:
        """Convert symbols to int64 [B, T]."""
        return inputs.long()


def text(path: str, length: int = 128, pattern: str = "*", limit: int | None = None) -> Text:
    """Return the bytes of a file, or of all files of a folder in the order of their names; ``.gz`` and ``.dz`` are
    unpacked.

    The first 90% train, the last 5% test; the 5% between them are left for a validation of your own.

    Args:
        path: the file or folder; ``~`` is the home directory.
        length: bytes of one example.
        pattern: which files of a folder, for example ``*.txt``; those in folders inside it too.
        limit: take only so many bytes, from the beginning. Default: all.

    Returns:
        Examples [N, length] of consecutive bytes, 256 classes.

    Raises:
        RegrowValueError: for a path that is not there, a file that cannot be read, or too little text.
    """
    place = Path(require_path("data.path", path)).expanduser()
    require_text("data.pattern", pattern)
    if place.is_dir():
        found = sorted(place.rglob(pattern))
        broken = [file for file in found if file.is_symlink() and not file.exists()]
        if broken:  # in silence, the text would be another one
            raise RegrowValueError(
                f"{broken[0]} is a link to nothing\nMend or remove it, or leave it out with `data.pattern`."
            )
        files = [file for file in found if file.is_file()]
    else:
        files = [place] if place.is_file() else []
    if not files:
        raise RegrowValueError(
            f"`data.path` {place} is neither a file nor a folder with files {pattern}\n"
            "Name a text, or a folder of texts."
        )
    return _windows(place.name, b"".join(map(_read, files)), length, limit)


def python_source(length: int = 128, limit: int | None = None) -> Text:
    """Load the source code of Python's own standard library: about 11 million characters that need no download.

    It differs with Python's patch version: compare figures within one machine.

    Args:
        length: bytes of one example.
        limit: take only so many bytes, from the beginning. Default: all.
    """
    root = Path(sysconfig.get_path("stdlib"))
    out = {"test", "tests", "idlelib", "site-packages", "dist-packages", "__pycache__"}
    files = [file for file in root.rglob("*.py") if out.isdisjoint(file.relative_to(root).parts)]
    if not files:
        raise RegrowValueError(
            f"{root} has no Python source\nName a text of your own with data.name=text data.path=..."
        )
    return _windows("python-source", b"".join(map(_read, sorted(files))), length, limit)


def gcide(folder: str | None = None, length: int = 128, limit: int | None = None) -> Text:
    """Load Webster's dictionary, GCIDE: 40 million bytes of English.

    Args:
        folder: where ``gcide.dict.dz`` is. Default: the folder of the Debian package dict-gcide, then the user's
            cache, ``$XDG_CACHE_HOME/regrow/gcide``.
        length: bytes of one example.
        limit: take only so many bytes, from the beginning. Default: all.

    Raises:
        RegrowValueError: where it is in none of these, with how to get it.
    """
    kept = cache() / "gcide" / _GCIDE.name
    places = (
        [Path(require_path("data.folder", folder)).expanduser() / _GCIDE.name]
        if folder is not None
        else [_GCIDE, kept]
    )
    for path in places:
        if path.is_file():
            return _windows("gcide", _read(path), length, limit)
    raise RegrowValueError(
        f"GCIDE is not in {' or '.join(str(path.parent) for path in places)}\n"
        "Get it on Debian or Ubuntu as root:  apt-get install dict-gcide\n"
        "or without root:  apt-get download dict-gcide && dpkg-deb -x dict-gcide_*.deb unpacked\n"
        f"    && mkdir -p {kept.parent} && mv unpacked{_GCIDE} {kept.parent}\n"
        "or name its folder with `data.folder`."
    )


def _windows(name: str, content: bytes, length: int, limit: int | None) -> Text:
    length = require_count("data.length", length)
    if limit is not None:
        content = content[: require_count("data.limit", limit)]
    stream = torch.from_numpy(np.frombuffer(content, np.uint8).copy())
    train, test = stream[: len(stream) * 9 // 10], stream[len(stream) * 19 // 20 :]
    if len(test) < length + 1:
        raise RegrowValueError(
            f"the text has {len(stream):,} bytes, allowed are at least {20 * (length + 1):,} for examples of "
            f"`data.length` {length}\nGive a longer text or a smaller length."
        )
    inputs, targets, test_inputs, test_targets = (
        part.unfold(0, length, length) for some in (train, test) for part in (some[:-1], some[1:])
    )
    return Text(name, inputs, targets, test_inputs, test_targets, SYMBOLS)


def _read(path: Path) -> bytes:
    return read_packed(path, "Fetch the file again, or leave it out.", path.suffix in (".gz", ".dz"))
