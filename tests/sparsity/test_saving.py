"""`save` and `load`."""

from __future__ import annotations

import copy
import json
import pickle
import resource
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn

import regrow
from regrow.weights import sparse_weights

storages = ["masked", "compressed"]


def build() -> nn.Sequential:
    return nn.Sequential(nn.Linear(12, 10), nn.BatchNorm1d(10), nn.ReLU(), nn.Linear(10, 6))


def sparse(storage: str, sparsity: float = 0.8, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return regrow.sparsify(build(), sparsity, storage=storage, seed=seed).eval()


@pytest.mark.parametrize("into", [*storages, None])
@pytest.mark.parametrize("saved", storages)
@pytest.mark.parametrize("sparsity", [0.8, 0.5])
def test_round_trip(tmp_path: Path, saved: str, into: str | None, sparsity: float) -> None:
    model = sparse(saved, sparsity, seed=1)
    file = regrow.save(model, tmp_path / "model.safetensors")
    target = build().eval() if into is None else sparse(into)
    assert regrow.load(file, into=target) is target
    x = torch.randn(5, 12)
    torch.testing.assert_close(target(x), model(x))
    assert {w.storage for w in sparse_weights(target)} == {into or saved}
    for name, mask in regrow.masks(target).items():
        assert torch.equal(mask, regrow.masks(model)[name])


def test_the_file_holds_topology_storage_and_version(tmp_path: Path) -> None:
    file = regrow.save(sparse("masked"), tmp_path / "model.safetensors")
    with safe_open(file, "pt") as opened:
        metadata, keys = opened.metadata(), set(opened.keys())
    assert metadata["regrow"] == "1"
    layers = json.loads(metadata["layers"])
    assert layers["0.weight"]["storage"] == "masked"
    assert layers["0.weight"]["shape"] == [10, 12]
    assert {"0.weight_values", "0.weight_crow", "0.weight_col", "1.running_mean"} <= keys
    assert "0.weight" not in keys


def test_a_sparse_file_is_small(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(1000, 1000, bias=False))
    regrow.sparsify(model, 0.99)
    file = regrow.save(model, tmp_path / "model.safetensors")
    assert (
        file.stat().st_size < 100_000
    )  # 10,000 connections at 8 bytes, row pointers; dense would be 4,000,000


def test_convolutions_are_saved_too(tmp_path: Path) -> None:
    model = regrow.sparsify(nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(128, 3)), 0.7)
    file = regrow.save(model, tmp_path / "model.safetensors")
    loaded = regrow.load(file, into=nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(128, 3)))
    x = torch.randn(2, 3, 6, 6)
    torch.testing.assert_close(loaded(x), model(x))


