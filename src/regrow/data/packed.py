"""Files that may be gzipped, unpacked no further than a data set can be packed."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

from regrow.errors import RegrowValueError

LARGE = 2**30
RATIO = 100
"""A gzipped file that unpacks to more than `LARGE` bytes and to more than `RATIO` times its size is not a data set."""


def read_packed(path: Path, remedy: str, packed: bool | None = None) -> bytes:
    """Read the bytes of the file at `path`.

    Args:
        path: the file.
        remedy: what to do about one that cannot be read.
        packed: whether it is gzipped. Default: as its first bytes say.

    Raises:
        RegrowValueError: for a file that cannot be read, or a gzipped one that is cut, damaged or a bomb.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise RegrowValueError(f"cannot read {path}: {error.strerror}\n{remedy}") from error
    if not (content[:2] == b"\x1f\x8b" if packed is None else packed):
        return content
    most = max(LARGE, RATIO * len(content))
    try:
        with gzip.open(path) as stream:
            unpacked = stream.read(most + 1)
    except EOFError as error:
        raise RegrowValueError(
            f"{path} is cut short: its gzip stream has no end, allowed is a whole file\n{remedy}"
        ) from error
    except (OSError, zlib.error) as error:
        raise RegrowValueError(
            f"{path} is damaged: {error}, allowed is a whole gzip file\n{remedy}"
        ) from error
    if len(unpacked) > most:
        raise RegrowValueError(
            f"{path} has {len(content):,} bytes and unpacks to more than {most:,}, which no data set does\n{remedy}"
        )
    return unpacked
