"""`CompressedModule`: what a module needs to own compressed weights, as many as it likes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

from regrow.errors import RegrowRuntimeError
from regrow.nn.weight import WeightView, dense_weight
from regrow.ops.csr import Csr
from regrow.ops.listener import Listener
from regrow.weights.compressed import to_csr, unseen
from regrow.weights.forward import ensure_hooks
from regrow.weights.pretrained import wrap_savers
from regrow.weights.record import module_records
from regrow.weights.views import views


class CompressedModule(nn.Module):
    """A module that owns compressed weights: it makes each by `own`, and computes with its `operands` and `index_of`.

    A forward pass that does without `operands` calls `regrow.weights.forward.ensure_hooks` on it first. A
    `regrow.weights.storages.Form` says which dense module it stands for; then `sparsify`, `densify`, `compress`,
    methods and files know it, and it is counted as that one is, by the attributes that torch gives it.
    """

    _owned: tuple[str, ...] = ()
    """Names of its weights."""

    def own(self, name: str, shape: Sequence[int], positions: Tensor, values: Tensor) -> nn.Parameter:
        """Make a compressed weight called `name`.

        Args:
            name: what the dense parameter is called.
            shape: of the dense weight, outputs first.
            positions: of the connections, flat, ascending, int64 [nnz].
            values: of the connections [nnz].

        Returns:
            The parameter with the values, ``<name>_values``.
        """
        tensors = to_csr(name, tuple(shape), positions.to(values.device), values, len(positions))
        parameter = nn.Parameter(tensors[f"{name}_values"])
        self.register_parameter(f"{name}_values", parameter)
        index = Csr.of(tensors[f"{name}_crow"], tensors[f"{name}_col"], torch.Size(shape[1:]).numel())
        for part, tensor in zip(Csr._fields, index, strict=True):
            # no buffer: what averages or broadcasts buffers must not touch it
            setattr(self, f"{name}_{part}", tensor)
        self._owned = (*self._owned, name)
        wrap_savers()
        return parameter

    def shape_of(self, name: str) -> torch.Size:
        """Return the dense shape of the weight called `name`."""
        record = module_records(self).get(name)
        if record is not None:
            return torch.Size(record.shape)
        index = self.index_of(name)
        return torch.Size((len(index.crow) - 1, len(index.crow_t) - 1))

    def index_of(self, name: str) -> Csr:
        """Return the index of the weight called `name`."""
        own = self.__dict__
        return Csr(*(own[f"{name}_{part}"] for part in Csr._fields))

    def view_of(self, name: str) -> Tensor:
        """Return the weight called `name` in its dense shape, read-only (`regrow.nn.weight.WeightView`).

        Gradients reach the values. An attribute of that name gives it too.
        """
        ensure_hooks(self)
        return dense_weight(self, name) if torch.compiler.is_compiling() else WeightView(self, name)

    def __getattr__(self, name: str) -> Any:
        return self.view_of(name) if name in self.__dict__.get("_owned", ()) else super().__getattr__(name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self._owned:
            raise RegrowRuntimeError(
                f"`{name}` of a layer in compressed storage is read-only and cannot be replaced or tied.\n"
                "Do it before regrow.sparsify, or use storage='masked'."
            )
        super().__setattr__(name, value)

    def listener_of(self, name: str) -> Listener | None:
        """Return who wants the operands of backward passes through a weight, in eager mode.

        Registered operators find it by themselves.
        """
        if torch.compiler.is_compiling():
            return None
        record = module_records(self).get(name)
        return None if record is None else record.listener

    def operands(
        self, name: str, input: Tensor, bias: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return the input, the values of a weight and the bias in the dtype to compute in.

        Calls `ensure_hooks`, which every forward pass needs.

        Raises:
            RegrowRuntimeError: an input of another dtype than the weight's, or a topology that other code has changed.
        """
        ensure_hooks(self)
        return self._in_dtype(name, input, bias)

    def _in_dtype(
        self, name: str, input: Tensor, bias: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return what `operands` does; the forward pass has called `ensure_hooks`."""
        values: Tensor = self._parameters[f"{name}_values"]  # type: ignore[assignment]  # in less time than by attribute
        kind = input.device.type
        if torch.is_autocast_enabled(kind) and values.dtype != torch.float64:
            dtype = torch.get_autocast_dtype(kind)
            input = input if input.dtype == dtype else input.to(dtype)  # batch tiles would be converted
            values = values.to(dtype)
            bias = None if bias is None else bias.to(dtype)
        if input.dtype != values.dtype:
            raise RegrowRuntimeError(
                f"`input` must be of the weight's dtype {values.dtype}, got {input.dtype}"
            )
        return input, values, bias

    def __getstate__(self) -> dict[str, Any]:
        for weight in views(self):
            weight.settle()  # other code may have written a copy's values, and what is loaded knows no copies
        return self.__dict__.copy()

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        if "_owned" not in state:  # of an older regrow
            self._owned = tuple(
                name.removesuffix("_values") for name in self._parameters if name.endswith("_values")
            )
        wrap_savers()  # a model that comes from a file, in a process that has called nothing of regrow

    def _replicate_for_data_parallel(self) -> Self:
        raise RegrowRuntimeError(
            "nn.DataParallel copies the model in every pass, and what a backward pass leaves with a copy is lost.\n"
            "Use torch.nn.parallel.DistributedDataParallel."
        )

    def __prepare_scriptable__(self) -> nn.Module:
        raise unseen(next(views(self)).name)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name in self._owned:
            device = getattr(self, f"{name}_values").device
            for part in Csr._fields:
                setattr(self, f"{name}_{part}", getattr(self, f"{name}_{part}").to(device))
        for weight in views(self):
            weight.record.total = weight.total
        return self
