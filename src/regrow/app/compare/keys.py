"""The ``key=value`` arguments of a comparison: lists of values, and values for one method only."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from regrow.errors import RegrowValueError
from regrow.methods.registry import DEFAULT

OPEN, CLOSE, QUOTES = "[{(", "]})", "\"'"
TAKEN = {"method": "--methods", "tickets": "--methods", "seed": "--seeds", "out": "--out"}


@dataclass(frozen=True)
class Key:
    """One recipe key with the values it takes in the comparison, as they were written."""

    key: str
    values: tuple[str, ...]
    method: str | None = None
    """The only method it is meant for; None is all."""

    def option(self, part: str = "method") -> str | None:
        """Return the option of the method, or of its tickets, that it sets, if it does."""
        first, _, option = self.key.partition(".")
        return option if first == part and option else None


def parse(overrides: Iterable[str], methods: Sequence[str]) -> list[Key]:
    """Parse `overrides` such as ``optimizer.lr=0.05,0.1`` or, for one of `methods`, ``rigl.optimizer.lr=0.05``.

    Commas inside brackets, braces and quotes do not divide: ``model.hidden=[300,100],[600,200]`` is two values.

    Raises:
        RegrowValueError: text that is not ``key=value``, a key given twice, or one that an option of the command sets.
    """
    keys: list[Key] = []
    for text in overrides:
        key, equals, value = text.partition("=")
        # the longest name first: one method may be called like the beginning of another
        owner = next((m for m in sorted(methods, key=len, reverse=True) if key.startswith(f"{m}.")), None)
        if owner is not None:
            key = key[len(owner) + 1 :]
        values = split(value)
        if not equals or not key or not all(values):
            raise RegrowValueError(
                f"an override must be key=value or key=a,b,c, for example optimizer.lr=0.05,0.1, got {text!r}\n"
                f"For one method only, put its name before the key: {DEFAULT}.optimizer.lr=0.05."
            )
        if key in TAKEN:
            raise RegrowValueError(f"`{key}` is set by `{TAKEN[key]}` in a comparison, got {text!r}")
        if any((k.key, k.method) == (key, owner) for k in keys):
            raise RegrowValueError(f"`{key}` is given twice, the second time by {text!r}")
        if len(set(values)) < len(values):
            raise RegrowValueError(f"`{key}` has a value twice, got {text!r}")
        keys.append(Key(key, values, owner))
    return keys


def split(text: str) -> tuple[str, ...]:
    """Split `text` at the commas outside brackets, braces and quotes."""
    parts, depth, quote = [""], 0, ""
    for character in text:
        if quote:
            quote = "" if character == quote else quote
        elif character in QUOTES:
            quote = character
        else:
            depth += (character in OPEN) - (character in CLOSE)
        if character == "," and depth == 0 and not quote:
            parts.append("")
        else:
            parts[-1] += character
    return tuple(part.strip() for part in parts)


def of_method(keys: Sequence[Key], method: str) -> list[Key]:
    """Return the keys for `method`: its own, and those of all that it has none of its own for."""
    own = {key.key for key in keys if key.method == method}
    return [k for k in keys if k.method == method or (k.method is None and k.key not in own)]
