"""One look for all pictures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # files only: no window, no display

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from regrow._files import write_atomically
from regrow.app.tasks import Measures, measures_of

INK, GREY, BLUE, ORANGE, GREEN = "#22303c", "#8a97a3", "#2a6fbb", "#d9622b", "#3a8a5f"

matplotlib.rcParams.update(
    {
        "figure.dpi": 120,
        "font.size": 10,
        "figure.constrained_layout.h_pad": 0.1,
        "figure.constrained_layout.w_pad": 0.1,
        "axes.titlesize": 11,
        "axes.titleweight": "bold",
        "axes.edgecolor": GREY,
        "axes.labelcolor": INK,
        "text.color": INK,
        "xtick.color": INK,
        "ytick.color": INK,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.color": "#e4e8ec",
        "axes.axisbelow": True,
    }
)


def thousands(axes: Axes) -> None:
    """Label steps with a thousands separator, from 0."""
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.set_xlim(left=0)


def logarithmic(axes: Axes) -> None:
    """Make the y axis logarithmic, with plain numbers, at most three a decade."""
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.yaxis.set_minor_formatter(lambda value, _: f"{value:g}" if f"{value:e}"[0] in "235" else "")


def save(figure: Figure, path: Path) -> Path:
    """Write `figure` to `path`, whole or not at all, and return `path`."""
    return write_atomically(path, lambda beside: figure.savefig(beside, format=path.suffix[1:]))


def capital(text: str) -> str:
    """Return `text` with a capital letter at its beginning."""
    return text[:1].upper() + text[1:]


def measures(run: Path) -> Measures:
    """Return what was measured in the finished run in folder `run`."""
    return measures_of(json.loads((run / "summary.json").read_text(encoding="utf-8")))


def records(path: Path) -> list[dict[str, Any]]:
    """Return the records of a JSON-lines file; none where there is no such file."""
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    return [json.loads(line) for line in text.splitlines()]
