"""An engine in a process of its own, which loads a network and measures it when it is told to.

    python -m regrow.app.bench.inference.process ENGINE FOLDER THREADS

reads one question a line on standard input and answers each with one line on standard output, both JSON.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch

from regrow.app.bench.inference.engines import Engine, Run, difference, engine
from regrow.app.bench.inference.handed import INPUT, reference
from regrow.app.bench.peak import CLEAR, resident, settle
from regrow.errors import RegrowRuntimeError
from regrow.measure.timing import turn


class Process:
    """A process that runs one engine; its core time and its peak memory as of its last answer."""

    def __init__(self, engine: Engine, folder: Path, threads: int) -> None:
        self.engine, self.seconds, self.peak = engine, 0.0, 0
        self._errors = open(folder / f"{engine.name}.txt", "w+", encoding="utf-8")  # noqa: SIM115
        self._child = subprocess.Popen(
            [sys.executable, "-m", __name__, engine.name, str(folder), str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            # torch.compile would keep a pool of processes that are not this one
            env={**os.environ, "OMP_NUM_THREADS": str(threads), "TORCHINDUCTOR_COMPILE_THREADS": "1"},
            start_new_session=True,  # Ctrl-C is for the one who asks
        )

    def load(self, batch: int) -> float:
        """Load the network for so many examples and run it.

        Returns:
            The `difference` of its output from torch's.

        Raises:
            RegrowRuntimeError: it could not.
        """
        return float(self._ask("load", batch))

    def turn(self, seconds: float) -> list[float]:
        """Return the times of runs, see `timing.turn`.

        Raises:
            RegrowRuntimeError: one failed.
        """
        times: list[float] = self._ask("turn", seconds)
        return times

    def _ask(self, what: str, value: float) -> Any:
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        try:
            print(json.dumps([what, value]), file=self._child.stdin, flush=True)
            line = self._child.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            code = self._child.wait()
            self._errors.seek(0)
            last = self._errors.read().strip().rpartition("\n")[2]
            raise RegrowRuntimeError(f"its process ended with code {code}: {last}")
        found = json.loads(line)
        self.seconds, self.peak = found["seconds"], found["peak"]
        if "error" in found:
            raise RegrowRuntimeError(found["error"])
        return found["answer"]

    def close(self) -> None:
        """End the process."""
        self._child.kill()
        self._child.communicate()
        self._errors.close()


class Answers:
    """What the process itself does."""

    def __init__(self, engine: Engine, folder: Path, threads: int) -> None:
        self.engine, self.folder, self.threads = engine, folder, threads
        self.way: Run | None = None
        torch.set_num_threads(threads)
        import_module(engine.package)
        self.base = settle() if CLEAR.exists() else 0

    def load(self, batch: int) -> float:
        """Do what `Process.load` asks for."""
        self.way = None
        if CLEAR.exists():
            settle()
        x = np.array(np.load(self.folder / INPUT, mmap_mode="r")[:batch])
        self.way = self.engine.load(self.folder / self.engine.file, x, self.threads)
        found = difference(self.way(), np.load(self.folder / reference(batch)))
        self.way()
        self.way()
        return found

    def turn(self, seconds: float) -> list[float]:
        """Do what `Process.turn` asks for."""
        assert self.way is not None
        return turn(self.way, seconds)

    def answer(self, what: str, value: Any) -> dict[str, Any]:
        """Return the answer to one question, or what went wrong, and what the process took until then."""
        found: dict[str, Any]
        try:
            found = {"answer": getattr(self, what)(value)}
        except Exception as error:  # whatever an engine raises
            text = str(error).strip() or "no message"
            found = {"error": f"{type(error).__name__}: {text.splitlines()[0]}"}
        times = os.times()
        seconds = times.user + times.system + times.children_user + times.children_system
        peak = resident("VmHWM") - self.base if CLEAR.exists() else 0
        return {**found, "seconds": seconds, "peak": peak}


def main(name: str, folder: str, threads: str) -> None:
    """Answer until nobody asks any more."""
    answers: IO[str] = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # engines print what they like
    here = Answers(engine(name), Path(folder), int(threads))
    for line in sys.stdin:
        print(json.dumps(here.answer(*json.loads(line))), file=answers, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
