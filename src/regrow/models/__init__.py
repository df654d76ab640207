"""The networks that recipes name: plain torch modules, one record each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from regrow.models.lenet import LeNet, lenet
from regrow.models.mlp import MLP, mlp


@dataclass(frozen=True)
class ModelRecord:
    """A network by name: `build` takes the options a recipe may give and returns the module."""

    name: str
    build: Callable[..., nn.Module]
    paper: str
    line: str


_RECORDS = [
    ModelRecord("mlp", mlp, "LeNet-300-100, LeCun et al. 1998", "fully connected, ReLU between the layers"),
    ModelRecord(
        "lenet", lenet, "LeNet-5, LeCun et al. 1998", "LeNet-5 in the widths of Caffe: 20 and 50 channels"
    ),
]


def models() -> dict[str, ModelRecord]:
    """The built-in networks by name."""
    return {record.name: record for record in _RECORDS}


__all__ = ["MLP", "LeNet", "ModelRecord", "lenet", "mlp", "models"]
