"""A dense ONNX file of a sparse network, in ONNX Runtime."""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn

import regrow
from regrow import RegrowError
from regrow.app.export import onnx as export
from regrow.app.export import to_onnx

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def network() -> nn.Sequential:
    return nn.Sequential(
        *(
            nn.Conv2d(3, 8, 3),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(8 * 36, 20),
            nn.Linear(20, 5),
        )
    )


def trained(storage: str = "compressed") -> nn.Module:
    torch.manual_seed(0)
    model = regrow.sparsify(network(), 0.9, rescale=True, storage=storage)
    model(torch.randn(16, 3, 8, 8))  # so that the norm has something to fold
    return model.eval()


@pytest.mark.parametrize("storage", ["masked", "compressed"])
@pytest.mark.parametrize("batch", [1, 4])
def test_onnx_runtime_gives_the_same_for_any_batch(storage: str, batch: int, tmp_path: Path) -> None:
    ort = pytest.importorskip("onnxruntime")
    model, file = trained(storage), tmp_path / "model.onnx"
    before = copy.deepcopy(model.state_dict())
    said = to_onnx(model, torch.randn(batch, 3, 8, 8), file)
    session = ort.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    for count in (1, 7):
        x = torch.randn(count, 3, 8, 8)
        (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        np.testing.assert_allclose(found, model(x).detach().numpy(), rtol=1e-4, atol=1e-5)
    assert "90% of the weights in it are zeros, which take the space and the time of any other number" in said
    assert said.startswith(f"{file}: 0.0 MB, dense")
    assert said.endswith("ONNX Runtime gives the model's outputs.")
    assert regrow.is_sparse(model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


class Two(nn.Module):
    """Two inputs, and outputs in a dictionary."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 4)

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"sum": self.fc(a + b), "pair": self.fc(a * b).relu()}


def test_several_inputs_and_outputs(tmp_path: Path) -> None:
    ort = pytest.importorskip("onnxruntime")
    model, file = Two().eval(), tmp_path / "two.onnx"
    to_onnx(model, (torch.randn(3, 6), torch.randn(3, 6)), file)
    session = ort.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    a, b = torch.randn(5, 6), torch.randn(5, 6)
    found = session.run(
        None, {each.name: x.numpy() for each, x in zip(session.get_inputs(), (a, b), strict=True)}
    )
    wanted = model(a, b)
    for given, name in zip(found, ("sum", "pair"), strict=True):
        np.testing.assert_allclose(given, wanted[name].detach().numpy(), rtol=1e-4, atol=1e-5)


def test_a_file_with_other_outputs_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime")
    whole = torch.onnx.export

    def damaged(model: nn.Module, *args: Any, **kwargs: Any) -> Any:
        other = copy.deepcopy(model)
        with torch.no_grad():
            other.get_parameter("4.weight")[0] += 1
        return whole(other, *args, **kwargs)

    monkeypatch.setattr(torch.onnx, "export", damaged)
    file = tmp_path / "model.onnx"
    file.write_bytes(b"before")
    with pytest.raises(RegrowError, match="ONNX Runtime gives another output 0 for a batch of 2"):
        to_onnx(trained(), torch.randn(2, 3, 8, 8), file)
    assert file.read_bytes() == b"before"


def test_without_onnx_runtime_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there = export.find_spec
    monkeypatch.setattr(export, "find_spec", lambda name: None if name == "onnxruntime" else there(name))
    said = to_onnx(trained(), torch.randn(2, 3, 8, 8), tmp_path / "model.onnx")
    assert said.endswith("Its outputs were not compared with the model's: onnxruntime is not installed.")
    onnx.checker.check_model(tmp_path / "model.onnx")


def test_without_onnx_nothing_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "find_spec", lambda name: None)
    with pytest.raises(RegrowError, match="ONNX files need onnx and onnxscript\nInstall them: pip install"):
        to_onnx(trained(), torch.randn(2, 3, 8, 8), tmp_path / "model.onnx")


class Asks(nn.Linear):
    """Its branch depends on the numbers, which an exporter cannot follow."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) if x.sum() > 0 else x[:, :4]


@pytest.mark.parametrize(
    ("model", "example", "text"),
    [
        (network(), torch.randn(2, 3, 8, 8), "`model` is in training mode\nCall model.eval"),
        (
            network().eval(),
            torch.randn(2, 4, 8, 8),
            r"`example` does not go through `model`: shape \(2, 4, 8, 8\)",
        ),
        (Asks(6, 4).eval(), torch.randn(2, 6), "`model` cannot be exported: "),
        (nn.ReLU().eval(), torch.empty(0, 3), "`example` must hold at least one example"),
        ("model", torch.randn(2, 3), "`model` must be"),
    ],
)
def test_what_is_refused(model: Any, example: Any, text: str, tmp_path: Path) -> None:
    with pytest.raises(RegrowError, match=text):
        to_onnx(model, example, tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


def test_importing_it_imports_no_engine() -> None:
    assert "onnxruntime" not in vars(sys.modules["regrow.app.export.onnx"])
