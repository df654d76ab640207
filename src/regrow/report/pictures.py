"""All pictures of a finished run."""

from __future__ import annotations

import json
from pathlib import Path

from regrow.report.curves import draw_curves
from regrow.report.maps import draw_maps


def draw(run: Path) -> tuple[list[Path], str]:
    """Draw what the records in run folder `run` allow.

    Returns:
        The pictures, and a note on what could not be drawn and why, or an empty text.
    """
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    title = f"{summary['recipe']} · {summary['method']} · sparsity {summary['sparsity']:.1%} · seed {summary['seed']}"
    curves = draw_curves(run, title)
    maps = draw_maps(run, title)
    note = "" if maps else "no map of the input pixels: it needs a sparse linear first layer on images"
    return [path for path in (curves, *maps) if path], note
