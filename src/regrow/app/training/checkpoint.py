"""What a checkpoint must be before a run goes on from it: read without running anything, and checked part by part."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from regrow._formats import CHECKPOINT, require_format
from regrow.app.tasks import CLASSIFICATION
from regrow.app.training.progress import NUMBERS
from regrow.errors import RegrowRuntimeError, RegrowValueError
from regrow.weights.loading import all_names

PARTS: dict[str, type] = {
    "model": Mapping,
    "optimizer": Mapping,
    "status": Mapping,
    "losses": list,
    "random": Mapping,
    "logs": Mapping,
}
_AGAIN = (
    "Copy the whole run folder again, or delete the checkpoint: then `--resume` trains from the beginning."
)


def read(path: Path) -> dict[str, Any]:
    """Read the checkpoint in file `path`, of this format or an older one, as one of this format.

    Raises:
        RegrowValueError: what is not a checkpoint, with what it is instead and what to do.
    """
    if not path.is_file():
        raise RegrowValueError(f"it is not a file\n{_AGAIN}")
    if not path.stat().st_size:
        raise RegrowValueError(f"it is empty\n{_AGAIN}")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:  # torch advises to run it
        raise RegrowValueError(
            f"it holds more than tensors and plain values, which is never run, or is damaged\n{_AGAIN}"
        ) from error
    except Exception as error:  # torch raises many kinds for a damaged file
        raise RegrowValueError(f"it is cut or damaged\n{_AGAIN}") from error
    if not isinstance(state, dict) or not all(isinstance(key, str) for key in state):
        raise RegrowValueError(f"it holds a {type(state).__name__}, and no parts by name\n{_AGAIN}")
    return READERS[require_format("it", state, "format", CHECKPOINT)](state)


def _read_1(state: dict[str, Any]) -> dict[str, Any]:
    wrong = [name for name, kind in PARTS.items() if not isinstance(state.get(name), kind)]
    if wrong:
        kind = (
            "it is the state dict of a model" if _is_state_dict(state) else "it is not a checkpoint of a run"
        )
        raise RegrowValueError(f"{kind}: `{wrong[0]}` is missing or of another type\n{_AGAIN}")
    _check_status(state["status"])
    if not all(isinstance(loss, float) for loss in state["losses"]):
        raise RegrowValueError(f"`losses` must be numbers\n{_AGAIN}")
    for name, known in state["logs"].items():
        numbers = known if isinstance(known, list) else [known]
        if not numbers or not all(type(number) is int and number >= 0 for number in numbers):
            raise RegrowValueError(f"`logs` must say how long {str(name)[:40]!r} is\n{_AGAIN}")
    return state


READERS: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {1: _read_1}
"""By the format's number: check what the file holds and return it in the newest format."""


def _is_state_dict(state: Mapping[str, Any]) -> bool:
    return bool(state) and all(isinstance(value, Tensor) for value in state.values())


def _check_status(status: Mapping[str, Any]) -> None:
    # beside these there may be the metrics of another task
    known = {*NUMBERS, *(metric.kept for metric in CLASSIFICATION.metrics)}
    numbers = all(value is None or isinstance(value, int | float) for value in status.values())
    if not numbers or not {"step", "total", "sparsity"} <= status.keys():
        raise RegrowValueError(f"`status` must hold numbers for {', '.join(sorted(known))}\n{_AGAIN}")
    if not 0 <= status["step"] <= status["total"]:
        raise RegrowValueError(
            f"`status` is at step {status['step']}, allowed is 0 .. {status['total']}\n{_AGAIN}"
        )


def require_topology(model: nn.Module, state: Mapping[str, Any]) -> None:
    """Refuse a model's state without the topology of one of its sparse weights, which its present one would cut.

    Raises:
        RegrowValueError: naming the weight.
    """
    for name, _ in all_names(model):
        if f"{name}_mask" not in state and f"{name}_crow" not in state:
            raise RegrowValueError(f"the topology of `{name}` is missing")


@contextmanager
def restoring(part: str) -> Iterator[None]:
    """Turn what goes wrong while `part` of a checkpoint is put back into an error that says what does not fit.

    Raises:
        RegrowRuntimeError: naming the part.
    """
    try:
        yield
    except Exception as error:  # of torch, of optimizers and of a user's own modules
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise RegrowRuntimeError(
            f"`{part}` in the checkpoint does not fit the recipe of the run (config.yaml): {reason}\n"
            "The recipe, the code that it names or the checkpoint is of another run. Put back what was changed, or "
            "start a new run."
        ) from error
