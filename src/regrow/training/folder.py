"""The run folder: files written whole, so that a kill or a full disk leaves the old ones, and logs that grow.

config.yaml        the resolved recipe
environment.json   versions, machine, the command that repeats the run
data.json          what the data is
metrics.jsonl      what was measured, one record a line
maps.jsonl         connections that leave each input pixel, at the start and after each update
checkpoint.pt      everything that a resumed run needs
model.safetensors  the network that is the result; an ensemble has none, only its tickets
tickets/0.safetensors, ...  the tickets of a run that makes several
members/0, ...     the run folders of the members of an ensemble of independent runs
summary.txt/.json  the result; the last to be written, so their presence means that the run is finished
"""

from __future__ import annotations

import io
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import torch
from safetensors.torch import save_file
from torch import nn

import regrow
from regrow import modelfile
from regrow.errors import RegrowError, RegrowRuntimeError, RegrowValueError
from regrow.saving import write_atomically
from regrow.training import checkpoint

LOGS = ("metrics.jsonl", "maps.jsonl")
SUMMARY = {
    "recipe": str,
    "method": str,
    "seed": int,
    "steps": int,
    "sparsity": float | int,
    "accuracy": float | int,
}
"""What every summary holds."""
_AGAIN = "Copy the whole run folder again, or train again."


class RunFolder:
    """A folder of one training run. Every method raises RegrowRuntimeError where the disk refuses."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._logs: dict[str, io.FileIO] = {}

    @classmethod
    def create(cls, config: str, out: str | None, stem: str) -> RunFolder:
        """A new folder: `out`, or ``runs/<stem>-<time>``; `config` is what ``config.yaml`` will hold.

        Raises:
            RegrowValueError: where `out` holds a run already.
        """
        moment = time.strftime("%Y%m%d-%H%M%S")
        path = Path(out).expanduser() if out else Path("runs") / f"{stem}-{moment}"
        folder = cls(path)
        with folder.disk(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            number = 1
            while True:
                try:
                    folder.path.mkdir(exist_ok=out is not None)
                    break
                except FileExistsError:
                    number += 1
                    folder.path = path.with_name(f"{path.name}-{number}")
        if (folder.path / "config.yaml").exists():
            raise RegrowValueError(
                f"`out` {path} holds a run already\n"
                f"Continue it with `regrow train --resume {path}`, name another folder, or delete it."
            )
        folder.write("config.yaml", config.encode())
        return folder

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """The folder of a run that was started before.

        Raises:
            RegrowValueError: where there is none.
        """
        if not (path / "config.yaml").is_file():
            raise RegrowValueError(
                f"{path} holds no run: it has no config.yaml\n"
                "Give the folder that `regrow train` named when it started."
            )
        return cls(path)

    @property
    def finished(self) -> bool:
        """Whether the run came to its end."""
        return (self.path / "summary.json").is_file()

    def read(self, name: str) -> Any:
        """The JSON document in file `name`."""
        text = self.text(name)
        try:
            return json.loads(text)
        except (ValueError, RecursionError) as error:
            raise RegrowRuntimeError(f"cannot read {self.path / name}: it is damaged\n{_AGAIN}") from error

    def summary(self) -> dict[str, Any]:
        """What ``summary.json`` holds."""
        found = self.read("summary.json")
        for key, kind in SUMMARY.items():
            if not isinstance(found, dict) or not isinstance(found.get(key), kind):
                raise RegrowRuntimeError(
                    f"{self.path / 'summary.json'} is no summary of a run: `{key}` is missing or of another type\n"
                    f"{_AGAIN}"
                )
        return dict(found)

    def text(self, name: str) -> str:
        """The text in file `name`."""
        path = self.path / name
        try:
            return path.read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is no text"
            raise RegrowRuntimeError(f"cannot read {path}: {reason}\n{_AGAIN}") from error

    def records(self, name: str) -> list[dict[str, Any]]:
        """The records of log `name`, oldest first; none where there is no such log."""
        path = self.path / name
        text = path.read_text(encoding="utf-8") if path.is_file() else ""
        return [json.loads(line) for line in text.splitlines()]

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
            rest = memoryview((json.dumps(record) + "\n").encode())
            while rest:  # a disk that fills up takes a part first, and refuses the next
                rest = rest[self._logs[name].write(rest) :]

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
            return regrow.load(path, into)
        try:
            into.load_state_dict(tensors)
        except RuntimeError as error:
            raise RegrowRuntimeError(
                f"{path} does not fit the network that the recipe of the run names: "
                f"{' '.join(str(error).split())[:300]}\n{_AGAIN}"
            ) from error
        return into

    def save_checkpoint(self, state: dict[str, Any]) -> None:
        """Write `state` and how long the logs are at this moment; the old checkpoint stays until that is done."""
        for log in self._logs.values():
            with self.disk(Path(str(log.name))):
                os.fsync(log.fileno())
        sizes = {name: (self.path / name).stat().st_size for name in LOGS if (self.path / name).exists()}
        self.write_with("checkpoint.pt", lambda stream: torch.save({**state, "logs": sizes}, stream))

    def load_checkpoint(self) -> dict[str, Any] | None:
        """The last checkpoint, with the logs cut back to its moment; None where none was written yet."""
        path = self.path / "checkpoint.pt"
        state: dict[str, Any] | None = None
        if os.path.lexists(path):
            try:
                state = checkpoint.read(path)
            except RegrowError as error:
                raise RegrowRuntimeError(f"cannot read checkpoint {path}: {error}") from error
        sizes = state["logs"] if state else {}
        for name in LOGS:
            if (self.path / name).exists():
                with self.disk(self.path / name):
                    os.truncate(self.path / name, sizes.get(name, 0))
        return state

    def close(self) -> None:
        """Close the logs."""
        for log in self._logs.values():
            log.close()
        self._logs.clear()

    @contextmanager
    def disk(self, path: Path) -> Iterator[None]:
        """Turn what the system refuses while `path` is written into an error with a remedy."""
        try:
            yield
        except (OSError, RegrowRuntimeError) as error:
            kept = (self.path / "checkpoint.pt").is_file()
            then = f"continue with `regrow train --resume {self.path}`" if kept else "start again"
            raise RegrowRuntimeError(
                f"cannot write {path}: {_reason(error)}"
                + ("\nThe last checkpoint is whole." if kept else "")
                + f"\nFree some space or make the folder writable, then {then}."
            ) from error


def _reason(error: BaseException) -> str:
    """What the system said: torch and safetensors bury it under errors of their own."""
    link: BaseException | None = error
    while link is not None:
        if isinstance(link, OSError) and link.strerror:
            return link.strerror
        link = link.__cause__ or link.__context__
    return str(error.__cause__ or error)
