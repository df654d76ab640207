"""What ``regrow compare`` does: plan, run, tabulate, write, draw."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from regrow._files import sweep
from regrow.app.compare.grid import plan
from regrow.app.compare.running import run_all
from regrow.app.compare.table import tabulate
from regrow.app.compare.writing import as_text, conditions, write
from regrow.app.report import draw_comparison
from regrow.app.training import lasting_console, say, width
from regrow.errors import RegrowValueError


def compare(
    recipe: str,
    methods: Sequence[str],
    *,
    seeds: int,
    multipliers: Sequence[float],
    overrides: Sequence[str],
    imports: Sequence[str],
    workers: int | None,
    folder: Path | None,
    json_: bool,
) -> int:
    """Run the command; the arguments are those of `plan` and `run_all`.

    Returns:
        The exit code: 1 where a run has failed, and its row is of fewer runs or missing.
    """
    grid = plan(
        recipe,
        methods,
        seeds=seeds,
        multipliers=multipliers,
        overrides=overrides,
        imports=imports,
        folder=folder,
    )
    console = lasting_console(errors=json_)

    say(console, f"{len(grid.runs)} runs in {grid.folder}/; finished ones are not repeated")
    failures = run_all(grid.runs, workers=workers, console=console)
    table = tabulate(grid)
    stem = grid.folder / conditions(grid)
    say(console, "\n" + as_text(table, width(console)))  # before the disk can refuse anything
    sweep(grid.folder)
    files: list[Path] = write(table)
    pictures: list[Path] = []
    keys = list(grid.base.axes)
    rows = [{**row.to_dict(), "curve": row.curve} for row in table.rows]
    try:
        pictures = draw_comparison(rows, keys, stem, grid.base.recipe.name, table.measures.best)
    except Exception as error:  # the runs are done, and the table is written
        say(console, f"no pictures: {error}")
    for path in [*files, *pictures]:
        say(console, str(path))
    said: set[str] = set()
    for failure in failures:
        first, _, rest = failure.reason.partition("\n")
        say(console, f"\nfailed: {failure.run}: {first}" + ("" if first in said else f"\n{rest}"))
        said.add(first)
    if json_:
        result = {
            "folder": str(grid.folder),
            "rows": [row.to_dict() for row in table.rows],
            "machine": table.machine,
            "files": [str(path) for path in [*files, *pictures]],
            "failures": [{"run": str(failure.run), "reason": failure.reason} for failure in failures],
        }
        print(json.dumps(result, indent=2))
    return 1 if failures else 0


def numbers(option: str, text: str) -> list[float]:
    """Return the numbers in ``1,2,5``.

    Raises:
        RegrowValueError: text that is not a number.
    """
    try:
        return [float(word) for word in text.split(",")]
    except ValueError as error:
        raise RegrowValueError(
            f"`{option}` must be numbers divided by commas, such as 1,2,5, got {text!r}"
        ) from error
