"""Pickles of plain values and numpy arrays, read without running anything.

A pickle is a program for a machine with a stack. This machine has no way to call a function or to make an object of
a class: of the names that a file may hold it knows those that numpy writes for an array, each with checked arguments,
and it makes the array itself, from bytes. What was read is never printed or compared: it may be nested so deep that
either would crash.
"""

from __future__ import annotations

import math
import pickletools
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from regrow.errors import RegrowValueError

_PLAIN = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
    *("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
}
"""Operations that push the value written beside them; text of Python 2 is text."""
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_EMPTY = {"EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_TUPLE": tuple}
_KINDS = "buif"
"""Of numpy's types: booleans, whole and floating-point numbers, which are bytes and nothing else."""

_NAMES = {
    "numpy.core.multiarray _reconstruct": "empty array",
    "numpy._core.multiarray _reconstruct": "empty array",  # its name since numpy 2
    "numpy.core.numeric _frombuffer": "whole array",  # of protocol 5
    "numpy._core.numeric _frombuffer": "whole array",
    "numpy ndarray": "array type",
    "numpy dtype": "number type",
    "_codecs encode": "bytes",  # as Python 3 writes them in an old protocol
}


class _Refused(Exception):
    """What a file asks for and does not get."""


class _Name:
    """A name in a pickle: a word, which cannot be called."""

    def __init__(self, text: str) -> None:
        if text not in _NAMES:
            asked = text.replace(" ", ".").encode("unicode_escape").decode()[:80]
            raise _Refused(f"it asks for {asked}, allowed are numpy arrays")
        self.means = _NAMES[text]


class _Number:
    """A type of numbers; its state says in which order the bytes are."""

    def __init__(self, name: object) -> None:
        if not isinstance(name, str) or len(name) > 8:
            raise _Refused("an array of a type without a name")
        self.type = np.dtype(name)
        if self.type.hasobject:
            raise _Refused("an array of objects")
        if self.type.kind not in _KINDS:
            raise _Refused("an array of a type that is not a number")

    def set(self, state: object) -> None:
        match state:
            case (int(), "<" | ">" | "|" | "=" as order, *_):
                self.type = self.type.newbyteorder(order)
            case _:
                raise _Refused("a type of numbers in a state that numpy does not write")


class _Array:
    """An array, whose state brings its values."""

    values: NDArray[Any] | None = None

    def set(self, state: object) -> None:
        match state:
            case (int(), tuple() as shape, _Number() as kind, int() as by_column, str() | bytes() as content):
                raw = content.encode("latin1") if isinstance(content, str) else content
                self.fill(raw, kind.type, shape, "F" if by_column else "C")
            case _:
                raise _Refused("an array in a state that numpy does not write")

    def fill(self, raw: bytes | bytearray, kind: np.dtype[Any], shape: tuple[Any, ...], order: Any) -> None:
        if not all(type(side) is int and 0 <= side <= len(raw) for side in shape):
            raise _Refused("an array with sides that do not fit its bytes")
        if math.prod(shape) * kind.itemsize != len(raw):
            raise _Refused("an array of another size than its bytes")
        self.values = np.frombuffer(raw, kind).reshape(shape, order=order)


def _made(name: object, arguments: object) -> object:
    """Make what numpy would make of a name and its arguments."""
    match name, arguments:
        case _Name(means="empty array"), (_Name(means="array type"), tuple(), str() | bytes()):
            return _Array()
        case _Name(means="empty array"), _:
            raise _Refused("an array of type that is not numpy's own")
        case _Name(means="number type"), (kind, *_):
            return _Number(kind)
        case _Name(means="whole array"), (
            bytes() | bytearray() as raw,
            _Number() as kind,
            tuple() as shape,
            "C" | "F" as order,
        ):
            array = _Array()
            array.fill(raw, kind.type, shape, order)
            return array
        case _Name(means="bytes"), (str() as text, "latin1"):
            return text.encode("latin1")
        case _Name(means="bytes"), (str(), str() as encoding):
            raise _Refused(f"the encoding {encoding[:20]!r}")
    raise _Refused("a call that no pickle of arrays holds")


