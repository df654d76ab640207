"""The run folder: files written whole, so that a kill or a full disk leaves the old ones, and logs that grow.

environment.json   versions, machine, the command that repeats the run; the first to be written
config.yaml        the resolved recipe; its presence means that the folder holds a run
data.json          what the data is
vocabulary.json    the symbols of a text
metrics.jsonl      what was measured, one record a line
maps.jsonl         connections that leave each input pixel, at the start and after each update
checkpoint.pt      everything that a resumed run needs
model.safetensors  the network that is the result; an ensemble has none, only its tickets
tickets/0.safetensors, ...  the tickets of a run that makes several
members/0, ...     the run folders of the members of an ensemble, or of the runs of a ticket loop
samples.txt        what the network of a text writes
summary.txt/.json  the result; the last to be written, so their presence means that the run is finished
lock               while a process trains here: which
"""

from __future__ import annotations

import io
import json
import os
import re
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import torch
from safetensors.torch import save_file
from torch import nn

import regrow
from regrow._files import reason, sweep, write_atomically
from regrow._formats import CHECKPOINT, SUMMARY, require_format
from regrow.app.tasks import measures_of
from regrow.app.training import checkpoint
from regrow.app.training.lock import Lock
from regrow.errors import RegrowError, RegrowRuntimeError, RegrowValueError
from regrow.sparsity import modelfile
from regrow.sparsity.saving import put

LOGS = ("metrics.jsonl", "maps.jsonl")
EVERY_SUMMARY = {
    "recipe": str,
    "method": str,
    "seed": int,
    "steps": int,
    "sparsity": float | int,
}
"""What every summary holds, beside the task's metrics."""
_AGAIN = "Copy the whole run folder again, or train again."


def file_name(text: str) -> str:
    """Turn `text` into a part of a file's name that every system takes: no slash, colon or blank."""
    return re.sub(r"[^\w.,=+-]+", "-", text).strip("-")


