"""Where a data set may be: the folder given, the system's package folder, the user's cache."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from regrow.errors import RegrowValueError

SYSTEM = Path("/usr/share/datasets")
"""Where Debian's packages put data sets."""


def cache() -> Path:
    """Return the user's cache, ``$XDG_CACHE_HOME/regrow``; it need not be there."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "regrow"


def locate(
    title: str, folder: str | None, names: Sequence[str], holds: Callable[[Path], bool], remedy: str
) -> Path:
    """Return the folder that holds a data set.

    Args:
        title: what to call the set in an error.
        folder: the folder given, the only place looked at then; ``~`` is the home directory.
        names: what the set's folder is called in the system's folder and in the cache, most usual first.
        holds: whether a folder holds the set.
        remedy: how to get it, lines of their own; ``{cache}`` is the folder in the user's cache.

    Raises:
        RegrowValueError: where it is in none of them, with the places and the remedy.
    """
    if folder is not None:
        given = Path(folder).expanduser()
        # the folder itself, or the one it was unpacked in
        places = [given, *(given / name for name in names)]
    else:
        places = [root / name for root in (SYSTEM, cache()) for name in names]
    for place in places:
        if holds(place):
            return place
    where = [str(place) for place in (places[:1] if folder is not None else places)]
    raise RegrowValueError(
        f"{title} is not in {' or '.join(where)}\n{remedy.format(cache=cache() / names[0])}\n"
        "or name its folder with `data.folder`."
    )
