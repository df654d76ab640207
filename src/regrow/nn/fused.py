"""What `regrow.fuse` leaves in a model, and `unfuse`, which takes it apart again."""

from __future__ import annotations

from torch import nn

from regrow.arguments import require_model
from regrow.nn.conv import SparseConv2d
from regrow.nn.dense import TiledConv2d
from regrow.nn.linear import SparseLinear
from regrow.nn.norm import FusedBatchNorm2d


class Fused(nn.Identity):
    """Stands where an activation was that the layer before it applies now."""

    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self._replaced = (activation,)  # in a tuple: no child
        self.training = activation.training

    @property
    def activation(self) -> nn.Module:
        """The module whose place this has."""
        return self._replaced[0]


def unfuse(model: nn.Module) -> nn.Module:
    """Undo `fuse`, in place; layers that were parametrized since stay what they are.

    Returns:
        `model`.
    """
    for parent in list(require_model("model", model).modules()):
        if isinstance(parent, SparseConv2d):
            parent.summed = False
        before: nn.Module | None = None
        for name, child in list(parent._modules.items()):  # repeated ones too
            if type(child) is FusedBatchNorm2d and child.followed:
                parent.register_module(name, child.to_batch_norm())
            elif type(child) is TiledConv2d:
                parent.register_module(name, child.to_conv())
            elif isinstance(child, Fused) and isinstance(before, SparseLinear):
                before.activation = None
                parent.register_module(name, child.activation.train(child.training))
            before = child
    return model
