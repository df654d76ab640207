"""Text as wide as the terminal: tables whose names stay whole, prose cut between words; a pipe gets one line a row."""

from __future__ import annotations

import os
import re
import sys
import textwrap
from collections.abc import Iterable, Sequence
from typing import TextIO

GAP = 2
"""Spaces between two columns."""
KEEP = "\u00a0"
"""A space at which no line is cut, in what `wrapped` gets; it puts out a plain one."""
_LABEL = re.compile(r" *(?:\S+ {2,})?")


def columns(stream: TextIO | None = None) -> int | None:
    """Measure a line of `stream` (default: standard output) in characters; None where that is a pipe or a file."""
    stream = stream or sys.stdout
    if not stream.isatty():
        return None
    if (asked := os.environ.get("COLUMNS", "")).isdecimal() and int(asked):
        return int(asked)
    try:
        return os.get_terminal_size(stream.fileno()).columns or 80
    except (OSError, ValueError):  # a terminal that tells no size, or a stream that is none of the system's
        return 80


def either(words: Iterable[str], last: str = "or") -> str:
    """Return `words` as a list in a sentence: ``a, b or c``."""
    *first, final = words
    return f"{', '.join(first)} {last} {final}" if first else final


def wrapped(text: str, width: int | None) -> str:
    """Cut the long lines of `text` between words; what follows stands under the first word behind the label.

    Args:
        text: any number of lines. A label is one word with two spaces behind it; without one, what follows is
            indented as its line is.
        width: of the terminal; None leaves the text as it is.
    """
    lines = text.split("\n")
    if width is not None:
        lines = [part for line in lines for part in _cut(line, width)]
    return "\n".join(lines).replace(KEEP, " ")


def _cut(line: str, width: int) -> list[str]:
    if len(line) <= width:
        return [line]
    label = _LABEL.match(line)
    indent = label.end() if label and label.end() <= width // 2 else 0
    return textwrap.wrap(
        line, width, subsequent_indent=" " * indent, break_long_words=False, break_on_hyphens=False
    )


def table(
    rows: Sequence[Sequence[str]],
    width: int | None = None,
    *,
    numbers: int | None = None,
    prose: bool = False,
) -> list[str]:
    """Lay out `rows` as lines with aligned columns, the first row being the head; no cell is ever cut within a word.

    Args:
        rows: equally many cells in each; the first cell names its row.
        width: of the terminal; None is as wide as it takes.
        numbers: columns from this one on are aligned at the right.
        prose: the last column is a sentence, which goes below its row where the row would be too long. Other columns
            that do not fit follow in a second table beneath, which begins with the names again.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    if width is None or sum(widths) + GAP * (len(widths) - 1) <= width:
        return [_line(row, widths, numbers, range(len(widths))) for row in rows]
    count = len(widths) - prose
    blocks: list[list[int]] = [[0]]
    used = widths[0]
    for index in range(1, count):
        if used + GAP + widths[index] > width and len(blocks[-1]) > 1:
            blocks.append([0])
            used = widths[0]
        blocks[-1].append(index)
        used += GAP + widths[index]
    lines: list[str] = []
    for number, block in enumerate(blocks):
        lines += [""] if number else []
        for row in rows:
            lines.append(_line(row, widths, numbers, block))
            if prose and number == 0 and row[-1]:
                lines += _cut("  " + row[-1], width)
    return lines


def _line(row: Sequence[str], widths: Sequence[int], numbers: int | None, chosen: Sequence[int]) -> str:
    cells = [
        row[i].rjust(widths[i]) if numbers is not None and i >= numbers else row[i].ljust(widths[i])
        for i in chosen
    ]
    return (" " * GAP).join(cells).rstrip()
