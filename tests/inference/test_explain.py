"""`regrow.explain` of a deployed network: the kernels of each layer, its share of the time, and what stays dense."""

from __future__ import annotations

import json
import time
import warnings
from pathlib import Path

import pytest
import torch
from machine import using
from torch import Tensor, nn

import regrow
from regrow.errors import RegrowRuntimeError, RegrowValueError
from regrow.inference.explain import DeployedExplanation
from regrow.ops import native

NEEDS_KERNELS = pytest.mark.skipif(not native.available(), reason="there are no kernels")


class Convolutions(nn.Module):
    """Sparse convolutions, a dense one, norms and a sum: what is fused behind layers, and what is not."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.norm = nn.BatchNorm2d(16)
        self.body = nn.Conv2d(16, 16, 3, padding=1)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x)).relu()
        out: Tensor = self.head(self.pool(x + self.body(x).relu()).flatten(1))
        return out


class Strange(nn.Module):
    """Operations that the kernels do not know, between layers that they do."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(64, 32), nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(self.first(x).sort(1)[0].cumsum(1))
        return out


class Deciding(nn.Module):
    """Decides by the values of its input, which nothing can trace."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layer(x if x.sum() > 0 else -x)
        return out


def convolutions() -> nn.Module:
    torch.manual_seed(0)
    return regrow.sparsify(Convolutions(), sparsity=0.8, include=["body"]).eval()


def explained(model: nn.Module, example: Tensor) -> DeployedExplanation:
    found = regrow.explain(regrow.deploy(model, example), example, seconds=0)
    assert isinstance(found, DeployedExplanation)
    return found


@NEEDS_KERNELS
@pytest.mark.parametrize("batch", [1, 3])
def test_each_layer_has_its_kernels_and_its_share(batch: int) -> None:
    found = explained(convolutions(), torch.rand(batch, 3, 12, 12))
    rows = {row.name: row for row in found.layers}
    assert {"stem", "body", "head"} <= rows.keys()
    assert "norm" not in rows  # folded into the layer before it
    assert sum(row.share for row in found.layers) == pytest.approx(1)
    assert sum(row.milliseconds for row in found.layers) == pytest.approx(found.milliseconds)
    assert all(row.kernels and row.milliseconds >= 0 for row in found.layers)
    assert [rows[name].shape for name in ("stem", "body", "head")] == [
        (16, 3, 3, 3),
        (16, 16, 3, 3),
        (10, 16),
    ]
    assert rows["body"].density == pytest.approx(0.2, abs=0.01)
    assert "sparse convolution" in rows["body"].kernels
    assert rows["body"].reason == ""
    assert (rows["stem"].density, rows["stem"].reason) == (1.0, "its weight is dense")
    assert "dense convolution" in rows["stem"].kernels
    assert not any(kernel.startswith("torch") for row in found.layers for kernel in row.kernels)
    assert rows["pool"].kernels == ("mean",)
    assert "element-wise" in [kernel for row in found.layers for kernel in row.kernels]  # the sum


@NEEDS_KERNELS
def test_int8_names_its_kernel() -> None:
    torch.manual_seed(0)
    model = regrow.sparsify(nn.Sequential(nn.Conv2d(16, 16, 3), nn.ReLU(), nn.Conv2d(16, 8, 3)), 0.5).eval()
    x = torch.rand(1, 16, 12, 12)
    deployed = regrow.deploy(model, x, precision="int8", calibration=[x])
    found = regrow.explain(deployed, x, seconds=0)
    assert isinstance(found, DeployedExplanation)
    assert "sparse convolution in int8" in found.layers[0].kernels


@NEEDS_KERNELS
def test_sizes_are_known_and_take_no_time() -> None:
    class Reshaped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8 * 36, 10)

        def forward(self, x: Tensor) -> Tensor:
            x = self.conv(x)
            out: Tensor = self.head(x.view(x.size(0), -1)) + x.size(0)
            return out

    torch.manual_seed(0)
    model, x = regrow.sparsify(Reshaped(), sparsity=0.8).eval(), torch.rand(2, 3, 6, 6)
    deployed = regrow.deploy(model, x)
    found = regrow.explain(deployed, x, seconds=0)
    assert isinstance(found, DeployedExplanation)
    assert not any(kernel.startswith("torch") for row in found.layers for kernel in row.kernels)
    assert [row.name for row in found.layers].count("output") == 1  # one program, from end to end
    assert not any("_stack" in row.name for row in found.layers)
    for batch in (1, 2, 5):
        x = torch.rand(batch, 3, 6, 6)
        with torch.no_grad():
            torch.testing.assert_close(deployed(x), model(x), rtol=1e-5, atol=1e-5)


@NEEDS_KERNELS
def test_what_the_kernels_do_not_know_is_torch_s_with_a_reason() -> None:
    torch.manual_seed(0)
    found = explained(regrow.sparsify(Strange(), sparsity=0.8).eval(), torch.rand(2, 64))
    torch_s = {kernel: row.reason for row in found.layers for kernel in row.kernels if kernel[:6] == "torch "}
    assert torch_s == {
        "torch aten.sort.default": "its result is not float32",
        "torch getitem": "it takes one of several results of torch",
        "torch aten.cumsum.default": "there is no kernel for aten.cumsum.default",
    }
    assert sum(row.share for row in found.layers) == pytest.approx(1)


@NEEDS_KERNELS
def test_units_that_were_cut_are_named() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 16), nn.ReLU(), nn.Linear(16, 5)).eval()
    with torch.no_grad():
        model[0].weight[[3, 5]] = 0  # type: ignore[index]
        model[2].weight[:, 7] = 0  # type: ignore[index]
    found = explained(model, torch.rand(1, 20))
    assert found.cut == {"0": 3}
    assert found.layers[0].shape == (13, 20)
    assert "constant or nothing reads them: 3 of `0`" in str(found)
    assert "nothing reads" not in str(explained(convolutions(), torch.rand(1, 3, 12, 12)))


@NEEDS_KERNELS
def test_the_table_and_the_json() -> None:
    found = explained(convolutions(), torch.rand(1, 3, 12, 12))
    lines = str(found).splitlines()
    assert lines[0].split() == ["layer", "shape", "density", "kernel", "ms", "share"]
    assert [line.split()[0] for line in lines[1 : 1 + len(found.layers)]] == [
        row.name for row in found.layers
    ]
    assert f"{found.milliseconds:.3f} ms in all" in lines
    content = json.loads(json.dumps(found.to_dict()))
    first = found.layers[0]
    assert first.shape == (16, 3, 3, 3)
    assert content["layers"][0] == {**vars(first), "kernels": [*first.kernels], "shape": [*first.shape]}


@NEEDS_KERNELS
def test_it_takes_as_long_as_asked_and_other_batches() -> None:
    deployed = regrow.deploy(convolutions(), torch.rand(1, 3, 12, 12))
    start = time.perf_counter()
    found = regrow.explain(deployed, torch.rand(4, 3, 12, 12), seconds=0.3)
    assert time.perf_counter() - start >= 0.3
    assert isinstance(found, DeployedExplanation)


@NEEDS_KERNELS
def test_a_loaded_network_is_explained_alike(tmp_path: Path) -> None:
    x = torch.rand(1, 3, 12, 12)
    deployed = regrow.deploy(convolutions(), x)
    loaded = regrow.Deployed.load(deployed.save(tmp_path / "network"))
    rows = []
    for each in (deployed, loaded):
        found = regrow.explain(each, x, seconds=0)
        assert isinstance(found, DeployedExplanation)
        rows.append([(row.name, row.kernels, row.shape, row.density, row.reason) for row in found.layers])
    assert rows[0] == rows[1]


@NEEDS_KERNELS
def test_bad_examples_are_named() -> None:
    deployed = regrow.deploy(convolutions(), torch.rand(1, 3, 12, 12))
    with pytest.raises(RegrowValueError, match=r"`example` must be float32 of shape \(N, 3, 12, 12\)"):
        regrow.explain(deployed, torch.rand(1, 3, 9, 9))
    with pytest.raises(
        RegrowValueError,
        match=r"`example`: a deployed network is called as in .*\nA batch of training data is",
    ):
        regrow.explain(deployed, (torch.rand(1, 3, 12, 12), torch.ones(1)))
    with pytest.raises(RegrowValueError, match="`seconds` must be"):
        regrow.explain(deployed, torch.rand(1, 3, 12, 12), seconds=-1)


def test_a_network_that_was_not_traced_says_why() -> None:
    x = torch.rand(1, 6)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        deployed = regrow.deploy(Deciding().eval(), x)
    with pytest.raises(
        RegrowRuntimeError,
        match=r"cannot be explained, since it could not be traced: Deciding .*\nChange its forward pass",
    ):
        regrow.explain(deployed, x)


def test_without_kernels_it_says_why() -> None:
    x = torch.rand(1, 3, 12, 12)
    deployed = regrow.deploy(convolutions(), x)
    with using("reference"), pytest.raises(RegrowRuntimeError, match=r"there are no kernels: .+\n.+"):
        regrow.explain(deployed, x)
