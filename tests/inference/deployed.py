"""Networks, and deployed ones, that several tests of deployment share."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

import regrow


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 24, 3, stride=2, padding=1),
        nn.ReLU6(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(96, 40),
        nn.GELU(),
        nn.Linear(40, 10),
    )
    norm: Any = model[1]
    norm.running_mean.uniform_(-1, 1)
    norm.running_var.uniform_(0.5, 2)
    return model


def sparse(storage: str = "auto") -> nn.Module:
    return regrow.sparsify(network(), sparsity=0.8, storage=storage).eval()


def pruned() -> nn.Module:
    """Somebody's dense network whose weights are mostly zero."""
    model = network().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter *= parameter.abs() > parameter.abs().quantile(0.9)
    return model


def mixed() -> nn.Module:
    model = regrow.sparsify(network(), sparsity=0.8, include=["3"], storage="masked")
    return regrow.sparsify(model, sparsity=0.8, include=["7"], storage="compressed").eval()


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "masked": lambda: sparse("masked"),
    "compressed": lambda: sparse("compressed"),
    "fused": lambda: regrow.fuse(sparse("compressed")),
    "mixed": mixed,
    "densified": lambda: regrow.densify(sparse()),
    "pruned": pruned,
    "dense": lambda: network().eval(),
    "folded": lambda: regrow.fold(sparse()),
    "compact": lambda: regrow.compact(sparse()),
    "wrapped": lambda: nn.DataParallel(sparse()),
    "double": lambda: sparse("masked").double(),
}
x = torch.rand(2, 3, 12, 12)


@cache
def deployed_of(kind: str) -> tuple[nn.Module, regrow.Deployed]:
    """A network and what it is deployed as; tests change neither."""
    model = NETWORKS[kind]()
    return model, regrow.deploy(model, x)


@cache
def usual() -> regrow.Deployed:
    """A deployed network that tests call, and do not change."""
    return regrow.deploy(sparse(), x)


def wanted_of(model: nn.Module, batch: Tensor) -> Tensor:
    with torch.no_grad():
        found: Tensor = copy.deepcopy(model).float()(batch)
    return found


class Several(nn.Module):
    """Takes and returns several tensors."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(6, 4)

    def forward(self, first: Tensor, second: Tensor, *, scale: Tensor, twice: bool = False) -> dict[str, Any]:
        found = self.layer(first) + second
        return {"sum": found * scale, "all": [found, (first, None)], "twice": 2 * found if twice else found}


def pruned_by_half(model: nn.Module) -> nn.Module:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter *= parameter > 0
    return model
