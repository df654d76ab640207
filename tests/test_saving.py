"""`save` and `load`."""

from __future__ import annotations

import json
import resource
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import nn

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


def test_bad_files_and_models(tmp_path: Path) -> None:
    good = regrow.save(sparse("masked"), tmp_path / "good.safetensors")
    with pytest.raises(regrow.RegrowError, match="`model` is not sparse.\nDid you forget"):
        regrow.save(build(), tmp_path / "dense.safetensors")
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
