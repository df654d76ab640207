"""What cannot be deployed, and calls that a deployed network does not take: clear errors before any work is done."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from inference.deployed import Several, network, pruned, pruned_by_half, sparse, usual, x
from torch import nn

import regrow
from regrow.errors import RegrowValueError


def in_training() -> nn.Module:
    return regrow.sparsify(network(), sparsity=0.8)


def partly_in_training() -> nn.Module:
    model = sparse()
    model.get_submodule("1").train()
    return model


def elsewhere() -> nn.Module:
    return network().eval().to("meta")


def not_finite() -> nn.Module:
    model = pruned()
    with torch.no_grad():
        model.get_parameter("3.weight")[0, 0, 0, 0] = float("inf")
    return model


INT8 = {"precision": "int8"}
BAD: dict[str, tuple[Callable[[], Any], Any, dict[str, Any], str]] = {
    "no-model": (lambda: 3, x, {}, r"`model` must be a torch.nn.Module, got 3"),
    "training": (
        in_training,
        x,
        {},
        r"`model` must be in evaluation mode, got training mode\nCall model.eval\(\)",
    ),
    "training-part": (
        partly_in_training,
        x,
        {},
        r"in evaluation mode, got training mode \(`1`\)\nCall model.eval",
    ),
    "device": (
        elsewhere,
        x,
        {},
        r"`model` must be on the CPU, .* got `0.weight` on meta\nCall model.to\(\"cpu\"\)",
    ),
    "deployed": (
        usual,
        x,
        {},
        r"`model` is a deployed network, which runs and has no parameters\nGive the network",
    ),
    "example-type": (sparse, "x", {}, r"`example` must be a batch: a tensor, or a list or dictionary"),
    "example-empty": (
        sparse,
        x[:0],
        {},
        r"`example` must hold at least one example in its first dimension, got",
    ),
    "example-shape": (
        sparse,
        torch.rand(2, 4, 12, 12),
        {},
        r"`example` does not go through `model`: a tensor of .*4",
    ),
    "example-dtype": (sparse, x.long(), {}, r"`example` does not go through `model`: a tensor of int64"),
    "example-more": (
        sparse,
        (x, x),
        {},
        r"`example` does not go through `model`: .*takes 2 positional arguments",
    ),
    "example-name": (
        sparse,
        {"images": x},
        {},
        r"`example` does not go through `model`: .*unexpected keyword",
    ),
    "precision": (
        sparse,
        x,
        {"precision": "int4"},
        r"`precision` must be one of float32, bfloat16, int8, got 'int4'",
    ),
    "no-calibration": (
        sparse,
        x,
        INT8,
        r"`calibration` must be a list of batches .* got None\nGive some typical",
    ),
    "calibration-one": (
        sparse,
        x,
        {**INT8, "calibration": x},
        r"`calibration` must be a list of batches .*a tensor",
    ),
    "calibration-none": (
        sparse,
        x,
        {**INT8, "calibration": []},
        r"`calibration` must hold at least one batch",
    ),
    "calibration-float": (
        sparse,
        x,
        {"calibration": [x]},
        r"`calibration` is for `precision` int8, got it with float",
    ),
    "calibration-targets": (
        sparse,
        x,
        {**INT8, "calibration": [(x, torch.zeros(2))]},
        r"`calibration\[0\]`: .* called as in its example, with \(tensor\), got .*\nA batch of training data is",
    ),
    "calibration-shape": (
        sparse,
        x,
        {**INT8, "calibration": [x, x[:, :, 1:]]},
        r"`calibration\[1\]` must be float32 of shape \(N, 3, 12, 12\) on the CPU, got a tensor of float32 of",
    ),
    "calibration-nan": (
        sparse,
        x,
        {**INT8, "calibration": [x * float("nan")]},
        r"`calibration` leads to activations that are not finite, at `.*`\nGive batches of your data",
    ),
    "int8-infinite": (
        not_finite,
        x,
        {**INT8, "calibration": [x]},
        r"`precision` int8 needs finite weights, and those of `3.weight` are not",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_has_its_answer(case: str) -> None:
    make, example, options, pattern = BAD[case]
    with pytest.raises(RegrowValueError, match=re.compile(pattern, re.DOTALL)):
        regrow.deploy(make(), example, **options)


@pytest.mark.parametrize(
    "function",
    [
        regrow.summary,
        regrow.masks,
        regrow.is_sparse,
        regrow.densify,
        regrow.compact,
        regrow.fold,
        regrow.fuse,
        lambda model: regrow.sparsify(model, sparsity=0.5),
        lambda model: regrow.save(model, "model.safetensors"),
        lambda model: regrow.costs(model, x),
    ],
)
def test_what_looks_for_parameters_refuses_a_deployed_network(function: Callable[[Any], object]) -> None:
    with pytest.raises(RegrowValueError, match="`model` is a deployed network, .*\nGive the network that"):
        function(usual())


def test_deployed_networks_can_be_members_of_an_ensemble() -> None:
    deployed = usual()
    together = regrow.Ensemble([deployed, deployed])
    assert torch.allclose(together(x).softmax(-1), deployed(x).softmax(-1), atol=1e-6)


CALLS: dict[str, tuple[tuple[Any, ...], dict[str, Any], str]] = {
    "none": ((), {}, r"called as in its example, with \(tensor\), got \(\)"),
    "two": ((x, x), {}, r"with \(tensor\), got \(tensor, tensor\)"),
    "name": ((), {"input": x}, r"with \(tensor\), got \(input=tensor\)"),
    "type": (([1.0],), {}, r"with \(tensor\), got \(\[1.0\]\)"),
    "array": ((x.numpy(),), {}, r"called with tensors, got ndarray"),
    "dtype": (
        (x.double(),),
        {},
        r"`args\[0\]` must be float32 of shape .*float64 of .*\nConvert it: .to\(torch.float32",
    ),
    "dims": (
        (x[0],),
        {},
        r"`args\[0\]` must be float32 of shape \(N, 3, 12, 12\) on the CPU.*\nFor another shape",
    ),
    "size": (
        (x[:, :, :, 1:],),
        {},
        r"of shape \(N, 3, 12, 12\) .* got .*\(2, 3, 12, 11\)\nFor another shape, deploy",
    ),
    "empty": ((x[:0],), {}, r"`args\[0\]` must hold at least one example, got shape \(0, 3, 12, 12\)"),
    "device": ((x.to("meta"),), {}, r"got .* on meta\nA deployed network runs on the CPU: move it there"),
    "sparse": ((x.to_sparse(),), {}, r"must be float32 of shape"),
}


@pytest.mark.parametrize("case", CALLS)
def test_bad_calls_have_their_answer(case: str) -> None:
    args, kwargs, pattern = CALLS[case]
    deployed = usual()
    with pytest.raises(RegrowValueError, match=re.compile(pattern, re.DOTALL)):
        deployed(*args, **kwargs)


def test_batches_of_several_inputs_must_agree() -> None:
    model = pruned_by_half(Several()).eval()
    given = {"first": torch.rand(3, 6), "second": torch.rand(3, 4), "scale": torch.rand(3, 4)}
    deployed = regrow.deploy(model, given)
    with pytest.raises(
        RegrowValueError, match="`first`, `second`, `scale` must have equally many examples, got 3, 1, 3"
    ):
        deployed(**{**given, "second": torch.rand(1, 4)})
