"""The command ``regrow``, and ``python -m regrow``: what needs the extra ``train`` is imported when it is asked for."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from regrow.app.cli.basic import COMMANDS

EXTRA = ("typer", "rich", "pydantic", "yaml", "matplotlib", "PIL")
"""Modules of the extra ``train``."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit.

    Args:
        arguments: those after ``regrow``. Default: those of the process.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    command = given[0] if given else ""
    if command in COMMANDS:
        sys.exit(COMMANDS[command](given))
    try:
        from regrow.app.cli.main import main as with_extra

        with_extra(given)
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] not in EXTRA:
            raise
        print(
            f"error: `{' '.join(['regrow', command]).strip()}` needs {error.name}, which is not installed\n"
            'Install it with pip install "regrow[train]"; '
            f"{', '.join(f'`regrow {name}`' for name in COMMANDS)} need no extra.",
            file=sys.stderr,
        )
        sys.exit(2)


if __name__ == "__main__":
    main()
