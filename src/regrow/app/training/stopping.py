"""The process of a run: alone, and asked to stop by Ctrl-C, SIGTERM, SIGHUP or the end of the one that started it."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from regrow.errors import RegrowError, RegrowRuntimeError

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
PARENT = "REGROW_PARENT"
"""Variable of the environment: the end of a pipe that closes when the process that started this one ends."""


class Interrupted(RegrowError):
    """The run was asked to stop."""


@contextmanager
def stop_signals(notice: str) -> Iterator[threading.Event]:
    """Yield an event that is set when one of `SIGNALS` arrives, so that nothing is cut in two.

    A second Ctrl-C is a KeyboardInterrupt.

    A signal that is ignored stays so: that is what ``nohup`` does. Signals are the main thread's: elsewhere none is
    handled.

    Args:
        notice: a line for the first Ctrl-C.
    """
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def handle(number: int, frame: Any) -> None:
        if number == signal.SIGINT:
            if stop.is_set():
                raise KeyboardInterrupt
            with suppress(OSError):  # not print: the signal may have come in the middle of one
                os.write(2, f"\n{notice}\n".encode())
        stop.set()

    before = {number: signal.getsignal(number) for number in SIGNALS}
    before = {number: handler for number, handler in before.items() if handler is not signal.SIG_IGN}
    for number in before:
        signal.signal(number, handle)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Leash:
    """Ends processes with this one, however it ends: each holds one end of a pipe, and this process the other."""

    def __init__(self) -> None:
        self._theirs, self._own = os.pipe()

    def options(self, environment: dict[str, str]) -> dict[str, Any]:
        """Make options of subprocess.Popen for a child with this environment that calls `follow_parent`."""
        return {"pass_fds": [self._theirs], "env": {**environment, PARENT: str(self._theirs)}}

    def close(self) -> None:
        """Let go, which ends those that still run."""
        os.close(self._theirs)
        os.close(self._own)


def follow_parent() -> None:
    """Arrange for a SIGTERM when the process that started this one is gone, where a `Leash` says so."""
    end = os.environ.pop(PARENT, None)  # not for processes that this one starts
    if end is None:
        return

    def wait() -> None:
        with suppress(OSError):
            os.read(int(end), 1)  # nobody writes: it returns when the pipe is closed
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, name="regrow-parent", daemon=True).start()


def require_one_process(command: str) -> None:
    """Refuse a launcher of several processes (torchrun, accelerate launch), each of which would train the whole run.

    Args:
        command: what was started, for the message.

    Raises:
        RegrowRuntimeError: in each of them.
    """
    world = os.environ.get("WORLD_SIZE", "1")
    if "RANK" in os.environ and world.isdecimal() and int(world) > 1:
        raise RegrowRuntimeError(
            f"`regrow {command}` trains in one process, and torchrun or another launcher has started {world} of it\n"
            "Start it without the launcher. For several processes, call regrow.sparsify and a method in a loop of your "
            "own, with DistributedDataParallel."
        )
