"""Engines that run a network: what each needs, the file it reads, and how it makes a function of it.

An engine is loaded in a process of its own (`process`); a loader gets its file, one batch and the number of threads,
and returns the function that runs that batch once more and gives the output.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import regrow
from regrow.app.bench.dense import FORMS, formatted
from regrow.app.bench.inference.networks import Network

Array = NDArray[Any]
Run = Callable[[], Array]
Load = Callable[[Path, Array, int], Run]
NETWORK = "network.json"
"""Name of the file, beside the others, that says what builds the network."""


@dataclass(frozen=True)
class Engine:
    """One way to run a network."""

    name: str
    package: str
    """Distribution that it is part of."""
    precision: str
    """Of `LIMITS`."""
    file: str
    """Name of the file that it loads; see `handed`."""
    load: Load

    @property
    def version(self) -> str | None:
        """Version of its package; None where that is not installed."""
        if self.package == "regrow":
            return regrow.__version__
        try:
            return metadata.version(self.package)
        except metadata.PackageNotFoundError:
            return None

    @property
    def is_dense(self) -> bool:
        """Whether zeros cost it what other numbers cost."""
        return self.package != "regrow"


LIMITS = {"float32": 1e-4, "bfloat16": 0.1, "int8": 0.5}
"""Largest difference from torch's outputs at each precision, as a share of the largest output."""


def eager(file: Path, x: Array, threads: int, form: str = "eager", compiled: bool = False) -> Run:
    """Load weights into the network that its builder makes."""
    torch.set_num_threads(threads)
    network = Network(**json.loads((file.parent / NETWORK).read_text(encoding="utf-8")))
    model = network.build()
    model.load_state_dict(torch.load(file, weights_only=True))
    model = model.eval().to(memory_format=FORMS[form])  # type: ignore[call-overload]
    given = formatted(torch.from_numpy(x), FORMS[form])
    call: Any = torch.compile(model, dynamic=False, options={"freezing": True}) if compiled else model

    @torch.no_grad()  # torch.compile does not freeze weights in inference mode
    def run() -> Array:
        output: Array = call(given).numpy()
        return output

    return run


def onnxruntime(file: Path, x: Array, threads: int) -> Run:
    """Load an ONNX file into ONNX Runtime."""
    import onnxruntime as ort  # type: ignore[import-untyped,unused-ignore]

    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    session = ort.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    feed = {session.get_inputs()[0].name: x}

    def run() -> Array:
        output: Array = session.run(None, feed)[0]
        return output

    return run


def openvino(file: Path, x: Array, threads: int) -> Run:
    """Load an ONNX file into OpenVINO, for the shape of `x`."""
    import openvino as ov  # type: ignore[import-untyped,unused-ignore]

    model = ov.Core().read_model(file)
    model.reshape(list(x.shape))
    hints = {"PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": "f32"}
    request = ov.compile_model(
        model, "CPU", {**hints, "INFERENCE_NUM_THREADS": threads}
    ).create_infer_request()

    def run() -> Array:
        output: Array = request.infer([x], share_inputs=True, share_outputs=True)[0]
        return output

    return run


def deployed(file: Path, x: Array, threads: int) -> Run:
    """Load a deployed network."""
    torch.set_num_threads(threads)
    model = regrow.Deployed.load(file)
    given = torch.from_numpy(x)

    @torch.inference_mode()
    def run() -> Array:
        output: Array = model(given).float().numpy()
        return output

    return run


REFERENCE = Engine("torch eager", "torch", "float32", "weights.pt", eager)
"""What the outputs of the others are compared with."""
_EAGER = partial(eager, form="channels last")
ENGINES = (
    REFERENCE,
    Engine("torch channels last", "torch", "float32", "weights.pt", _EAGER),
    Engine("torch compiled", "torch", "float32", "weights.pt", partial(_EAGER, compiled=True)),
    Engine("onnxruntime float32", "onnxruntime", "float32", "float32.onnx", onnxruntime),
    Engine("onnxruntime int8", "onnxruntime", "int8", "int8.onnx", onnxruntime),
    Engine("openvino float32", "openvino", "float32", "float32.onnx", openvino),
    Engine("openvino int8", "openvino", "int8", "int8.onnx", openvino),
    *(
        Engine(f"regrow {precision}", "regrow", precision, f"{precision}.regrow", deployed)
        for precision in LIMITS
    ),
)
COMPILED = ENGINES[2]


def engine(name: str) -> Engine:
    """Return the engine of that name."""
    return next(each for each in ENGINES if each.name == name)


def difference(output: Array, reference: Array) -> float:
    """Return the largest difference of an output from another, as a share of the largest there; infinite where the
    shapes differ or one is not finite.
    """
    if output.shape != reference.shape or not np.isfinite(output).all():
        return float("inf")
    return float(np.abs(output - reference).max() / (np.abs(reference).max() or 1.0))
