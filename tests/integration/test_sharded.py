"""Weights that are not whole in a process, and optimizers that shard their state: one clear refusal."""

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from integration.loops import STORAGES, network
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.optim import SGD

import regrow

NOT_WHOLE = r"is not whole in this process \(FSDP, DTensor\).*\n.*DistributedDataParallel"


@pytest.fixture
def mesh(tmp_path: Path) -> Iterator[DeviceMesh]:
    dist.init_process_group("gloo", store=dist.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


@pytest.mark.parametrize("storage", STORAGES)
def test_fsdp2_is_refused(storage: str, mesh: DeviceMesh) -> None:
    from torch.distributed.fsdp import fully_shard

    model: Any = fully_shard(network(storage), mesh=mesh)
    with pytest.raises(regrow.RegrowError, match=NOT_WHOLE):
        regrow.RigL(model, SGD(model.parameters(), lr=0.1), total_steps=10, update_every=5)


def test_tensor_parallel_weights_are_refused(mesh: DeviceMesh) -> None:
    from torch.distributed.tensor import Shard, distribute_tensor

    model = network("masked")
    name = next(iter(regrow.masks(model)))
    module = model.get_submodule(name.rpartition(".")[0])
    module.weight = nn.Parameter(distribute_tensor(module.weight.detach(), mesh, [Shard(0)]))  # type: ignore[arg-type]
    with pytest.raises(regrow.RegrowError, match=f"`{name}` {NOT_WHOLE}"):
        regrow.RigL(model, SGD(model.parameters(), lr=0.1), total_steps=10, update_every=5)


@pytest.mark.parametrize("storage", STORAGES)
def test_fsdp2_put_on_after_the_method_is_refused_at_the_step(storage: str, mesh: DeviceMesh) -> None:
    from torch.distributed.fsdp import fully_shard

    model = network(storage)
    optimizer = SGD(model.parameters(), lr=0.1)
    regrow.RigL(model, optimizer, total_steps=10, update_every=5)
    sharded: Any = fully_shard(model, mesh=mesh)
    sharded(torch.randn(4, 10, dtype=torch.float64)).sum().backward()
    with pytest.raises(regrow.RegrowError, match=NOT_WHOLE):
        optimizer.step()


def fsdp1(model: nn.Module, keep: bool) -> nn.Module:
    """FSDP1, which keeps the parameters to look at (`use_orig_params`), or not."""
    from torch.distributed.fsdp import FullyShardedDataParallel

    with warnings.catch_warnings():  # it is called old by now
        warnings.simplefilter("ignore")
        return FullyShardedDataParallel(model, device_id=torch.device("cpu"), use_orig_params=keep)


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("storage", STORAGES)
def test_fsdp1_is_refused(storage: str, keep: bool, mesh: DeviceMesh) -> None:
    inner = network(storage)
    model = fsdp1(inner, keep)
    with pytest.raises(regrow.RegrowError, match=NOT_WHOLE):
        regrow.RigL(model, SGD(model.parameters(), lr=0.1), total_steps=10, update_every=5)
    if (
        storage == "masked" or not keep
    ):  # no mask reaches the one parameter of all; values are whole parameters
        with pytest.raises(regrow.RegrowError, match=NOT_WHOLE):
            model(torch.randn(4, 10, dtype=torch.float64))


@pytest.mark.parametrize("keep", [True, False, None])
def test_a_sharded_model_is_not_made_sparse(keep: bool | None, mesh: DeviceMesh) -> None:
    from torch.distributed.fsdp import fully_shard

    dense = nn.Sequential(nn.Linear(10, 8), nn.ReLU(), nn.Linear(8, 4))
    model: Any = fully_shard(dense, mesh=mesh) if keep is None else fsdp1(dense, keep)
    with pytest.raises(regrow.RegrowError, match=NOT_WHOLE):
        regrow.sparsify(model, sparsity=0.5)


@pytest.mark.parametrize("storage", STORAGES)
def test_the_zero_redundancy_optimizer_is_refused(storage: str, mesh: DeviceMesh) -> None:
    with warnings.catch_warnings():  # a neighbour of it uses torch.jit, which is called old by now
        warnings.simplefilter("ignore")
        from torch.distributed.optim import ZeroRedundancyOptimizer

    model = network(storage)
    optimizer = ZeroRedundancyOptimizer(model.parameters(), SGD, lr=0.1)
    with pytest.raises(regrow.RegrowError, match=r"ZeroRedundancyOptimizer.*\n.*Use SGD itself"):
        regrow.RigL(model, optimizer, total_steps=10, update_every=5)
