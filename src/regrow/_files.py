"""Files that are there whole or as they were before, and what is left of those that were not finished."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from regrow.errors import RegrowRuntimeError


def write_atomically(file: str | os.PathLike[str], write: Callable[[Path], Any]) -> Path:
    """Write a file under a temporary name beside it, then rename: it is there whole, or as it was before.

    Args:
        file: where it is to be.
        write: writes it to the path it gets.

    Raises:
        RegrowRuntimeError: it could not be written (a full disk); what was there before is untouched.
    """
    target = Path(file)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        temporary.touch()  # with the permissions of an ordinary file, whatever the writer would give it
        mode = temporary.stat().st_mode
        write(temporary)
        temporary.chmod(mode)
        with open(temporary, "rb") as written:
            os.fsync(written.fileno())
        os.replace(temporary, target)
    except Exception as error:
        raise RegrowRuntimeError(f"`{target}` could not be written: {error}") from error
    finally:
        with suppress(OSError):  # which would hide the error that led here
            temporary.unlink(missing_ok=True)
    return target


def reason(error: BaseException) -> str:
    """Find what the system said: torch and safetensors bury it under errors of their own."""
    link: BaseException | None = error
    while link is not None:
        if isinstance(link, OSError) and link.strerror:
            return link.strerror
        link = link.__cause__ or link.__context__
    return str(error.__cause__ or error)


def sweep(folder: Path, *, everything: bool = False) -> None:
    """Remove the temporary files that processes which were killed have left in `folder`.

    Args:
        folder: where `write_atomically` has written.
        everything: also those of processes that live, or that nobody on this machine knows: none of them writes there.
    """
    for left in folder.glob(".*.part"):
        process = left.name.split(".")[-2]
        if process.isdecimal() and (everything or not _lives(int(process))):
            with suppress(OSError):
                left.unlink()


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # another user's
        return True
    return True
