"""`BatchTiles`: a tensor of shape (N, C, H, W) that is stored as batch tiles (`regrow.ops.tiles`).

Between sparse convolutions activations stay in that layout. Functions reach them in one of three ways:

- element-wise ones with f(0) = 0 (`ELEMENTWISE`: ReLU, sums of branches, scaling ...) run on the whole buffer, under
  torch's own autograd;
- those with an operator in this layout (`native`: batch norm, pooling, dropout) are called with the tiles;
- any other converts its arguments to torch's own layout, once, and goes on with plain tensors; `on_convert` hears
  of it.

Gradients are in tiles too wherever they arrive as such.
"""

from __future__ import annotations

import copy
import time
import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from regrow._torch import schema_of, tree_leaves, tree_map_only, without_torch_function
from regrow.ops.tiles import BORDER, Geometry, geometry_of, reborder, tile, untile
from regrow.tiles.functions import ELEMENTWISE, PASSED, is_attribute, is_in_place, short_name

on_convert: list[Callable[[str, torch.Size, float], None]] = []
"""Called at each conversion with the operation that asked for it, the shape and the milliseconds it took."""

aten = torch.ops.aten


class Pending(NamedTuple):
    """What a layer will put out, whose caller does nothing with it but add something (`regrow.fuse` makes sure)."""

    plus: Callable[[BatchTiles], BatchTiles]
    """Computes it with what is added, as part of the graph."""
    grad: bool
    """Whether gradients were asked for where the layer was called."""
    buffer: Callable[[], Tensor]
    """Computes it as it is."""