@pytest.mark.parametrize("prefix", ["", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
@pytest.mark.parametrize("storage", storages)
def test_a_state_dict_makes_a_dense_model_sparse(storage: str, prefix: str, tmp_path: Path) -> None:
    model, x = sparse(storage, seed=1), torch.randn(5, 12)
    torch.save(
        {"model": {prefix + key: value for key, value in model.state_dict().items()}}, tmp_path / "ckpt.pt"
    )
    loaded = regrow.load(torch.load(tmp_path / "ckpt.pt")["model"], into=build()).eval()
    assert [w.storage for w in sparse_weights(loaded)] == [storage, storage]
    assert torch.equal(loaded(x), model(x))
    torch.testing.assert_close(regrow.densify(loaded)(x), model(x))  # a plain network again


@pytest.mark.parametrize("storage", storages)
def test_a_dense_model_loads_a_dense_state_dict_and_no_other(storage: str) -> None:
    """What torch says without it, and that nothing is said where the load is not strict: docs/guide.md."""
    model, plain, x = sparse(storage, seed=1), build().eval(), torch.randn(5, 12)
    with pytest.raises(RuntimeError, match="Unexpected key"):
        plain.load_state_dict(model.state_dict())
    state = regrow.dense_state_dict(model)
    assert list(state) == list(plain.state_dict())
    plain.load_state_dict(state)
    torch.testing.assert_close(plain(x), model(x))
    assert all(torch.equal(value, regrow.dense_state_dict(plain)[key]) for key, value in state.items())
    torch.testing.assert_close(regrow.dense_state_dict(torch.compile(model))["0.weight"], state["0.weight"])
    state["0.weight"].zero_()  # a copy
    assert sparse_weights(model)[0].values().any()


class Tied(nn.Module):
    """Two layers with one weight, which is a case of its own: only the first of them has a topology."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(12, 12), nn.Linear(12, 12), nn.Linear(12, 6)
        self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.c(self.b(self.a(x)))
        return out


class Shared(Tied):
    """One layer under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.b = self.a


class Buffers(nn.Module):
    """Buffers of any type and shape, names with a meaning in globs, and state that is not a tensor."""

    def __init__(self) -> None:
        super().__init__()
        names = ["a[0]", "b*", "weight", "b*x"]
        self.parts = nn.ModuleDict({name: nn.Linear(12, 12) for name in names})
        self.register_buffer("numbers", torch.arange(4))
        self.register_buffer("flags", torch.tensor([True]))
        self.register_buffer("bits", torch.rand(3).bfloat16())
        self.register_buffer("complex", torch.rand(2, dtype=torch.complex64))
        self.register_buffer("transposed", torch.rand(4, 3).t())
        self.register_buffer("passing", torch.rand(2), persistent=False)
        self.register_buffer("empty", torch.empty(0))

    def forward(self, x: Tensor) -> Tensor:
        for part in self.parts.values():
            x = part(x)
        return x


class Extra(nn.Sequential):
    """State of its own that is not a tensor."""

    seen = 0

    def get_extra_state(self) -> dict[str, int]:
        return {"seen": self.seen}

    def set_extra_state(self, state: dict[str, int]) -> None:
        self.seen = state["seen"]


@pytest.mark.parametrize("storage", ["masked", "auto"])
@pytest.mark.parametrize("make", [Tied, Shared, Buffers])
def test_round_trips_of_unusual_models(make: type[nn.Module], storage: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = regrow.sparsify(make(), 0.7, storage=storage), torch.randn(5, 12)
    other = regrow.sparsify(make(), 0.5, storage=storage, seed=5)
    dense = make()
    dense.load_state_dict(regrow.dense_state_dict(model))
    file = regrow.save(model, tmp_path / "model.safetensors")
    for loaded in (
        regrow.load(file, into=make()),
        regrow.load(file, into=other),
        regrow.load(model.state_dict(), into=make()),
        dense,
    ):
        torch.testing.assert_close(loaded(x), model(x))
        buffers = dict(loaded.named_buffers())
        for name, buffer in make().named_buffers():
            expected = buffer if name == "passing" else dict(model.named_buffers())[name]
            assert (buffers[name].dtype, buffers[name].shape) == (expected.dtype, expected.shape)
            assert name == "passing" or torch.equal(buffers[name], expected)
        if make is Tied:
            assert loaded.a.weight is loaded.b.weight


@pytest.mark.parametrize("storage", storages)
def test_state_that_is_no_tensor_goes_with_the_state_dict(storage: str, tmp_path: Path) -> None:
    model = Extra(nn.Linear(12, 10))
    regrow.sparsify(model, 0.5, storage=storage)
    model.seen = 7
    with pytest.raises(
        regrow.RegrowError, match=r"state that is not a tensor: .*\nUse torch.save\(model.state_dict\(\), f"
    ):
        regrow.save(model, tmp_path / "model.safetensors")
    torch.save(model.state_dict(), tmp_path / "model.pt")
    loaded = regrow.load(torch.load(tmp_path / "model.pt"), into=Extra(nn.Linear(12, 10)))
    x = torch.randn(5, 12)
    assert torch.equal(loaded(x), model(x))
    assert loaded.seen == 7


@pytest.mark.parametrize("storage", storages)
def test_a_whole_model_in_a_file_and_in_another_process(storage: str, tmp_path: Path) -> None:
    model, x = sparse(storage, seed=1), torch.randn(5, 12)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    method = regrow.RigL(model, optimizer, total_steps=10, update_every=2)
    torch.save(model, tmp_path / "model.pt")
    with pytest.raises(pickle.UnpicklingError, match="weights_only"):  # as for a dense model
        torch.load(tmp_path / "model.pt")
    assert torch.equal(torch.load(tmp_path / "model.pt", weights_only=False)(x), model(x))
    context = torch.multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:  # the hooks are not sent along, without a warning: they come back there
        theirs = pool.apply(outputs_and_steps, (model, x))
    torch.testing.assert_close(theirs, model(x))
    assert method.step == 0


def outputs_and_steps(model: nn.Module, x: Tensor) -> Tensor:
    """In another process: the outputs of `model`, a copy of which then trains."""
    torch.set_num_threads(1)
    copied = copy.deepcopy(model)
    optimizer = torch.optim.SGD(copied.parameters(), lr=0.1)
    method = regrow.RigL(copied, optimizer, total_steps=10, update_every=2)
    for _ in range(4):
        optimizer.zero_grad()
        copied(x).pow(2).sum().backward()
        optimizer.step()
    assert method.step == 4
    return model(x).detach()


def test_bad_files_and_models(tmp_path: Path) -> None:
    good = regrow.save(sparse("masked"), tmp_path / "good.safetensors")
    with pytest.raises(regrow.RegrowError, match="`model` is not sparse.\nDid you forget"):
        regrow.save(build(), tmp_path / "dense.safetensors")
    with pytest.raises(
        regrow.RegrowError, match="`file` is a state dict without a sparse weight of `into`: it holds 0.w"
    ):
        regrow.load(build().state_dict(), into=build())
    with pytest.raises(
        regrow.RegrowError, match='it holds model, step, .*\n.*torch.load\\(path\\)\\["model"\\]'
    ):
        regrow.load({"model": sparse("masked").state_dict(), "step": 3}, into=build())
    torch.save(sparse("masked").state_dict(), tmp_path / "saved.pt")
    with pytest.raises(
        regrow.RegrowError, match=r"(?s)`file` .*saved.pt cannot be read.*regrow.load\(torch.load\(file\)"
    ):
        regrow.load(tmp_path / "saved.pt", into=build())
    half = {k: v for k, v in sparse("compressed").state_dict().items() if k != "2.weight_col"}
    half |= {"3.weight_crow": half["3.weight_crow"][:-1]}
    untouched = build()
    with pytest.raises(regrow.RegrowError, match="`3.weight_crow` must be 7 ascending row pointers"):
        regrow.load(half, into=untouched)
    assert not regrow.is_sparse(untouched)
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(good.read_bytes()[:-100])
    with pytest.raises(regrow.RegrowError, match=r"`file` .*cut.safetensors cannot be read"):
        regrow.load(cut, into=build())
    with pytest.raises(regrow.RegrowError, match=r"`file` .*nothing cannot be read"):
        regrow.load(tmp_path / "nothing", into=build())
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(1)}, tmp_path / "foreign.safetensors")
    with pytest.raises(
        regrow.RegrowError, match="must be written by regrow.save in format 1, got format None"
    ):
        regrow.load(tmp_path / "foreign.safetensors", into=build())
    other = nn.Sequential(nn.Linear(12, 11))
    with pytest.raises(
        regrow.RegrowError, match=r"`into` must hold `0.weight` of shape \(10, 12\), got \(11, 12\)"
    ):
        regrow.load(good, into=other)
    assert not regrow.is_sparse(other)


def test_a_full_disk_leaves_the_old_file_as_it_was(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(1000, 1000, bias=False))
    regrow.sparsify(model, 0.5)
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    import signal

    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    try:
        with pytest.raises(regrow.RegrowError, match=r"`.*model.safetensors` could not be written"):
            regrow.save(model, file)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
    assert file.read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]


def test_a_deployed_network_is_no_model_to_train_on(tmp_path: Path) -> None:
    model = build().eval()
    path = regrow.deploy(model, torch.rand(1, 12)).save(tmp_path / "deployed")
    with pytest.raises(ValueError, match=r"holds a deployed network.*\nLoad it with regrow.Deployed.load"):
        regrow.load(path, into=model)
