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
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

import regrow
from regrow.errors import RegrowRuntimeError, RegrowValueError
from regrow.saving import write_atomically

LOGS = ("metrics.jsonl", "maps.jsonl")


def file_name(text: str) -> str:
    """`text` as part of a file's name that every system takes: no slash, colon or blank."""
    return re.sub(r"[^\w.,=+-]+", "-", text).strip("-")


class RunFolder:
    """A folder of one training run. Every method raises RegrowRuntimeError where the disk refuses."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._logs: dict[str, io.FileIO] = {}

    @staticmethod
    def refuse_taken(out: str | None) -> None:
        """Refuse a folder `out` that a new run cannot have.

        Raises:
            RegrowValueError: where it holds a run already, or is a file.
        """
        if out is None:
            return
        path = Path(out).expanduser()
        if (path / "config.yaml").exists():
            raise RegrowValueError(
                f"`out` {path} holds a run already\n"
                f"Continue it with `regrow train --resume {path}`, name another folder, or delete it."
            )
        if path.exists() and not path.is_dir():
            raise RegrowValueError(f"`out` {path} is a file\nName a folder that is empty or not there yet.")

    @classmethod
    def create(cls, config: str, out: str | None, stem: str) -> RunFolder:
        """A new folder: `out`, or ``runs/<stem>-<time>``; `config` is what ``config.yaml`` will hold.

        Raises:
            RegrowValueError: where `out` holds a run already, or is a file.
        """
        cls.refuse_taken(out)
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
                    number += 1
                    folder.path = path.with_name(f"{path.name}-{number}")
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
        return json.loads((self.path / name).read_text(encoding="utf-8"))

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
        with safe_open(path, framework="pt") as opened:
            sparse = "regrow" in (opened.metadata() or {})
        if sparse:
            return regrow.load(path, into)
        into.load_state_dict(load_file(path))
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
        if path.is_file():
            try:
                state = torch.load(path, map_location="cpu", weights_only=True)
            except Exception as error:  # torch raises many kinds for a damaged file
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
