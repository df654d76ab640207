"""All pictures of a finished run."""

from __future__ import annotations

import json
from pathlib import Path

from regrow.report.curves import draw_curves
from regrow.report.maps import draw_maps
from regrow.report.tickets import draw_tickets


def draw(run: Path) -> tuple[list[Path], str]:
    """Draw what the records in run folder `run` allow, and in those of its members.

    Returns:
        The pictures, and a note on what could not be drawn and why, or an empty text.
    """
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    made = summary.get("tickets")
    words = [summary["recipe"], f"{made['kind']}-{summary['method']}" if made else summary["method"]]
    title = " · ".join([*words, f"sparsity {summary['sparsity']:.1%}", f"seed {summary['seed']}"])
    curves = draw_curves(run, title)
    maps = draw_maps(run, title)
    tickets = draw_tickets(run, title)
    for member in sorted((run / "members").glob("*")):
        draw(member)
    note = "" if maps else "no map of the input pixels: it needs a sparse linear first layer on images"
    return [path for path in (curves, *maps, *tickets) if path], note