class BatchTiles(Tensor):
    """Activations of shape (N, C, H, W) in batch tiles.

    A view of it (`x[:, :4]`, `x.view(...)`) is a copy, so what is written into a view does not reach it: write with
    ``x[:, :4] = ...``, or take `to_dense_layout()` first.

    Args:
        buffer: [T, C, P, 16], as `regrow.ops.tiles` describes it; shared, not copied.
        geometry: N, H, W and the border.
    """

    geometry: Geometry
    rectified: int | None
    """The version of `buffer` that a ReLU to come finds done; only that ReLU may have this tensor."""
    pending: Pending | None
    """Where `buffer` was not yet asked for."""
    reader: tuple[weakref.ref[Any], int] | None
    """The node of who has read this last, and the version of `buffer` that it read; see `regrow.tiles.sums`."""
    _buffer: Tensor

    @staticmethod
    def __new__(cls, buffer: Tensor, geometry: Geometry) -> BatchTiles:
        """See the class: no gradient flows to `buffer`."""
        self = cls._of(buffer.shape[1], buffer, geometry)
        self._buffer, self.pending = buffer, None
        return self

    @classmethod
    def later(cls, pending: Pending, channels: int, like: Tensor, geometry: Geometry) -> BatchTiles:
        """Tiles with a buffer to come, of the dtype and device of `like`."""
        self = cls._of(channels, like, geometry)
        self.pending = pending
        return self

    @classmethod
    def _of(cls, channels: int, like: Tensor, geometry: Geometry) -> BatchTiles:
        shape = (geometry.images, channels, geometry.height, geometry.width)
        self: BatchTiles = Tensor._make_wrapper_subclass(cls, shape, dtype=like.dtype, device=like.device)
        self.geometry, self.rectified, self.reader = geometry, None, None
        return self

    @property
    def buffer(self) -> Tensor:
        """[T, C, P, 16]"""
        if self.pending is not None:
            with torch.no_grad():
                self._buffer = self.pending.buffer()
            self.pending = None
        return self._buffer

    def to_dense_layout(self, channels_last: bool = False, operation: str = "to_dense_layout") -> Tensor:
        """The plain tensor [N, C, H, W], contiguous or channels-last; differentiable."""
        plain: Tensor = _Untile.apply(self, channels_last, operation)  # type: ignore[no-untyped-call]
        return plain

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """The public function `func` on arguments of which one at least is in tiles."""
        kwargs = kwargs or {}
        if func in _NATIVE and "out" not in kwargs:
            result = _NATIVE[func](*args, **kwargs)
            if result is not NotImplemented:
                return result
        if func in ELEMENTWISE and len(args) > 1:
            if isinstance(args[0], Tensor) and not isinstance(args[0], BatchTiles) and is_in_place(func):
                return _on_plain(func, args, kwargs)
            args = _joined(func, args)
        if func in PASSED or is_attribute(func):
            with without_torch_function():
                return func(*args, **kwargs)
        return _on_plain(func, args, kwargs)

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """The operator `func` below autograd: what `__torch_function__` passed on, and what autograd itself does."""
        kwargs = kwargs or {}
        if func in _BELOW:
            result = _BELOW[func](*args, **kwargs)
        elif torch.Tag.pointwise in func.tags:
            result = _on_buffers(func, args, kwargs)
        else:
            result = NotImplemented
        return _below_on_plain(func, args, kwargs) if result is NotImplemented else result

    def __deepcopy__(self, memo: dict[int, Any]) -> BatchTiles:
        if not self.is_leaf:
            raise RuntimeError("Only Tensors created explicitly by the user support the deepcopy protocol")
        fresh = BatchTiles(self.buffer.clone(), self.geometry)
        fresh.requires_grad_(self.requires_grad)
        memo[id(self)] = fresh
        fresh.grad = copy.deepcopy(self.grad, memo)
        return fresh

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Pickled as the plain tensor, which needs no regrow to be read."""
        plain = untile(self.buffer, self.geometry).requires_grad_(self.requires_grad)
        return plain.__reduce_ex__(protocol)

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        text = repr(untile(self.buffer, self.geometry)).replace("tensor(", "BatchTiles(", 1)
        if self.grad_fn is not None:
            return f"{text[:-1]}, grad_fn=<{self.grad_fn.name()}>)"
        return f"{text[:-1]}, requires_grad=True)" if self.requires_grad else text


def without_dispatch(images: Tensor) -> AbstractContextManager[Any]:
    """Where what is done with tiles needs none of their functions: each attribute is one, and costs a call."""
    return without_torch_function() if isinstance(images, BatchTiles) else nullcontext()


def to_tiles(images: Tensor, border: int = BORDER, operation: str = "to_tiles") -> BatchTiles:
    """`images` [N, C, H, W] in tiles with a border of at least `border` pixels; differentiable.

    Tiles come back as they are where their border suffices; plain tensors are converted, on behalf of `operation`.
    """
    if isinstance(images, BatchTiles):
        if images.geometry.border >= border:
            return images
        wider: BatchTiles = _Reborder.apply(images, border)  # type: ignore[no-untyped-call]
        return wider
    tiles: BatchTiles = _Tile.apply(images, border, operation)  # type: ignore[no-untyped-call]
    return tiles


def buffer_of(images: Tensor, geometry: Geometry, operation: str) -> Tensor:
    """The buffer of `images`, plain or in tiles, in `geometry`: so a backward pass takes its gradient."""
    if isinstance(images, BatchTiles):
        return reborder(images.buffer, images.geometry, geometry.border)
    return _told(operation, images.shape, lambda: tile(images, geometry.border))


def plain_of(images: Tensor, operation: str) -> Tensor:
    """`images`, plain or in tiles, as a plain tensor; differentiable."""
    return images.to_dense_layout(operation=operation) if isinstance(images, BatchTiles) else images


def _told(operation: str, shape: torch.Size, convert: Callable[[], Tensor]) -> Tensor:
    """What `convert` returns, with the listeners told."""
    if not on_convert:
        return convert()
    start = time.perf_counter()
    result = convert()
    milliseconds = 1000 * (time.perf_counter() - start)
    for listener in on_convert:
        listener(operation, shape, milliseconds)
    return result


class _Tile(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, images: Tensor, border: int, operation: str) -> BatchTiles:
        ctx.channels_last = not images.is_contiguous() and images.is_contiguous(
            memory_format=torch.channels_last
        )
        buffer = _told(operation, images.shape, lambda: tile(images, border))
        return BatchTiles(buffer, geometry_of(images, border))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        gradient = gradients[0]
        if isinstance(gradient, BatchTiles):
            gradient = gradient.to_dense_layout(ctx.channels_last, "gradient of the first tiles")
        return gradient, None, None


class _Untile(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tiles: BatchTiles, channels_last: bool, operation: str) -> Tensor:
        ctx.border, ctx.operation = tiles.geometry.border, operation
        return _told(operation, tiles.shape, lambda: untile(tiles.buffer, tiles.geometry, channels_last))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return to_tiles(gradients[0], ctx.border, f"gradient of {ctx.operation}"), None, None


class _Reborder(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tiles: BatchTiles, border: int) -> BatchTiles:
        return BatchTiles(
            reborder(tiles.buffer, tiles.geometry, border), tiles.geometry._replace(border=border)
        )

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return gradients[0], None


# Public functions, in __torch_function__

_NATIVE: dict[Any, Callable[..., Any]] = {}


def native(*functions: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register what does the work of `functions` on tiles; it returns NotImplemented for what it cannot do."""

    def register(handler: Callable[..., Any]) -> Callable[..., Any]:
        _NATIVE.update(dict.fromkeys(functions, handler))
        return handler

    return register


