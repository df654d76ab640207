"""A storage of somebody's own in one file: the dense parameter, and one bit for each position."""

from typing import ClassVar

import torch
from torch import Tensor

from regrow.weights import MaskedWeight
from regrow.weights.storages import register


@register
class BitmaskWeight(MaskedWeight):
    """Masked storage with a mask of an eighth of the size, for a little more time in each use of it."""

    storage: ClassVar[str] = "bitmask"

    @property
    def topology(self) -> dict[str, Tensor]:
        name = f"{self.parameter_name}_bits"
        bits = self.module.__dict__[name] = self.module.__dict__[name].to(self.parameter.device)
        return {name: bits}

    @property
    def _mask(self) -> Tensor:
        (bits,) = self.topology.values()
        shape = self.parameter.shape
        return (bits[:, None] & _powers(bits)).ne(0).view(-1)[: shape.numel()].view(shape)

    def _put(self, mask: Tensor) -> None:
        setattr(self.module, f"{self.parameter_name}_bits", _packed(mask))

    def _write(self, mask: Tensor) -> None:
        (bits,) = self.topology.values()
        bits.copy_(_packed(mask))

    def load_topology(self, loaded: dict[str, Tensor]) -> None:  # type: ignore[override]
        for mask in loaded.values():
            self._write(mask)


def _powers(like: Tensor) -> Tensor:
    return 2 ** torch.arange(8, dtype=torch.uint8, device=like.device)


def _packed(mask: Tensor) -> Tensor:
    flat = torch.nn.functional.pad(mask.reshape(-1), (0, -mask.numel() % 8)).view(-1, 8)
    return (flat * _powers(mask)).sum(1, dtype=torch.uint8)
