"""Handlers of functions and operators that need no kernel in batch tiles."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from regrow.tiles.deferred import State
from regrow.tiles.functions import is_in_place, short_name
from regrow.tiles.tensor import BatchTiles, to_tiles, unchanged


def element_wise(func: Any, *args: Any, **kwargs: Any) -> Any:
    """Run a function with f(0) = 0 under torch's own autograd, whose operators then run on whole buffers."""
    if len(args) > 1:
        if isinstance(args[0], Tensor) and not isinstance(args[0], BatchTiles) and is_in_place(func):
            return NotImplemented
        args = _joined(func, args)
    return unchanged(func, *args, **kwargs)


def _joined(func: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Put plain arguments of the tiles' shape in tiles too, so that their gradients leave them once."""
    tiles = next((x for x in args if isinstance(x, BatchTiles)), None)
    if tiles is None:
        return args
    border, shape = tiles.geometry.border, tiles.shape

    def join(x: Any) -> Any:
        plain = isinstance(x, Tensor) and not isinstance(x, BatchTiles)
        return to_tiles(x, border, short_name(func)) if plain and x.shape == shape else x

    return tuple(join(x) for x in args)


def relu(func: Any, *args: Any, **kwargs: Any) -> Any:
    """Return the input itself where this ReLU is done, or run it."""
    tiles = args[0] if args else kwargs["input"]
    if tiles.contents.state is State.RECTIFIED:
        return tiles
    return element_wise(func, *args, **kwargs)


def dropout(input: BatchTiles, p: float = 0.5, training: bool = True, inplace: bool = False) -> Any:
    """Drop elements as `torch.nn.functional.dropout` does."""
    if not 0 <= p < 1:
        return NotImplemented
    if not training or p == 0:
        return input
    noise = BatchTiles(torch.empty_like(input.buffer).bernoulli_(1 - p).div_(1 - p), input.geometry)
    return input.mul_(noise) if inplace else input * noise


def contiguous(input: BatchTiles, memory_format: torch.memory_format = torch.contiguous_format) -> Any:
    """Return the tiles, which show contiguous strides; channels-last is torch's own layout."""
    return input if memory_format == torch.contiguous_format else input.to_dense_layout(True, "contiguous")


# Operators below autograd


def copy(to: Tensor, source: Tensor, non_blocking: bool = False) -> Any:
    """Write what is copied into the buffer."""
    if not isinstance(to, BatchTiles):
        return NotImplemented
    to.write(source if isinstance(source, BatchTiles) else source.expand(to.shape))
    return to


def alias(x: BatchTiles, *shape: Any) -> Any:
    """Return tiles that share the buffer if the shape stays the same."""
    same = not shape or tuple(shape[0]) == tuple(x.shape)
    return BatchTiles(x.buffer.detach(), x.geometry) if same else NotImplemented


def clone(x: BatchTiles, memory_format: torch.memory_format | None = None) -> Any:
    """Copy the buffer."""
    if memory_format not in (None, torch.preserve_format, torch.contiguous_format):
        return NotImplemented
    return BatchTiles(x.buffer.clone(), x.geometry)


def zeros_like(x: BatchTiles, **kwargs: Any) -> Any:
    """Make zeros in tiles, of the same dtype and device."""
    if any(kwargs.get(key) not in (None, getattr(x, key)) for key in ("dtype", "device", "layout")):
        return NotImplemented
    return BatchTiles(torch.zeros_like(x.buffer), x.geometry)


def sum_all(x: BatchTiles, dtype: torch.dtype | None = None) -> Tensor:
    """Add up the buffer, whose border and rounding are zeros."""
    return x.buffer.sum(dtype=dtype)
