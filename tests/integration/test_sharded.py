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


class FullyShardedDataParallel(nn.Module):
    """Does to a model what FSDP1 does, which needs an accelerator: one flat parameter takes the place of all."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self._fsdp_wrapped_module = module
        self.flat = nn.Parameter(torch.cat([p.detach().reshape(-1) for p in module.parameters()]))
        for part in module.modules():
            for name, parameter in list(part._parameters.items()):
                if parameter is not None:
                    del part._parameters[name]
                    setattr(part, name, parameter.detach().clone())


@pytest.mark.parametrize("storage", STORAGES)
def test_fsdp1_is_refused(storage: str) -> None:
    inner = network(storage)
    model = FullyShardedDataParallel(inner)
    for given in (model, inner):
        with pytest.raises(regrow.RegrowError, match=NOT_WHOLE):
            regrow.RigL(given, SGD(model.parameters(), lr=0.1), total_steps=10, update_every=5)


@pytest.mark.parametrize("storage", STORAGES)
def test_the_zero_redundancy_optimizer_is_refused(storage: str, mesh: DeviceMesh) -> None:
    with warnings.catch_warnings():  # a neighbour of it uses torch.jit, which is called old by now
        warnings.simplefilter("ignore")
        from torch.distributed.optim import ZeroRedundancyOptimizer

    model = network(storage)
    optimizer = ZeroRedundancyOptimizer(model.parameters(), SGD, lr=0.1)
    with pytest.raises(regrow.RegrowError, match=r"ZeroRedundancyOptimizer.*\n.*Use SGD itself"):
        regrow.RigL(model, optimizer, total_steps=10, update_every=5)
