"""All pictures of a finished run."""

from __future__ import annotations

import json
from pathlib import Path

from regrow._files import reason, sweep
from regrow.app.report.curves import draw_curves
from regrow.app.report.maps import draw_maps
from regrow.app.report.tickets import draw_tickets


def draw(run: Path) -> tuple[list[Path], str]:
    """Draw what the records in run folder `run` allow, and in those of its members.

    What cannot be drawn or written (a full disk, a damaged log) takes neither other pictures nor the result with it.

    Returns:
        The pictures, and a note on what could not be drawn and why, or an empty text.
    """
    # of a process that was killed while it drew: nobody locks the folder of a finished run
    sweep(run)
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    made = summary.get("tickets")
    words = [summary["recipe"], f"{made['kind']}-{summary['method']}" if made else summary["method"]]
    title = " · ".join([*words, f"sparsity {summary['sparsity']:.1%}", f"seed {summary['seed']}"])
    pictures: list[Path] = []
    notes: list[str] = []
    for what, drawn in (("curves", draw_curves), ("maps", draw_maps), ("tickets", draw_tickets)):
        try:
            found = drawn(run, title)
        except Exception as error:
            notes.append(f"no picture of the {what}: {reason(error)}")
        else:
            pictures += found
            if what == "maps" and not found:
                notes.append("no map of the input pixels: it needs a sparse linear first layer on images")
    for member in sorted((run / "members").glob("*")):
        _, note = draw(member)
        notes += [line for line in note.splitlines() if line not in notes]
    return pictures, "\n".join(notes)