def _joined(func: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """The arguments with plain tensors of the tiles' shape in tiles too, so that their gradients leave them once."""
    tiles = next((x for x in args if isinstance(x, BatchTiles)), None)
    if tiles is None:
        return args
    border, shape = tiles.geometry.border, tiles.shape

    def join(x: Any) -> Any:
        plain = isinstance(x, Tensor) and not isinstance(x, BatchTiles)
        return to_tiles(x, border, short_name(func)) if plain and x.shape == shape else x

    return tuple(join(x) for x in args)


def _changed(func: Any, args: Any, kwargs: Any) -> Any:
    """The arguments that a function changes."""
    if kwargs.get("out") is not None:
        return kwargs["out"]
    if is_in_place(func) or kwargs.get("inplace"):
        return args[0] if args else kwargs["input"]
    return ()


def _on_plain(func: Any, args: Any, kwargs: Any) -> Any:
    """`func` on plain copies, each made once; what it changes is written back."""
    name = short_name(func)
    plain: dict[int, Tensor] = {}

    def convert(x: BatchTiles) -> Tensor:
        if id(x) not in plain:
            plain[id(x)] = x.to_dense_layout(operation=name)
        return plain[id(x)]

    plain_args, plain_kwargs = tree_map_only(BatchTiles, convert, (args, kwargs))
    result = func(*plain_args, **plain_kwargs)
    for x in tree_leaves(_changed(func, args, kwargs)):
        if isinstance(x, BatchTiles):
            x.copy_(plain[id(x)])
            result = x if result is plain[id(x)] else result
    return result


@native(F.relu, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_)
def _relu(input: BatchTiles, inplace: bool = False) -> Any:
    done = input.rectified is not None and input.rectified == input.buffer._version
    return input if done else NotImplemented


@native(F.dropout)
def _dropout(input: BatchTiles, p: float = 0.5, training: bool = True, inplace: bool = False) -> Any:
    if not 0 <= p < 1:
        return NotImplemented
    if not training or p == 0:
        return input
    noise = BatchTiles(torch.empty_like(input.buffer).bernoulli_(1 - p).div_(1 - p), input.geometry)
    return input.mul_(noise) if inplace else input * noise


@native(Tensor.contiguous)
def _contiguous(input: BatchTiles, memory_format: torch.memory_format = torch.contiguous_format) -> Any:
    return input if memory_format == torch.contiguous_format else input.to_dense_layout(True, "contiguous")


# Operators below autograd, in __torch_dispatch__


def _on_buffers(func: Any, args: Any, kwargs: Any) -> Any:
    """A pointwise operator, where it takes zeros to zeros and every tensor is of one shape, or a number."""
    if schema_of(func).is_mutable and not isinstance(args[0], BatchTiles):
        return NotImplemented
    first = next(x for x in args if isinstance(x, BatchTiles))
    buffers: list[Any] = []
    numbers: list[Any] = []
    for x in args:
        if isinstance(x, Tensor) and x.dim() > 0:
            if x.shape != first.shape or x.dtype != first.dtype:
                return NotImplemented
            buffers.append(buffer_of(x, first.geometry, short_name(func)))
            numbers.append(None)
        else:
            buffers.append(x)
            numbers.append(x.item() if isinstance(x, Tensor) else x)
    if not _keeps_zero(func, tuple(numbers), tuple(kwargs.items()), first.dtype):
        return NotImplemented
    result = func(*buffers, **kwargs)
    if result is buffers[0]:  # changed in place
        _note_change(result)
        return first
    return BatchTiles(result, first.geometry)


@lru_cache(maxsize=1024)  # numbers that are learned are new at each step
def _keeps_zero(func: Any, numbers: tuple[Any, ...], kwargs: Any, dtype: torch.dtype) -> bool:
    """Whether `func` is 0 in the same dtype where its tensors (None in `numbers`) are."""
    args = [torch.zeros(1, dtype=dtype, device="cpu") if x is None else x for x in numbers]
    result = func(*args, **dict(kwargs))
    return isinstance(result, Tensor) and result.dtype == dtype and bool(result == 0)


def _below_on_plain(func: Any, args: Any, kwargs: Any) -> Any:
    """Any operator on plain copies; what its schema says is written to is written back."""
    name = short_name(func)
    plain: dict[int, Tensor] = {}

    def convert(x: BatchTiles) -> Tensor:
        if id(x) not in plain:
            plain[id(x)] = _told(name, x.shape, lambda: untile(x.buffer, x.geometry))
        return plain[id(x)]

    plain_args, plain_kwargs = tree_map_only(BatchTiles, convert, (args, kwargs))
    result = func(*plain_args, **plain_kwargs)
    for i, argument in enumerate(schema_of(func).arguments):
        if argument.alias_info is None or not argument.alias_info.is_write:
            continue
        for x in tree_leaves(args[i] if i < len(args) else kwargs.get(argument.name)):
            if isinstance(x, BatchTiles):
                _copy(x, plain[id(x)])
                result = x if result is plain[id(x)] else result
    return result


def _copy(to: Tensor, source: Tensor, non_blocking: bool = False) -> Any:
    if not isinstance(to, BatchTiles):
        return NotImplemented
    whole = source if isinstance(source, BatchTiles) else source.expand(to.shape)
    _note_change(to.buffer.copy_(buffer_of(whole, to.geometry, "copy_")))
    return to


def _note_change(buffer: Tensor) -> None:
    """Let autograd see that a buffer was changed in place, which it does not down here by itself."""
    if not buffer.is_inference():
        torch.autograd.graph.increment_version(buffer)


def _alias(x: BatchTiles, *shape: Any) -> Any:
    same = not shape or tuple(shape[0]) == tuple(x.shape)
    return BatchTiles(x.buffer.detach(), x.geometry) if same else NotImplemented


def _clone(x: BatchTiles, memory_format: torch.memory_format | None = None) -> Any:
    if memory_format not in (None, torch.preserve_format, torch.contiguous_format):
        return NotImplemented
    return BatchTiles(x.buffer.clone(), x.geometry)


def _zeros(x: BatchTiles, **kwargs: Any) -> Any:
    if any(kwargs.get(key) not in (None, getattr(x, key)) for key in ("dtype", "device", "layout")):
        return NotImplemented
    return BatchTiles(torch.zeros_like(x.buffer), x.geometry)


def _sum(x: BatchTiles, dtype: torch.dtype | None = None) -> Tensor:
    return x.buffer.sum(dtype=dtype)


_BELOW: dict[Any, Callable[..., Any]] = {
    aten.copy_.default: _copy,
    aten.detach.default: _alias,
    aten.alias.default: _alias,
    aten.view.default: _alias,
    aten.expand.default: _alias,
    aten.clone.default: _clone,
    aten.zeros_like.default: _zeros,
    aten.sum.default: _sum,
}
