"""`BatchTiles`: a tensor of shape (N, C, H, W) that is stored as batch tiles (`regrow.ops.tiles`).

Between sparse convolutions activations stay in that layout. What is done with them goes one of three ways:

- `regrow.tiles.table` names a handler for the operation, which works on the buffer;
- a pointwise operator that takes zeros to zeros runs on the whole buffer, whatever its name;
- anything else converts its arguments to torch's own layout, once, and goes on with plain tensors; `on_convert` hears
  of it.

Gradients are in tiles too wherever they arrive as such.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import lru_cache
from typing import Any, ClassVar

import torch
from torch import Tensor

from regrow._torch import schema_of, tree_leaves, tree_map_only, without_torch_function
from regrow.ops.tiles import BORDER, Geometry, geometry_of, reborder, tile, untile
from regrow.tiles.deferred import Contents, FusedSum
from regrow.tiles.functions import is_in_place, short_name

Handler = Callable[..., Any]
"""Does the work of an operation, given its arguments; returns NotImplemented for what it cannot do."""

Listener = Callable[[str, torch.Size, float], object]
"""Takes the operation that asked for a conversion, the shape, and the milliseconds that it took."""

_listeners: list[Listener] = []


@contextmanager
def on_convert(listener: Listener) -> Iterator[None]:
    """Call `listener` at each conversion inside the `with` block, in all threads."""
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)


class BatchTiles(Tensor):
    """Activations of shape (N, C, H, W) in batch tiles.

    A view of it (`x[:, :4]`, `x.view(...)`) is a copy, so what is written into a view does not reach it: write with
    ``x[:, :4] = ...``, or take `to_dense_layout()` first.

    Args:
        buffer: [T, C, P, 16], as `regrow.ops.tiles` describes it; shared, not copied. No gradient flows to it.
        geometry: N, H, W and the border.
    """

    functions: ClassVar[Mapping[Any, Handler]]
    """Handlers of public functions; `regrow.tiles.table` sets it."""
    operators: ClassVar[Mapping[Any, Handler]]
    """Handlers of operators below autograd; `regrow.tiles.table` sets it."""

    geometry: Geometry
    contents: Contents

    @staticmethod
    def __new__(cls, buffer: Tensor, geometry: Geometry) -> BatchTiles:
        """See the class."""
        return cls._of(Contents(buffer), buffer.shape[1], buffer, geometry)

    @classmethod
    def deferred(
        cls,
        compute: Callable[[], Tensor],
        fused_sum: FusedSum,
        channels: int,
        like: Tensor,
        geometry: Geometry,
    ) -> BatchTiles:
        """Make tiles whose buffer is computed later, of the dtype and device of `like`; see `Contents`."""
        return cls._of(Contents(None, compute, fused_sum), channels, like, geometry)

    @classmethod
    def _of(cls, contents: Contents, channels: int, like: Tensor, geometry: Geometry) -> BatchTiles:
        shape = (geometry.images, channels, geometry.height, geometry.width)
        self: BatchTiles = Tensor._make_wrapper_subclass(cls, shape, dtype=like.dtype, device=like.device)
        self.contents, self.geometry = contents, geometry
        return self

    @property
    def buffer(self) -> Tensor:
        """The buffer [T, C, P, 16]; to ask for one that is deferred computes it."""
        contents = self.contents
        return contents.computed() if contents.buffer is None else contents.buffer

    def to_dense_layout(self, channels_last: bool = False, operation: str = "to_dense_layout") -> Tensor:
        """Convert to a plain tensor [N, C, H, W], contiguous or channels-last; differentiable."""
        plain: Tensor = _Untile.apply(self, channels_last, operation)  # type: ignore[no-untyped-call]
        return plain

    def write(self, source: Tensor) -> None:
        """Write the values of `source`, of this shape, into the buffer, below autograd."""
        _note_change(self.buffer.copy_(buffer_of(source, self.geometry, "copy_")))

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Answer the public function `func` on arguments of which one at least is in tiles."""
        kwargs = kwargs or {}
        if func in cls.functions and "out" not in kwargs:
            result = cls.functions[func](*args, **kwargs)
        else:
            result = NotImplemented
        return _on_plain(func, args, kwargs) if result is NotImplemented else result

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Answer the operator `func` below autograd: of what handlers passed on, and of autograd itself."""
        kwargs = kwargs or {}
        if func in cls.operators:
            result = cls.operators[func](*args, **kwargs)
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
        """Pickle as the plain tensor, which needs no regrow to be read."""
        plain = untile(self.buffer, self.geometry).requires_grad_(self.requires_grad)
        return plain.__reduce_ex__(protocol)

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        text = repr(untile(self.buffer, self.geometry)).replace("tensor(", "BatchTiles(", 1)
        if self.grad_fn is not None:
            return f"{text[:-1]}, grad_fn=<{self.grad_fn.name()}>)"
        return f"{text[:-1]}, requires_grad=True)" if self.requires_grad else text


def without_dispatch(images: Tensor) -> AbstractContextManager[Any]:
    """Return a context for work that needs none of the tiles' functions: each attribute is one, and costs a call."""
    return without_torch_function() if isinstance(images, BatchTiles) else nullcontext()


