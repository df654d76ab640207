"""Kernel or reference: one rule, its reasons, and one switch."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

import regrow
from regrow.ops import backends, native
from regrow.ops.backends import CONV, LINEAR, MOVE, OUTSIDE, TILES, use_kernel, why_not
from regrow.ops.building import NoKernels
from regrow.ops.tiles import tile

needs_kernels = pytest.mark.skipif(not native.available(), reason="the kernels were not built")
EVERY = {name: each for name, each in vars(backends).items() if isinstance(each, backends.Kernel)}


@needs_kernels
@pytest.mark.parametrize("name", EVERY)
def test_a_kernel_takes_what_it_asks_for(name: str) -> None:
    kernel = EVERY[name]
    for dtype in kernel.dtypes or {torch.float32, torch.int64}:
        assert why_not(kernel, torch.ones(3, 2, dtype=dtype)) == []
        assert use_kernel(kernel, torch.ones(3, 2, dtype=dtype), None)


@needs_kernels
@pytest.mark.parametrize(
    ("kernel", "operands", "reasons"),
    [
        (LINEAR, [torch.ones(2, device="meta")], ["the kernels run on the CPU, the weight is on meta"]),
        (CONV, [torch.ones(2).half()], ["there are no kernels for torch.float16"]),
        (
            LINEAR,
            [torch.ones(2, device="meta").half()],
            ["the kernels run on the CPU, the weight is on meta", "there are no kernels for torch.float16"],
        ),
        (TILES, [torch.ones(2).bfloat16()], ["there are no kernels for torch.bfloat16"]),
        (
            TILES,
            [torch.ones(2), None, torch.ones(2).double()],
            ["there are no kernels for torch.float32 with torch.float64"],
        ),
        (
            TILES,
            [torch.ones(2), torch.ones(2, device="meta")],
            ["the kernels run on the CPU, an operand is on meta"],
        ),
        (MOVE, [torch.ones(3, 2).t()], ["an operand is not contiguous"]),
        (
            OUTSIDE,
            [torch.ones(3, 2), torch.ones(2, 3).t().bool()],
            ["the strides (2, 1) and (1, 3) differ"],
        ),
    ],
)
def test_reasons(kernel: backends.Kernel, operands: list[torch.Tensor | None], reasons: list[str]) -> None:
    assert why_not(kernel, *operands) == reasons  # type: ignore[arg-type]
    assert not use_kernel(kernel, *operands)  # type: ignore[arg-type]


def test_a_kernel_names_its_devices() -> None:
    kernel = backends.Kernel(devices=frozenset({"cpu", "meta"}))
    both = torch.ones(2), torch.ones(2, device="meta")
    assert backends.unfit(kernel, *both) == backends.unfit(kernel, *both[::-1]) == []
    only = backends.Kernel(devices=frozenset({"meta"}))
    said = "the kernels run on the META, an operand is on cpu"
    assert backends.unfit(only, *both) == backends.unfit(only, *both[::-1]) == [said]


@needs_kernels
def test_what_a_compiler_follows_stays_with_torch() -> None:
    images = torch.randn(3, 2, 4, 4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(tile, (images,))
    assert "regrow_native" not in str(traced.graph)
    compiled = torch.compile(lambda x: (tile(x), use_kernel(TILES, x)), backend="eager", fullgraph=True)
    buffer, used = compiled(images)
    assert not used
    assert torch.equal(buffer, tile(images))


def test_the_library_is_not_built_for_what_it_does_not_serve(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "_provided", lambda: pytest.fail("it was looked for"))
    assert not use_kernel(LINEAR, torch.ones(2, device="meta"))
    assert len(why_not(TILES, torch.ones(2).half())) == 1


def test_a_missing_library_is_the_last_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "_provided", lambda: NoKernels("there is no compiler", "Install one."))
    monkeypatch.setattr(native, "_said", [])
    assert why_not(LINEAR, torch.ones(2)) == ["there are no kernels: there is no compiler"]
    assert why_not(LINEAR, torch.ones(2).half()) == ["there are no kernels for torch.float16"]
    assert not use_kernel(MOVE, torch.ones(2))  # which is as fast
    with pytest.warns(
        RuntimeWarning, match="without its kernels, several times slower: there is no compiler"
    ):
        assert not use_kernel(LINEAR, torch.ones(2))
    assert not use_kernel(LINEAR, torch.ones(2))  # it has been said


class _Forbidden:
    def __getattr__(self, name: str) -> object:
        raise AssertionError(f"the kernel {name} was called")


def network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3, padding=1),
        nn.MaxPool2d(2),
        nn.BatchNorm2d(16),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 20),
        nn.ReLU(),
        nn.Linear(20, 3),
    )


@pytest.mark.parametrize("storage", ["masked", "compressed"])
@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("method", [regrow.RigL, regrow.SET])
def test_reference_only_calls_no_kernel(
    storage: str, fused: bool, method: type[regrow.Method], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not one, from sparsify to a saved model, and says nothing of it, since that was asked for."""
    torch.manual_seed(0)
    x, y = torch.randn(6, 2, 8, 8), torch.randint(3, (6,))
    monkeypatch.setattr(torch.ops, "regrow_native", _Forbidden())
    with native.reference_only():
        model = regrow.sparsify(network(), 0.6, storage=storage)
        model = regrow.fuse(model) if fused else model
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        method(model, optimizer, total_steps=12, update_every=3)
        for _ in range(12):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
        regrow.summary(model)
        model.load_state_dict(model.state_dict())
        model.eval()(x)


@needs_kernels
def test_reference_only_is_told_as_the_reason_and_ends() -> None:
    model = regrow.sparsify(nn.Sequential(nn.Linear(64, 64)), 0.9, storage="compressed")
    with native.reference_only():
        assert why_not(LINEAR, torch.ones(2)) == ["there are no kernels: the reference alone was asked for"]
        with native.reference_only():
            assert not native.available()
        assert not native.available()
        assert "the reference alone was asked for" in str(regrow.summary(model))
        assert "the reference alone was asked for" in str(
            regrow.explain(model, torch.randn(4, 64), seconds=0.001)
        )
    assert native.available()
    assert regrow.summary(model).reference is None


@needs_kernels
def test_kernels_and_reference_train_alike() -> None:
    """The same topologies: the search, the ties and the surgery are exact on both sides."""
    found = []
    for off in (False, True):
        torch.manual_seed(0)
        model = regrow.sparsify(
            nn.Sequential(nn.Linear(40, 30), nn.Linear(30, 5)).double(), 0.8, storage="compressed"
        )
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        regrow.RigL(model, optimizer, total_steps=20, update_every=4)
        x = torch.randn(8, 40, dtype=torch.float64)
        for _ in range(20):
            optimizer.zero_grad()
            if off:
                with native.reference_only():
                    model(x).pow(2).mean().backward()
                    optimizer.step()
            else:
                model(x).pow(2).mean().backward()
                optimizer.step()
        found.append({name: mask.nonzero().tolist() for name, mask in regrow.masks(model).items()})
    assert found[0] == found[1]