class _Machine:
    """What the operations of a pickle do here."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.outer: list[list[Any]] = []  # what lies below each mark
        self.memo: dict[int, Any] = {}

    def above_mark(self) -> list[Any]:
        above, self.stack = self.stack, self.outer.pop()
        return above

    def pop(self, count: int) -> list[Any]:
        if len(self.stack) < count:
            raise _Refused("an operation without its operands")
        popped = self.stack[len(self.stack) - count :]
        del self.stack[len(self.stack) - count :]
        return popped

    def do(self, name: str, given: Any) -> None:
        """Do the operation `name` with the value `given` beside it."""
        if name in _PLAIN:
            self.stack.append(given)
        elif name in _CONSTANTS:
            self.stack.append(_CONSTANTS[name])
        elif name in _EMPTY:
            self.stack.append(_EMPTY[name]())
        elif name in ("MEMOIZE", "PUT", "BINPUT", "LONG_BINPUT"):
            self.memo[len(self.memo) if given is None else given] = self.stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            self.stack.append(self.memo[given])
        elif name == "MARK":
            self.outer.append(self.stack)
            self.stack = []
        elif name.startswith("TUPLE"):
            items = self.pop(int(name[5:])) if name[5:] else self.above_mark()
            self.stack.append(tuple(items))
        elif name in ("LIST", "APPEND", "APPENDS"):
            items = self.pop(1) if name == "APPEND" else self.above_mark()
            self.extend([] if name == "LIST" else self.pop(1)[0], items)
        elif name in ("DICT", "SETITEM", "SETITEMS"):
            items = self.pop(2) if name == "SETITEM" else self.above_mark()
            self.put({} if name == "DICT" else self.pop(1)[0], items)
        elif name in ("GLOBAL", "STACK_GLOBAL"):
            words = [given] if name == "GLOBAL" else self.pop(2)
            self.stack.append(_Name(" ".join(words)))
        elif name == "REDUCE":
            self.stack.append(_made(*self.pop(2)))
        elif name == "BUILD":
            target, state = self.pop(2)
            if not isinstance(target, _Array | _Number):
                raise _Refused("a state of what has none")
            target.set(state)
            self.stack.append(target)
        elif name not in ("PROTO", "FRAME", "STOP"):
            raise _Refused(f"the operation {name}, which no pickle of arrays holds")

    def extend(self, target: Any, items: list[Any]) -> None:
        if type(target) is not list:
            raise _Refused("items of what is not a list")
        target.extend(items)
        self.stack.append(target)

    def put(self, target: Any, items: list[Any]) -> None:
        if type(target) is not dict or len(items) % 2 or not all(type(key) is str for key in items[::2]):
            raise _Refused("a dictionary whose keys are no words")
        target.update(zip(items[::2], items[1::2], strict=True))
        self.stack.append(target)


def read_pickle(path: Path, most: int, remedy: str) -> Any:
    """Read what the pickle at `path` holds; of a dictionary, the values that are arrays are numpy's.

    Args:
        path: the file.
        most: bytes that it may have.
        remedy: what to do about one that is refused.

    Raises:
        RegrowValueError: for a file that cannot be read, is too large, cut short, damaged or has bytes to spare, or
            asks for anything but plain values and arrays, which is never run.
    """
    machine, end = _Machine(), 0
    try:
        if (size := path.stat().st_size) > most:
            raise RegrowValueError(f"{path} has {size:,} bytes, allowed are at most {most:,}\n{remedy}")
        content = path.read_bytes()
        for operation, given, start in pickletools.genops(content):
            machine.do(operation.name, given)
            end = (start or 0) + 1
        (made,) = machine.stack
    except OSError as error:
        raise RegrowValueError(f"cannot read {path}: {error.strerror}\n{remedy}") from error
    except _Refused as error:
        raise RegrowValueError(f"{path} is not a pickle of arrays: {error}\n{remedy}") from error
    except RegrowValueError:
        raise
    except Exception as error:  # a damaged pickle raises almost anything, and says what it holds
        cut = "exhausted before seeing STOP" in str(error) or "remain" in str(error)
        how = "is cut short: its pickle has no end" if cut else "is not a pickle of arrays: it is damaged"
        raise RegrowValueError(f"{path} {how}\n{remedy}") from error
    if spare := len(content) - end:
        raise RegrowValueError(f"{path} has {spare:,} bytes to spare after its pickle\n{remedy}")
    if isinstance(made, dict):
        return {key: value.values if isinstance(value, _Array) else value for key, value in made.items()}
    return made