def to_tiles(images: Tensor, border: int = BORDER, operation: str = "to_tiles") -> BatchTiles:
    """Put `images` [N, C, H, W] in tiles with a border of at least `border` pixels; differentiable.

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
    """Return the buffer of `images`, plain or in tiles, in `geometry`: so a backward pass takes its gradient."""
    if isinstance(images, BatchTiles):
        return reborder(images.buffer, images.geometry, geometry.border)
    return _told(operation, images.shape, lambda: tile(images, geometry.border))


def plain_of(images: Tensor, operation: str) -> Tensor:
    """Return `images`, plain or in tiles, as a plain tensor; differentiable."""
    return images.to_dense_layout(operation=operation) if isinstance(images, BatchTiles) else images


def _told(operation: str, shape: torch.Size, convert: Callable[[], Tensor]) -> Tensor:
    """Return what `convert` returns, and tell the listeners."""
    if not _listeners:
        return convert()
    start = time.perf_counter()
    result = convert()
    milliseconds = 1000 * (time.perf_counter() - start)
    for listener in _listeners:
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


def unchanged(func: Any, *args: Any, **kwargs: Any) -> Any:
    """Run `func` as on any tensor; its operators come back to `BatchTiles.__torch_dispatch__`."""
    with without_torch_function():
        return func(*args, **kwargs)


def _changed(func: Any, args: Any, kwargs: Any) -> Any:
    """Return the arguments that a function changes."""
    if kwargs.get("out") is not None:
        return kwargs["out"]
    if is_in_place(func) or kwargs.get("inplace"):
        return args[0] if args else kwargs["input"]
    return ()


def _on_plain(func: Any, args: Any, kwargs: Any) -> Any:
    """Run a function on plain copies, each made once, and write back what it changes."""
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


def _on_buffers(func: Any, args: Any, kwargs: Any) -> Any:
    """Run a pointwise operator on buffers, where it keeps zeros and every tensor is of one shape, or a number."""
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
    """Return whether `func` is 0 in the same dtype where its tensors (None in `numbers`) are."""
    args = [torch.zeros(1, dtype=dtype, device="cpu") if x is None else x for x in numbers]
    result = func(*args, **dict(kwargs))
    return isinstance(result, Tensor) and result.dtype == dtype and bool(result == 0)


def _below_on_plain(func: Any, args: Any, kwargs: Any) -> Any:
    """Run an operator on plain copies, and write back what its schema says is written to."""
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
                x.write(plain[id(x)])
                result = x if result is plain[id(x)] else result
    return result


def _note_change(buffer: Tensor) -> None:
    """Let autograd see that a buffer was changed in place, which it does not down here by itself."""
    if not buffer.is_inference():
        torch.autograd.graph.increment_version(buffer)
