"""Masked storage: the dense parameter, zero where inactive, and a boolean tensor ``<name>_mask`` beside it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from regrow._torch import is_under_vmap, transforms_active
from regrow.errors import warn
from regrow.growth.gradient import Reduce, Whole
from regrow.ops.outside import outside
from regrow.weights.base import SparseWeight
from regrow.weights.copies import copies_of
from regrow.weights.hook import hook_of
from regrow.weights.reading import as_matrix

UNTOUCHED = -0.0
"""A zero that whatever other code writes takes the sign off: where a copy that makes another's moves has no value."""


class MaskedWeight(SparseWeight):
    """A sparse weight of any module on any device; compute and memory are those of the dense one."""

    storage: ClassVar[str] = "masked"
    is_dense: ClassVar[bool] = True

    def hold(self, positions: Tensor) -> None:
        values = self.parameter.detach()
        mask = torch.zeros(values.shape, dtype=torch.bool, device=values.device)
        mask.view(-1)[positions] = True
        self._put(mask)
        values.masked_fill_(~mask, 0)

    def let_go(self) -> None:
        for name in self.topology:
            del self.module.__dict__[name]

    def _put(self, mask: Tensor) -> None:
        """Put a topology beside the parameter that has none."""
        setattr(self.module, f"{self.parameter_name}_mask", mask)

    @property
    def _mask(self) -> Tensor:
        own, name = self.module.__dict__, f"{self.parameter_name}_mask"
        mask: Tensor = own[name]
        device = self.parameter.device
        if mask.device != device:  # the module was moved, and torch moves parameters and buffers alone
            mask = own[name] = mask.to(device)
        return mask

    def _write(self, mask: Tensor) -> None:
        """Replace the topology in place."""
        self._mask.copy_(mask)

    @property
    def mask_alone(self) -> Tensor:
        return self._mask

    @property
    def topology(self) -> dict[str, Tensor]:
        return {f"{self.parameter_name}_mask": self._mask}

    def saved(self) -> dict[str, Tensor]:
        return {f"{self.parameter_name}_mask": self._mask}

    def loadable(self, base: str, positions: Tensor, values: Tensor, capacity: int) -> dict[str, Tensor]:
        mask = self.in_dense(positions, torch.ones_like(values, dtype=torch.bool))
        return {base: self.in_dense(positions, values), f"{base}_mask": mask}

    def after_load(self) -> None:
        self.cut()
        super().after_load()

    @property
    def nnz(self) -> int:
        return int(self._mask.count_nonzero())

    def positions(self) -> Tensor:
        return self._mask.reshape(-1).nonzero().view(-1)

    def take(self, tensor: Tensor) -> Tensor:
        return tensor[self._mask]

    def take_former(self, tensor: Tensor, before: Tensor) -> Tensor:
        return tensor.reshape(-1)[before]

    def restrict(self, gradient: Tensor) -> Tensor:
        # where, not times: inf * 0 is nan
        return torch.where(
            self._mask, gradient, torch.zeros((), dtype=gradient.dtype, device=gradient.device)
        )

    def cut_of(self, given: Tensor) -> Tensor:
        """Return what stands in for the weight in one pass, with zeros at whatever is not an active connection."""
        if not torch.compiler.is_compiling() and is_under_vmap(given):
            return given.where(given.detach() != 0, 0)  # an ensemble's, whose masks are not here
        cut = self.restrict(given)
        if torch.compiler.is_compiling() or transforms_active():
            return cut
        if given.detach().masked_fill(self._mask, 0).any():
            warn(
                f"`{self.name}` was given values outside its topology (torch.func.functional_call): they are left out"
            )
        if cut.requires_grad:
            cut.register_hook(self._withheld)
        return cut

    def _withheld(self, gradient: Tensor) -> None:
        """Leave what a cut keeps from the parameter with the parameter's hook: connections are grown by it."""
        hook = hook_of(self.parameter)
        if hook is not None and hook.recording:
            hook.leave(gradient.detach().masked_fill(self._mask, 0))

    def clean(self, gradient: Tensor, *, edited: bool = True) -> None:
        every = gradient.numel() // 512 | 1  # writing through ``.data`` leaves no trace but the values
        some, active = (t.detach().reshape(-1)[::every] for t in (gradient, self._mask))
        if edited or some[~active].any():
            gradient.detach().masked_fill_(~self._mask, 0)

    def is_zero(self, noted: Tensor) -> bool:
        return not noted.any()

    def note(self, gradient: Tensor, left: Sequence[Tensor] = ()) -> Tensor:
        exact = gradient.detach().to(torch.promote_types(gradient.dtype, torch.float32))
        exact = exact.clone() if exact.data_ptr() == gradient.data_ptr() else exact
        for withheld in left:
            exact += withheld
        return exact

    def add(self, before: Tensor, noted: Tensor) -> Tensor:
        return before.add_(noted)

    def nothing(self) -> Tensor:
        return self.note(torch.zeros_like(self.parameter))

    def dense_gradient(self, reduce: Reduce | None = None, given: Tensor | None = None) -> Whole:
        gradient: Tensor = self.stashed if given is None else given
        return Whole((reduce(gradient) if reduce else gradient).reshape(as_matrix(self.shape)))

    def update(self, drop: Tensor, grow: Tensor, companions: Sequence[Tensor] = ()) -> int:
        mask, gone, come = self._mask.clone(), self._places(self.positions()[drop]), self._places(grow)
        self.forget()
        mask[gone] = False
        mask[come] = True
        kept = self._mask & mask
        self._write(mask)
        self.parameter.detach().masked_fill_(~kept, 0 if self.record.kept is None else UNTOUCHED)
        for tensor in companions:
            tensor.masked_fill_(~kept, 0)
        new = int(mask.count_nonzero() - kept.count_nonzero())
        self.remember()
        return new

    def _places(self, positions: Tensor) -> tuple[Tensor, ...]:
        """Return the positions as an index of the dense tensor, whatever its memory format."""
        return torch.unravel_index(positions, self.shape)

    def _outside(self) -> bool:
        """Return whether any value is not zero where there is no connection."""
        return outside(self.parameter.detach(), self._mask)

    def cut(self) -> bool:
        """Set whatever is not an active connection to zero. Returns whether anything was not."""
        if not self._outside():
            return False
        self.parameter.data.masked_fill_(~self._mask, 0)  # not a change that autograd should see
        return True

    def _settle_values(self, thorough: bool) -> None:
        if not (thorough or self.parameter.is_cpu):
            self.parameter.data.masked_fill_(~self._mask, 0)  # without waiting for the device
        elif self._outside():
            values = self.parameter.detach()
            likely = sorted(
                copies_of(self), key=lambda copy: int(values[~copy.mask().to(values.device)].count_nonzero())
            )
            if any(self.take_from(copy) for copy in likely):
                self.record.follows = True
            elif self.cut():
                self.record.warn_once(
                    f"`{self.name}` was written to where it has no connection: such values are cut, now and later.\n"
                    "After reset_parameters() that is as it should be. To keep what is written, do so before sparsify, "
                    "or densify the model and sparsify it again with init='magnitude'."
                )

    def take_from(self, other: SparseWeight) -> bool:
        mine, theirs, values = self._mask, other.mask().to(self._mask.device), self.parameter.detach()
        neither = ~(mine | theirs)
        strange = int(values[neither].count_nonzero())
        if not values[theirs & ~mine].any() or 2 * strange > int(neither.count_nonzero()):
            return False  # nothing of the other's, or values everywhere: whoever wrote them had no topology
        if self.driver() is not None and values[mine & ~theirs].any():
            return False  # mixed with an average, as Lookahead does: the topology is the method's
        self._leave_state()
        self.forget()
        self._write(theirs)
        self.cut()
        self.remember()
        return True

    def is_untouched(self) -> bool:
        assert self.record.kept is not None
        both = torch.zeros_like(self._mask)
        both[self._places(self.record.kept[0])] = True
        return bool(self.parameter.detach()[~(both & self._mask)].signbit().all())

    def fill(self, positions: Tensor, values: Tensor, tensor: Tensor | None = None) -> None:
        (self.parameter.detach() if tensor is None else tensor)[self._places(positions)] = values

    def assign(self, positions: Tensor, values: Tensor, *, keep_shape: bool = False) -> None:
        self.forget()
        self._write(self.in_dense(positions, torch.ones_like(positions, dtype=torch.bool)))
        self.parameter.detach().copy_(self.in_dense(positions, values.to(self.parameter)))
        self.remember()
