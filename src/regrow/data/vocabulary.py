"""Vocabularies: the symbols of a text, bytes, characters or words, and the numbers that stand for them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from regrow.arguments import require_choice, require_count
from regrow.errors import RegrowValueError

UNITS = ("bytes", "characters", "words")
UNKNOWN = "<unk>"
"""Stands for every symbol that is not in a vocabulary with it."""
END = "<eos>"
"""The word that ends a line."""

Numbers = NDArray[Any]
_CODES = 0x110000  # of Unicode


@dataclass(frozen=True)
class Vocabulary:
    """The symbols of a text; ``len()`` is their count.

    Args:
        unit: ``bytes``, all 256 of them; ``characters``; or ``words``, between white space, with ``<eos>`` at the end
            of each line.
        symbols: of characters or words, the most frequent first; none for bytes.
    """

    unit: str = "bytes"
    symbols: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.symbols) or 256

    @cached_property
    def index(self) -> dict[str, int]:
        """The number of each symbol."""
        return {symbol: number for number, symbol in enumerate(self.symbols)}

    def encode(self, text: str, name: str = "text") -> Tensor:
        """Return the numbers of `text`, int64 [T]; what is unknown is ``<unk>`` where the vocabulary has that.

        Args:
            text: to be encoded.
            name: of the argument, for the message.

        Raises:
            RegrowValueError: a symbol that the vocabulary does not have.
        """
        if self.unit == "bytes":
            return torch.tensor(list(text.encode()), dtype=torch.int64, device="cpu")
        listed = list(_symbols(text, self.unit))
        unknown = self.index.get(UNKNOWN)
        for symbol in listed:
            if symbol not in self.index and unknown is None:
                raise RegrowValueError(
                    f"`{name}` has {symbol!r}, allowed are the {len(self)} {self.unit} of the vocabulary\n"
                    "Leave it out, or train on a text that has it."
                )
        numbers = [self.index.get(symbol, unknown) for symbol in listed]
        return torch.tensor(numbers, dtype=torch.int64, device="cpu")

    def decode(self, numbers: Tensor) -> str:
        """Return the text of `numbers` [T]; bytes that are no UTF-8 and unknown characters become U+FFFD."""
        listed = numbers.tolist()
        if self.unit == "bytes":
            return bytes(listed).decode(errors="replace")
        symbols = [self.symbols[number] for number in listed]
        if self.unit == "characters":
            return "".join("\ufffd" if symbol == UNKNOWN else symbol for symbol in symbols)
        lines = " ".join(symbols).split(END)
        return "\n".join(line.strip(" ") for line in lines)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON."""
        return {"unit": self.unit, "symbols": list(self.symbols)}

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> Vocabulary:
        """Read what `to_dict` returned."""
        return cls(state["unit"], tuple(state["symbols"]))


BYTES = Vocabulary()


def require_unit(unit: object, vocabulary: object) -> None:
    """Check the options `data.unit` and `data.vocabulary`.

    Raises:
        RegrowValueError: another unit, a vocabulary of less than two symbols, or one of bytes.
    """
    require_choice("data.unit", unit, UNITS)
    if vocabulary is not None:
        require_count("data.vocabulary", vocabulary, least=2)
        if unit == "bytes":
            raise RegrowValueError(
                f"`data.vocabulary` is {vocabulary}, but `data.unit` is bytes, which are always 256\n"
                "Leave it out, or give `data.unit=characters` or `data.unit=words`."
            )


def read_symbols(
    contents: Sequence[bytes],
    names: Sequence[str],
    unit: str,
    spelled: Callable[[str], str] = lambda text: text,
) -> tuple[list[str], list[Numbers]]:
    """List the different symbols of `contents`, none for bytes, and write each of them in numbers [T].

    Args:
        contents: of files.
        names: of `contents`, for messages.
        unit: of `UNITS`.
        spelled: undoes the spelling of a text of characters or words.

    Raises:
        RegrowValueError: characters or words that are not UTF-8, naming the first byte that is not.
    """
    if unit == "bytes":
        return [], [np.frombuffer(content, np.uint8) for content in contents]
    texts = [spelled(_decoded(*one)) for one in zip(contents, names, strict=True)]
    return numbered(texts, unit)


def _decoded(content: bytes, name: str) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise RegrowValueError(
            f"text {name} is not UTF-8: byte {error.start:,} is 0x{content[error.start]:02x}\n"
            "Convert it to UTF-8, or read it with `data.unit=bytes`."
        ) from error


def numbered(texts: Sequence[str], unit: str) -> tuple[list[str], list[Numbers]]:
    """List the different symbols of `texts`, and write each text in their numbers, int32 [T]."""
    if unit == "words":
        index: dict[str, int] = {}
        words = (
            (index.setdefault(word, len(index)) for word in _symbols(text, unit)) for text in texts
        )  # numbers are in the order in which the words come first
        found = [np.fromiter(some, np.int32) for some in words]
        return list(index), found
    codes = [np.frombuffer(text.encode("utf-32-le"), np.uint32) for text in texts]
    seen = np.zeros(_CODES, bool)
    for some in codes:
        seen[some] = True
    distinct = np.flatnonzero(seen)
    table = np.zeros(_CODES, np.int32)
    table[distinct] = np.arange(len(distinct))
    return [chr(code) for code in distinct], [table[some] for some in codes]


def with_vocabulary(
    unit: str, symbols: Sequence[str], parts: Sequence[Numbers], most: int | None
) -> tuple[Vocabulary, list[Tensor]]:
    """Choose the vocabulary of a text, and write its parts in it.

    Words are those of the first part, which trains, and ``<unk>``; characters are those of all parts; bytes are as
    they are.

    Args:
        unit: of `UNITS`.
        symbols: all that there are.
        parts: of the text, in numbers of `symbols`; the first trains.
        most: keep only so many symbols, the most frequent, ``<unk>`` among them, for all others. Default: all.

    Returns:
        The vocabulary, and the parts as uint8 or int32 [T].
    """
    if unit == "bytes":
        return BYTES, [torch.from_numpy(part.copy()) for part in parts]
    each = [np.bincount(part, minlength=len(symbols)) for part in parts]
    counts, everywhere = each[0], np.sum(each, 0)
    is_open = unit == "words" or (most is not None and most < np.count_nonzero(everywhere))
    known = np.flatnonzero(counts if is_open else everywhere).tolist()
    known.sort(key=lambda number: (-counts[number], symbols[number]))
    known = known[:most]
    if is_open and UNKNOWN not in {symbols[number] for number in known}:
        known = known[: None if most is None else most - 1]
        listed = (*(symbols[number] for number in known), UNKNOWN)
    else:
        listed = tuple(symbols[number] for number in known)
    vocabulary = Vocabulary(unit, listed)
    kind = np.uint8 if len(listed) <= 256 else np.int32
    table = np.full(len(symbols), vocabulary.index.get(UNKNOWN, 0), kind)
    table[known] = np.arange(len(known))
    return vocabulary, [torch.from_numpy(table[part]) for part in parts]


def _symbols(text: str, unit: str) -> Iterator[str]:
    """Yield the characters of `text`, or its words, with the end of each line that a line feed ends."""
    if unit == "characters":
        yield from text
        return
    start = 0
    while start < len(text):  # line by line: the words of a large text do not fit into memory at once
        end = text.find("\n", start)
        yield from text[start : end if end >= 0 else len(text)].split()
        if end < 0:
            return
        yield END
        start = end + 1
