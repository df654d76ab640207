"""Progress of something that takes a while before training starts, on standard error."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


def waiting(items: Iterable[T], total: int, what: str, every: float = 5.0) -> Iterator[T]:
    """Yield `items`, with a line on standard error every `every` seconds: rewritten on a terminal, new elsewhere."""
    start = last = time.monotonic()
    terminal = sys.stderr.isatty()
    shown = False
    for number, item in enumerate(items):
        yield item
        now = time.monotonic()
        if now - last >= (0.2 if terminal else every):
            last, shown = now, True
            left = (now - start) / (number + 1) * (total - number - 1)
            line = f"{what}: {number + 1:,} of {total:,}, {left:.0f} s left"
            print(
                f"\r\x1b[2K{line}" if terminal else line,
                end="" if terminal else "\n",
                file=sys.stderr,
                flush=True,
            )
    if shown:
        print("\r\x1b[2K" if terminal else "", end="", file=sys.stderr, flush=True)
