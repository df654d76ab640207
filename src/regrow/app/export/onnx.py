"""`to_onnx`: a dense ONNX file, checked in ONNX Runtime where that is installed."""

from __future__ import annotations

import copy
import logging
import os
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import regrow
from regrow._files import write_atomically
from regrow.arguments import require_model, require_path
from regrow.errors import RegrowRuntimeError, RegrowValueError
from regrow.measure.example import run_once

LIMIT = 1e-4
"""Largest difference of an output, as a share of the largest output."""
MOST = 2**31 - 2**20
"""Bytes of the weights of one ONNX file; the format's own limit is 2 GiB."""


def to_onnx(model: nn.Module, example: Tensor | tuple[Tensor, ...], file: str | os.PathLike[str]) -> str:
    """Write `model` to a dense ONNX file that takes batches of any size, and return what there is to say of it.

    Where ONNX Runtime is installed, the file is written only if its outputs equal those of the model there.

    Args:
        model: in evaluation mode, dense or sparse; it stays as it is.
        example: one batch, or the tensors that the forward pass takes, each with the batch in its first dimension.
        file: where it is to be.

    Returns:
        Two sentences: what the zeros in the file cost, and whether its outputs were compared.

    Raises:
        RegrowValueError: a model in training mode or too large for one file, an example that it does not take.
        RegrowRuntimeError: onnx and onnxscript are missing, the network cannot be exported, or it gives other outputs.
    """
    require_model("model", model)
    if model.training:
        raise RegrowValueError("`model` is in training mode\nCall model.eval() first.")
    target = Path(require_path("file", file))
    if missing := [package for package in ("onnx", "onnxscript") if find_spec(package) is None]:
        raise RegrowRuntimeError(
            f"ONNX files need {' and '.join(missing)}\nInstall them: pip install onnx onnxscript"
        )
    run_once(model, example)
    dense = regrow.densify(copy.deepcopy(model))
    weights = [parameter for parameter in dense.parameters() if parameter.dim() > 1]
    if (size := sum(tensor.nbytes for tensor in dense.state_dict().values())) > MOST:
        raise RegrowValueError(f"`model` has {size:,} bytes of weights; one ONNX file holds up to {MOST:,}")
    inputs = (example,) if isinstance(example, Tensor) else tuple(example)
    # an example of one would be taken for a batch that is always one
    inputs = tuple(torch.cat([x, x]) if len(x) == 1 else x for x in inputs)
    program = _exported(dense, inputs)

    def write(path: Path) -> None:
        program.save(path, external_data=False)
        if find_spec("onnxruntime") is not None:
            _compare(dense, inputs, path)

    write_atomically(target, write)
    zeros = sum(int((weight == 0).sum()) for weight in weights) / max(sum(w.numel() for w in weights), 1)
    return (
        f"{target}: {target.stat().st_size / 1e6:,.1f} MB, dense: {zeros:.0%} of the weights in it are zeros, which "
        f"take the space and the time of any other number in ONNX engines. {_compared()}"
    )


def _compared() -> str:
    if find_spec("onnxruntime") is None:
        return "Its outputs were not compared with the model's: onnxruntime is not installed."
    return "ONNX Runtime gives the model's outputs."


def _exported(dense: nn.Module, inputs: tuple[Tensor, ...]) -> Any:
    batch = torch.export.Dim("batch")
    log = logging.getLogger("torch.onnx")
    level = log.level
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # in which parts of torch speak to each other
        log.setLevel(logging.ERROR)  # it also tells that torchvision is not installed
        try:
            return torch.onnx.export(
                dense, inputs, dynamo=True, verbose=False, dynamic_shapes=tuple({0: batch} for _ in inputs)
            )
        except Exception as error:
            said = str(error).strip().split("\n")[0]
            raise RegrowRuntimeError(f"`model` cannot be exported: {type(error).__name__}: {said}") from error
        finally:
            log.setLevel(level)


def _compare(dense: nn.Module, inputs: tuple[Tensor, ...], file: Path) -> None:
    """Compare outputs in ONNX Runtime for the batch that was exported and for a larger one."""
    import onnxruntime  # type: ignore[import-untyped,unused-ignore]

    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_inputs()]
    for batch in (inputs, tuple(torch.cat([x, x.flip(0)]) for x in inputs)):
        with torch.no_grad():
            wanted = _outputs(dense(*batch))
        given = session.run(None, dict(zip(names, (x.numpy() for x in batch), strict=True)))
        for number, (own, other) in enumerate(zip(wanted, given, strict=True)):
            largest = own.abs().max().item()
            difference = (own - torch.from_numpy(other)).abs().max().item()
            if not difference <= LIMIT * largest:  # nan too
                raise RegrowRuntimeError(
                    f"ONNX Runtime gives another output {number} for a batch of {len(batch[0])}: the largest "
                    f"difference is {difference:.2g}, the largest output {largest:.2g}"
                )


def _outputs(found: Any) -> list[Tensor]:
    """Return the tensors that a forward pass gave, in the order in which an ONNX file has them."""
    if isinstance(found, Tensor):
        return [found]
    values = found.values() if isinstance(found, dict) else found
    return [tensor for value in values for tensor in _outputs(value)]
