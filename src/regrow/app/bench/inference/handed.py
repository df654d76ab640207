"""What the processes of the engines are handed: the same weights in the file that each of them loads."""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import regrow
from regrow.app.bench.inference.engines import NETWORK, Engine
from regrow.app.bench.inference.networks import SEEN, Network
from regrow.app.export import to_onnx

INPUT = "input.npy"
CALIBRATION = 2
"""Batches from which quantisation learns its ranges."""


@dataclass(frozen=True)
class Subject:
    """A sparse network, the same as a dense one, and the folder that holds both for others."""

    sparse: nn.Module
    dense: nn.Module
    calibration: tuple[Tensor, ...]
    folder: Path


def hand_over(
    network: Network, sparsity: float, batches: Sequence[int], engines: Sequence[Engine], folder: Path
) -> dict[str, str]:
    """Write inputs, outputs and the file of each engine to `folder`.

    Returns:
        Why a file could not be made, by its name.
    """
    sparse = network.sparse(sparsity)
    dense = regrow.densify(copy.deepcopy(sparse))
    x = network.example(dense, max(batches))
    np.save(folder / INPUT, x.numpy())
    with torch.inference_mode():
        for batch in batches:
            np.save(folder / reference(batch), dense(x[:batch]).numpy())
    (folder / NETWORK).write_text(json.dumps(network.to_dict()), encoding="utf-8")
    seen = tuple(network.example(dense, SEEN) for _ in range(CALIBRATION))
    subject, failed = Subject(sparse, dense, seen, folder), {}
    for file in dict.fromkeys(engine.file for engine in engines):
        try:
            MAKERS[file](subject, folder / file)
        except Exception as error:  # whatever an exporter raises on a user's network
            failed[file] = f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"
    return failed


def reference(batch: int) -> str:
    """Return the name of the file with torch's outputs for so many examples."""
    return f"reference-{batch}.npy"


def _weights(subject: Subject, file: Path) -> None:
    torch.save(subject.dense.state_dict(), file)


def _onnx(subject: Subject, file: Path) -> None:
    to_onnx(subject.dense, subject.calibration[0], file)


def _quantised(subject: Subject, file: Path) -> None:
    """Write a file with quantisation and its reverse around each operator, which both ONNX engines take for int8.

    Weights have 7 bits, a scale for each channel: with 8, sums of products overflow on processors without VNNI.
    """
    from onnxruntime import quantization  # type: ignore[import-untyped,unused-ignore]
    from onnxruntime.quantization.shape_inference import quant_pre_process  # type: ignore[import-untyped,unused-ignore]

    plain, prepared = file.with_name("float32.onnx"), file.with_name("prepared.onnx")
    if not plain.exists():
        _onnx(subject, plain)
    kinds = quantization.QuantType
    with _silent():
        quant_pre_process(str(plain), str(prepared))
        quantization.quantize_static(
            str(prepared),
            str(file),
            _Reader(_name_of_input(plain), subject.calibration),
            quant_format=quantization.QuantFormat.QDQ,
            activation_type=kinds.QUInt8,
            weight_type=kinds.QInt8,
            per_channel=True,
            reduce_range=True,
        )


@contextmanager
def _silent() -> Iterator[None]:
    """Hold back warnings in the log, such as those about norms that have no channels to quantise."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


class _Reader:
    """Gives calibration batches as ONNX Runtime asks for them."""

    def __init__(self, name: str, batches: Sequence[Tensor]) -> None:
        self._left: Iterator[dict[str, Any]] = iter([{name: batch.numpy()} for batch in batches])

    def get_next(self) -> dict[str, Any] | None:
        return next(self._left, None)


def _name_of_input(file: Path) -> str:
    import onnx

    return str(onnx.load(file, load_external_data=False).graph.input[0].name)


def _deployed(precision: str) -> Callable[[Subject, Path], None]:
    def make(subject: Subject, file: Path) -> None:
        seen = subject.calibration if precision == "int8" else None
        model = regrow.deploy(subject.sparse, subject.calibration[0], precision=precision, calibration=seen)
        model.save(file)

    return make


MAKERS: dict[str, Callable[[Subject, Path], None]] = {
    "weights.pt": _weights,
    "float32.onnx": _onnx,
    "int8.onnx": _quantised,
    **{f"{precision}.regrow": _deployed(precision) for precision in ("float32", "bfloat16", "int8")},
}
