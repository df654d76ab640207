"""One process at a time in a run folder: a lock that ends with the process that holds it, however that ends."""

from __future__ import annotations

import fcntl
import json
import os
import shlex
import socket
import sys
import time
import weakref
from contextlib import suppress
from pathlib import Path

from regrow.errors import RegrowRuntimeError, warn

NAME = "lock"
"""The file in a run folder: it says who holds it, and goes with the lock; a killed process leaves the file alone."""


class Lock:
    """The right to write in `folder`, which one process has.

    Args:
        folder: is there.

    Raises:
        RegrowRuntimeError: another process has it; the error names that.
        OSError: the folder cannot be written to.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / NAME
        self._file = self._taken(folder)
        _held.add(self)
        os.ftruncate(self._file, 0)
        os.write(self._file, json.dumps(_myself()).encode())

    def _taken(self, folder: Path) -> int:
        while True:
            file = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = _read(file)
                os.close(file)
                raise RegrowRuntimeError(
                    f"{folder} is in use by {holder}\n"
                    "Wait until that has ended or stop it, then try again; or train in another folder."
                ) from None
            except OSError as error:
                warn(
                    f"{folder} is on a file system without locks ({error.strerror}): see to it that no second process "
                    "trains there"
                )
                return file
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(file), os.stat(self.path)):
                    return file
            os.close(file)  # its holder has removed it meanwhile

    def release(self) -> None:
        """Let others in; again, nothing."""
        if self in _held:
            with suppress(OSError):
                self.path.unlink(missing_ok=True)
            self._close()

    def _close(self) -> None:
        _held.discard(self)
        with suppress(OSError):
            os.close(self._file)


_held: weakref.WeakSet[Lock] = weakref.WeakSet()


def _forget() -> None:
    """Let go of the locks in a fork, which would hold them after the end of the process that it comes from."""
    for lock in list(_held):
        lock._close()


os.register_at_fork(after_in_child=_forget)


def _myself() -> dict[str, object]:
    command = shlex.join([os.path.basename(sys.argv[0]), *sys.argv[1:]])
    since = time.strftime("%Y-%m-%d %H:%M:%S")
    return {"pid": os.getpid(), "host": socket.gethostname(), "command": command, "since": since}


def _read(file: int) -> str:
    """Say who holds the lock."""
    try:
        known = json.loads(os.pread(file, 100_000, 0))
        return "process {pid} on {host} since {since}: {command}".format(**known)
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"  # which has had the lock for a moment, and has not signed yet
