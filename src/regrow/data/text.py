"""Text by bytes, characters or words: what comes after each of them is to be predicted."""

from __future__ import annotations

import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from regrow._places import cache
from regrow.arguments import require_count, require_flag, require_path, require_text
from regrow.data.dataset import Dataset
from regrow.data.packed import read_packed
from regrow.data.vocabulary import (
    BYTES,
    UNKNOWN,
    Vocabulary,
    read_symbols,
    require_unit,
    with_vocabulary,
)
from regrow.errors import RegrowValueError

_GCIDE = Path("/usr/share/dictd/gcide.dict.dz")


@dataclass(frozen=True)
class Text(Dataset):
    """Windows of a text, in its order. Inputs and targets [N, T] share the text's memory, the targets one symbol
    further on.

    Args:
        validation_inputs, validation_targets: of the part for validation.
        vocabulary: what the numbers stand for.
        streams: whether a batch is windows of as many places of the text, and the next batch those that come after
            them, so that a network can carry its state from batch to batch; else windows are shuffled.
    """

    validation_inputs: Tensor | None = None
    validation_targets: Tensor | None = None
    vocabulary: Vocabulary = BYTES
    streams: bool = False

    def prepare(self, inputs: Tensor) -> Tensor:
        """Convert symbols to int64 [B, T]."""
        return inputs.long()

    def unknown(self) -> dict[str, float]:
        """Return the share of each part's symbols that are not in the vocabulary."""
        number = self.vocabulary.index.get(UNKNOWN)
        parts = {
            "train": self.train_targets,
            "validation": self.validation_targets,
            "test": self.test_targets,
        }
        return {
            name: 0.0 if number is None else int((part == number).sum()) / part.numel()
            for name, part in parts.items()
            if part is not None
        }


def text(
    path: str,
    length: int = 128,
    pattern: str = "*",
    limit: int | None = None,
    unit: str = "bytes",
    vocabulary: int | None = None,
    streams: bool = False,
) -> Text:
    """Return the text of a file, or of all files of a folder in the order of their names; ``.gz`` and ``.dz`` are
    unpacked.

    The first 90% train, the next 5% validate, the last 5% test.

    Args:
        path: the file or folder; ``~`` is the home directory.
        length: symbols of one example; in streams, those through which gradients go back.
        pattern: which files of a folder, for example ``*.txt``; those in folders inside it too.
        limit: take only so many symbols, from the beginning. Default: all.
        unit: what the symbols are: ``bytes``, of which there are 256; ``characters`` of UTF-8; or ``words``, between
            white space, and the ends of lines.
        vocabulary: so many different characters or words, the most frequent, ``<unk>`` among them for all others.
            Default: the characters of the text, or the words of its training part and ``<unk>``.
        streams: batches of places that move on through the text together, and a state that is carried; else windows
            are shuffled.

    Returns:
        Examples [N, length] of consecutive symbols, with the size of the vocabulary as `classes`.

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
    return _by_position(place.name, files, length, limit, unit, vocabulary, streams)


def python_source(
    length: int = 128,
    limit: int | None = None,
    unit: str = "bytes",
    vocabulary: int | None = None,
    streams: bool = False,
) -> Text:
    """Load the source code of Python's own standard library: about 11 million characters that need no download.

    It differs with Python's patch version: compare figures within one machine.

    Args:
        length, limit, unit, vocabulary, streams: as of `text`.
    """
    root = Path(sysconfig.get_path("stdlib"))
    out = {"test", "tests", "idlelib", "site-packages", "dist-packages", "__pycache__"}
    files = [file for file in root.rglob("*.py") if out.isdisjoint(file.relative_to(root).parts)]
    if not files:
        raise RegrowValueError(
            f"{root} has no Python source\nName a text of your own with data.name=text data.path=..."
        )
    return _by_position("python-source", sorted(files), length, limit, unit, vocabulary, streams)


def gcide(
    folder: str | None = None,
    length: int = 128,
    limit: int | None = None,
    unit: str = "bytes",
    vocabulary: int | None = None,
    streams: bool = False,
) -> Text:
    """Load Webster's dictionary, GCIDE: 40 million bytes of English.

    Args:
        folder: where ``gcide.dict.dz`` is. Default: the folder of the Debian package dict-gcide, then the user's
            cache, ``$XDG_CACHE_HOME/regrow/gcide``.
        length, limit, unit, vocabulary, streams: as of `text`.

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
            return _by_position("gcide", [path], length, limit, unit, vocabulary, streams)
    raise RegrowValueError(
        f"GCIDE is not in {' or '.join(str(path.parent) for path in places)}\n"
        "Get it on Debian or Ubuntu as root:  apt-get install dict-gcide\n"
        "or without root:  apt-get download dict-gcide && dpkg-deb -x dict-gcide_*.deb unpacked\n"
        f"    && mkdir -p {kept.parent} && mv unpacked{_GCIDE} {kept.parent}\n"
        "or name its folder with `data.folder`."
    )


def _by_position(
    name: str,
    files: Sequence[Path],
    length: int,
    limit: int | None,
    unit: str,
    vocabulary: int | None,
    streams: bool,
) -> Text:
    """Return the text of `files`, one after the other, of which the first 90% train and the last 5% test."""
    require_unit(unit, vocabulary)
    symbols, [stream] = read_symbols([b"".join(map(_read, files))], [name], unit)
    stream = stream[: None if limit is None else require_count("data.limit", limit)]
    least = 20 * (require_count("data.length", length) + 1)
    if len(stream) < least:
        raise RegrowValueError(
            f"the text has {len(stream):,} {unit}, allowed are at least {least:,} for examples of "
            f"`data.length` {length}\nGive a longer text or a smaller length."
        )
    parts = np.split(stream, [len(stream) * 9 // 10, len(stream) * 19 // 20])
    return windows(name, *with_vocabulary(unit, symbols, parts, vocabulary), length, streams)


def windows(name: str, vocabulary: Vocabulary, parts: Sequence[Tensor], length: int, streams: bool) -> Text:
    """Cut a text into examples of `length` symbols; those at the end of a part that fill none are left out.

    Args:
        name: of the text.
        vocabulary: of its numbers.
        parts: those that train, validate and test, [T] each.
        length: symbols of one example.
        streams: see `Text`.

    Raises:
        RegrowValueError: a part that is too short.
    """
    length = require_count("data.length", length)
    for part, what in zip(parts, ("training", "validation", "test"), strict=True):
        if len(part) < length + 1:
            raise RegrowValueError(
                f"the {what} part of {name} has {len(part):,} {vocabulary.unit}, allowed are at least {length + 1:,} "
                f"for examples of `data.length` {length}\nGive a longer text or a smaller length."
            )
    (inputs, targets), (validation, validation_targets), (test, test_targets) = (
        tuple(some.unfold(0, length, length) for some in (part[:-1], part[1:])) for part in parts
    )
    streams = require_flag("data.streams", streams)
    return Text(
        name,
        inputs,
        targets,
        test,
        test_targets,
        len(vocabulary),
        validation_inputs=validation,
        validation_targets=validation_targets,
        vocabulary=vocabulary,
        streams=streams,
    )


def _read(path: Path) -> bytes:
    return read_packed(path, "Fetch the file again, or leave it out.", path.suffix in (".gz", ".dz"))
