"""`WeightView`: what ``layer.weight`` gives where the weight is stored compressed, and ``gru.weight_hh_l0``.

Parents, penalties and loggers read a child's weight. The view shows the shape, dtype and device of the dense weight at
no cost. Whatever computes with it gets the dense tensor, made at that moment, through which gradients reach the values
and growth sees the dense gradient; `torch.nn.functional.linear` gets the kernels. Nothing can be written through it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from regrow._torch import tree_leaves, tree_map, without_torch_function
from regrow.errors import RegrowRuntimeError
from regrow.ops.csr import positions
from regrow.ops.listener import tell
from regrow.tiles.functions import is_in_place, short_name

if TYPE_CHECKING:
    from regrow.nn.owner import CompressedModule


def _getter(name: str) -> Any:
    return getattr(Tensor, name).__get__


SHOWN = {
    *(_getter(name) for name in ["shape", "dtype", "device", "ndim", "layout", "itemsize", "nbytes"]),
    *(_getter(name) for name in ["is_cuda", "is_cpu", "is_meta", "is_leaf", "is_sparse", "is_quantized"]),
    *(
        getattr(Tensor, name)
        for name in ["size", "dim", "numel", "nelement", "stride", "element_size", "__len__", "__hash__"]
    ),
    *(getattr(Tensor, name) for name in ["is_floating_point", "is_complex", "is_contiguous", "get_device"]),
    *(torch.is_floating_point, torch.is_complex, torch.numel),
}
"""What tells of the weight without its entries."""

DETACHED = {Tensor.detach, torch.detach, _getter("data")}
COPIED = {Tensor.__deepcopy__, Tensor.__reduce_ex__}


class Gradient(NamedTuple):
    """The dense gradient of a weight that was read, [rows, columns], for the growth search."""

    dense: Tensor

    def rows(self) -> Tensor:
        """See `regrow.ops.listener.Operands`."""
        return self.dense.any(1).nonzero().view(-1)

    def put_rows(self, tile: Tensor, start: int, add: bool) -> None:
        """See `regrow.ops.listener.Operands`."""
        rows = self.dense[start : start + len(tile)].to(tile.dtype)
        tile.add_(rows) if add else tile.copy_(rows)

    def among(self, columns: Tensor) -> Gradient:
        """See `regrow.ops.listener.Operands`."""
        return Gradient(self.dense[:, columns])

    def in_rows(self, rows: Tensor) -> Gradient:
        """See `regrow.ops.listener.Operands`."""
        return Gradient(self.dense[rows])


def dense_weight(module: CompressedModule, name: str) -> Tensor:
    """Return a compressed weight of a module as a dense tensor, through which gradients reach its values."""
    dense = _in_places(module, name, module.get_parameter(f"{name}_values"))
    shape = module.shape_of(name)
    if dense.requires_grad:
        # growth needs what the gather would leave out
        dense.register_hook(
            lambda g: tell(
                module.listener_of(name), lambda: Gradient(g.detach().reshape(shape[0], -1).clone())
            )
        )
    return dense.view(shape)


def _in_places(module: CompressedModule, name: str, values: Tensor) -> Tensor:
    """Return `values` [n, 1] of a weight's connections at their places in the flattened dense weight, zero
    elsewhere.
    """
    shape, index = module.shape_of(name), module.index_of(name)
    places = positions(index.crow, index.col, shape[1:].numel())
    return values.new_zeros(shape.numel()).index_copy(0, places, values[: len(places), 0])


class WeightView(Tensor):
    """A weight of a compressed module, read-only; see the module's docstring."""

    _module: CompressedModule
    _name: str
    _live: bool

    @staticmethod
    def __new__(cls, module: CompressedModule, name: str, live: bool = True) -> WeightView:
        values = module.get_parameter(f"{name}_values")
        view: WeightView = Tensor._make_wrapper_subclass(
            cls, module.shape_of(name), dtype=values.dtype, device=values.device
        )
        view._module, view._name, view._live = module, name, live
        return view

    @property
    def _parameter(self) -> nn.Parameter:
        return self._module.get_parameter(f"{self._name}_values")

    @property
    def _crow(self) -> Tensor:
        return self._module.index_of(self._name).crow

    def dense(self) -> Tensor:
        """Return the dense tensor."""
        dense = dense_weight(self._module, self._name)
        return dense if self._live else dense.detach()

    def values(self) -> Tensor:
        """Return the values of the connections [nnz]."""
        values = self._parameter[: int(self._crow[-1]), 0]
        return values if self._live else values.detach()

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        values = self._parameter
        return (
            f"{type(self).__name__}(shape={tuple(self.shape)}, dtype={values.dtype}, device={values.device}, "
            f"connections={int(self._crow[-1])}, read-only)"
        )

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        view = args[0] if args and isinstance(args[0], WeightView) else None
        if view is not None:
            if func in SHOWN:
                with without_torch_function():
                    return func(*args, **kwargs)
            if func in DETACHED:
                return WeightView(view._module, view._name, live=False)
            if func in COPIED:
                return func(view.dense().detach().clone(), *args[1:], **kwargs)
            if func in _OWN:
                return _OWN[func](view, *args[1:])
        written = _written(func, args, kwargs)
        if written is not None:
            raise RegrowRuntimeError(
                f"`{written._name}` of a layer in compressed storage is read-only, and {func.__name__} would write to "
                "it.\nInitialise before regrow.sparsify, call the layer's reset_parameters(), or write its "
                f"{written._name}_values; storage='masked' keeps a weight that can be written."
            )
        if func is F.linear and len(args) > 1 and view is None and isinstance(args[1], WeightView):
            kernels = getattr(args[1]._module, "_linear", None)
            if kernels is not None:
                return kernels(*args, **kwargs, live=args[1]._live)
        args, kwargs = tree_map(lambda x: x.dense() if isinstance(x, WeightView) else x, (args, kwargs))
        return func(*args, **kwargs)

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        raise RegrowRuntimeError(
            f"`weight` of a layer in compressed storage is not a tensor that {func} could work on directly.\n"
            "Use its to_dense()."
        )


def _written(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> WeightView | None:
    """Find a view that a function would write to: its name ends with one underscore, or it has an `out`."""
    in_place = is_in_place(func) or short_name(func) == "__set__"  # of .data, say
    first = args[:1] if args else tuple(kwargs.values())[:1]  # nn.init hands its tensor on by keyword
    leaves = tree_leaves((kwargs.get("out"), first if in_place else ()))
    return next((x for x in leaves if isinstance(x, WeightView)), None)


def _set_requires_grad(view: WeightView, value: bool = True) -> WeightView:
    view._parameter.requires_grad_(value)
    return view


def _gradient(view: WeightView) -> Tensor | None:
    """Return the gradient of the values at their places."""
    gradient, where = view._parameter.grad, (view._module, view._name)
    return None if gradient is None else _in_places(*where, gradient).view(view._module.shape_of(view._name))


_OWN: dict[Any, Callable[..., Any]] = {
    _getter("requires_grad"): lambda view: view._live and view._parameter.requires_grad,
    Tensor.requires_grad.__set__: _set_requires_grad,  # type: ignore[attr-defined]
    Tensor.requires_grad_: _set_requires_grad,
    _getter("grad"): _gradient,
    _getter("grad_fn"): lambda view: None,
    Tensor.to_dense: lambda view, *_: view.dense(),
    Tensor.crow_indices: lambda view: view._crow,
    Tensor.col_indices: lambda view: view._module.index_of(view._name).col[: int(view._crow[-1])],
}
"""What is answered without the dense tensor, or in its own way."""