class RunFolder:
    """A folder of one training run. Every method raises RegrowRuntimeError where the disk refuses.

    Whoever writes holds its lock: `create` takes it, ``with folder:`` takes it where it is not held, and gives it back.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._logs: dict[str, io.FileIO] = {}
        self._sums: dict[str, int] = {}  # CRC-32 of what the logs hold
        self._lock: Lock | None = None

    @staticmethod
    def check(out: str | None) -> None:
        """Refuse an `out` in which no run can begin, before anything is done for the run.

        Raises:
            RegrowValueError: it is not a folder, or holds a run already.
        """
        if not out:
            return
        path = Path(out).expanduser()
        require_folder("out", path)
        if os.path.lexists(path / "config.yaml"):
            raise RegrowValueError(
                f"`out` {path} holds a run already\n"
                f"Continue it with `regrow train --resume {path}`, name another folder, or delete it."
            )
        for name in ("checkpoint.pt", *LOGS, "summary.json"):  # a new run would take them for its own
            if os.path.lexists(path / name):
                raise RegrowValueError(
                    f"`out` {path} holds {name} of another run\nName another folder, or delete that one."
                )

    @classmethod
    def create(cls, config: str, out: str | None, stem: str, environment: dict[str, Any]) -> RunFolder:
        """Make a new folder and lock it: `out`, or ``runs/<stem>-<time>``.

        Args:
            config: what ``config.yaml`` will hold.
            out: the path, or None.
            stem: what the folder is called after where there is no `out`.
            environment: what ``environment.json`` will hold.

        Raises:
            RegrowValueError: where `out` is not a folder, or holds a run already.
            RegrowRuntimeError: where another process has it.
        """
        cls.check(out)
        moment = time.strftime("%Y%m%d-%H%M%S")
        path = Path(out).expanduser() if out else Path("runs") / f"{file_name(stem)}-{moment}"
        folder = cls(path)
        with folder.disk(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            number = 1
            while True:
                try:
                    folder.path.mkdir(exist_ok=out is not None)
                    break
                except FileExistsError:
                    if out:
                        raise
                    number += 1
                    folder.path = path.with_name(f"{path.name}-{number}")
        folder.lock()
        try:
            cls.check(out)  # another process may have begun a run there meanwhile
            folder.write_json("environment.json", environment)
            folder.write("config.yaml", config.encode())
        except BaseException:
            folder.close()
            raise
        return folder

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """Open the folder of a run that was started before, to read in; to train in it, lock it.

        Raises:
            RegrowValueError: where there is none.
        """
        if not (path / "config.yaml").is_file():
            raise RegrowValueError(
                f"{path} holds no run: it has no config.yaml\n"
                "Give the folder that `regrow train` named when it started."
            )
        return cls(path)

    def lock(self) -> None:
        """Keep other processes from training here, until `close`; what killed ones left half written goes.

        Raises:
            RegrowRuntimeError: another process trains here; the error names it.
        """
        if self._lock is None:
            try:
                self._lock = Lock(self.path)
            except OSError as error:
                raise self._refused(self.path, error) from error
            for place in (self.path, self.path / "tickets"):
                sweep(place, everything=True)

    def __enter__(self) -> RunFolder:
        self.lock()
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    @property
    def finished(self) -> bool:
        """Whether the run came to its end."""
        return (self.path / "summary.json").is_file()

    def read(self, name: str) -> Any:
        """Read the JSON document in file `name`."""
        text = self.text(name)
        with self._legible(name):
            return json.loads(text)

    def summary(self) -> dict[str, Any]:
        """Read what ``summary.json`` holds."""
        found = self.read("summary.json")
        require_format(
            str(self.path / "summary.json"), found if isinstance(found, dict) else {}, "format", SUMMARY
        )
        for key, kind in (EVERY_SUMMARY | self._metrics(found)).items():
            if not isinstance(found, dict) or not isinstance(found.get(key), kind):
                raise RegrowRuntimeError(
                    f"{self.path / 'summary.json'} is not a summary of a run: `{key}` is missing or of another type\n"
                    f"{_AGAIN}"
                )
        return dict(found)

    def _metrics(self, summary: Any) -> dict[str, Any]:
        """Return the metric that every summary of its task holds."""
        try:
            return {measures_of(summary).best.name: float | int}
        except (AttributeError, KeyError, TypeError, RegrowValueError):  # damaged
            return {"task": dict}

    def text(self, name: str) -> str:
        """Read the text in file `name`."""
        path = self.path / name
        try:
            return path.read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            why = error.strerror if isinstance(error, OSError) else "it is not text"
            raise RegrowRuntimeError(f"cannot read {path}: {why}\n{_AGAIN}") from error

    def records(self, name: str) -> list[dict[str, Any]]:
        """Return the records of log `name`, oldest first; none where there is no such log."""
        path = self.path / name
        lines = path.read_bytes().splitlines() if path.is_file() else []
        with self._legible(name):
            return [json.loads(line) for line in lines]

    @contextmanager
    def _legible(self, name: str) -> Iterator[None]:
        try:
            yield
        except (ValueError, RecursionError) as error:
            raise RegrowRuntimeError(f"cannot read {self.path / name}: it is damaged\n{_AGAIN}") from error

    def write(self, name: str, content: bytes) -> None:
        """Write file `name` whole or not at all."""
        self.write_with(name, lambda stream: stream.write(content))

    def write_json(self, name: str, value: Any) -> None:
        """Write `value` as a JSON document, whole or not at all."""
        self.write(name, (json.dumps(value, indent=2) + "\n").encode())

    def write_with(self, name: str, fill: Callable[[IO[bytes]], object]) -> None:
        """Let `fill` write file `name`, whole or not at all."""

        def write(beside: Path) -> None:
            with beside.open("wb") as stream:
                fill(stream)

        with self.disk(self.path / name):
            write_atomically(self.path / name, write)

    def append(self, name: str, record: dict[str, Any]) -> None:
        """Add one record to a log; it is in the file when this returns."""
        with self.disk(self.path / name):
            if name not in self._logs:
                self._logs[name] = io.FileIO(self.path / name, "ab")
            line = (json.dumps(record) + "\n").encode()
            rest = memoryview(line)
            while rest:  # a disk that fills up takes a part first, and refuses the next
                rest = rest[self._logs[name].write(rest) :]
            self._sums[name] = zlib.crc32(line, self._sums.get(name, 0))

    def save_model(self, name: str, model: nn.Module) -> None:
        """Write `model`, sparse or dense, to the safetensors file `name`."""
        path = self.path / name
        with self.disk(path):
            path.parent.mkdir(exist_ok=True)
            if regrow.is_sparse(model):
                regrow.save(model, path)
            else:
                state = {key: value.cpu().contiguous().clone() for key, value in model.state_dict().items()}
                write_atomically(path, lambda beside: save_file(state, beside))

    def load_model(self, name: str, into: nn.Module) -> nn.Module:
        """Read what `save_model` wrote `into` a network of the same architecture, sparse or not yet; returns it."""
        path = self.path / name
        metadata, tensors = modelfile.read(path)
        if "regrow" in metadata:
            put(path, metadata, tensors, into)
            return into
        try:
            into.load_state_dict(tensors)
        except RuntimeError as error:
            raise RegrowRuntimeError(
                f"{path} does not fit the network that the recipe of the run names: "
                f"{' '.join(str(error).split())[:300]}\n{_AGAIN}"
            ) from error
        return into

    def save_checkpoint(self, state: dict[str, Any]) -> None:
        """Write `state` and what the logs hold at this moment; the old checkpoint stays until that is done."""
        self.flush()
        sizes = {name: (self.path / name).stat().st_size for name in LOGS if (self.path / name).exists()}
        logs = {name: [size, self._sums.get(name, 0)] for name, size in sizes.items()}
        self.write_with(
            "checkpoint.pt", lambda stream: torch.save({"format": CHECKPOINT, **state, "logs": logs}, stream)
        )

    def flush(self) -> None:
        """Wait until the disk has the logs."""
        for log in self._logs.values():
            with self.disk(Path(str(log.name))):
                os.fsync(log.fileno())

    def load_checkpoint(self) -> dict[str, Any] | None:
        """Read the last checkpoint, and cut the logs back to its moment; None where none was written yet.

        Raises:
            RegrowRuntimeError: a checkpoint that cannot be read, or a log that does not hold what it held then.
        """
        path = self.path / "checkpoint.pt"
        state: dict[str, Any] | None = None
        if os.path.lexists(path):
            try:
                state = checkpoint.read(path)
            except RegrowError as error:
                raise RegrowRuntimeError(f"cannot read checkpoint {path}: {error}") from error
        logs = dict(state["logs"]) if state else {}
        for name, known in logs.items():
            size, total = known if isinstance(known, list) else (known, None)  # a number in older checkpoints
            self._sums[name] = self._check_log(self.path / name, size, total)
            logs[name] = size
        for name in LOGS:
            if (self.path / name).exists():
                with self.disk(self.path / name):
                    os.truncate(self.path / name, logs.get(name, 0))
        return state

    def _check_log(self, path: Path, size: int, total: int | None) -> int:
        """Refuse a log that does not begin with the `size` bytes of the checkpoint's moment; returns their CRC-32."""
        try:
            content = path.read_bytes()
        except OSError as error:
            wrong = f"cannot be read: {error.strerror}"
        else:
            if len(content) < size:
                wrong = f"has {len(content):,} bytes, and had {size:,} at the last checkpoint"
            elif (found := zlib.crc32(content[:size])) != total and total is not None:
                wrong = "is not what it was at the last checkpoint: it was changed or damaged"
            else:
                return found
        raise RegrowRuntimeError(
            f"{path} {wrong}\n"
            "The log is part of the checkpoint. Put the file back, or train from the beginning after "
            f"`rm {self.path / 'checkpoint.pt'}`."
        )

    def close(self) -> None:
        """Close the logs and let other processes in."""
        for log in self._logs.values():
            # `flush` has been told already, and nothing may hide the error that led here
            with suppress(OSError):
                log.close()
        self._logs.clear()
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    @contextmanager
    def disk(self, path: Path) -> Iterator[None]:
        """Turn what the system refuses while `path` is written into an error with a remedy."""
        try:
            yield
        except (OSError, RegrowRuntimeError) as error:
            raise self._refused(path, error) from error

    def _refused(self, path: Path, error: BaseException) -> RegrowRuntimeError:
        kept = (self.path / "checkpoint.pt").is_file()
        then = f"continue with `regrow train --resume {self.path}`" if kept else "start again"
        return RegrowRuntimeError(
            f"cannot write {path}: {reason(error)}"
            + ("\nThe last checkpoint is whole." if kept else "")
            + f"\nFree some space or make the folder writable, then {then}."
        )


def require_folder(name: str, path: Path) -> None:
    """Refuse a `path` that cannot become a folder, because it or what it is in is something else.

    Raises:
        RegrowValueError: naming the argument.
    """
    for part in (path, *path.parents):
        if os.path.lexists(part) and not os.path.isdir(part):
            raise RegrowValueError(
                f"`{name}` {path} must be a folder, and {part} is none\nName another folder."
            )
