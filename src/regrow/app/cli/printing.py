"""What commands print: results as JSON or text, and the end of a run."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Annotated, Any

import typer
from rich.console import Console

from regrow.app.training import RunFolder, say, width

Json = Annotated[
    bool, typer.Option("--json", help="Print one JSON document on standard output, nothing else there.")
]


def finish(console: Console, folder: RunFolder, json_: bool, how: str) -> None:
    """Draw the pictures and print the summary of a finished run."""
    summary, text = folder.summary(), folder.text("summary.txt")
    try:
        from regrow.app.report import (
            draw,  # matplotlib takes a second, which no failing command should wait for
        )

        pictures, note = draw(folder.path)
    except Exception as error:  # the run is finished, whatever becomes of its pictures
        pictures, note = [], f"no pictures: {error}"
    say(console, f"\n{how}: {folder.path}")
    text += "pictures     " + (" ".join(str(path) for path in pictures) or "none")
    say(console, text + "".join(f"\n             {line}" for line in note.splitlines()))
    if json_:
        result = {
            "run": str(folder.path),
            **summary,
            "pictures": [str(p) for p in pictures],
        }
        print(json.dumps(result, indent=2))


def show(found: Any, json_: bool, as_text: Callable[[int | None], str]) -> None:
    """Print what was found as JSON, or as the text that fits the terminal's width."""
    console = Console()
    if json_:
        print(json.dumps(found, indent=2))
    else:
        say(console, as_text(width(console)))
