"""A small vision transformer and a small GPT, whose attention is made of linear layers."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from regrow.arguments import require_count, require_fraction
from regrow.errors import RegrowValueError
from regrow.models.width import require_width, scaled


class Attention(nn.Module):
    """Self-attention over four linear layers: ``query``, ``key``, ``value``, ``out``."""

    def __init__(self, size: int, heads: int, dropout: float, causal: bool) -> None:
        super().__init__()
        self.heads, self.dropout, self.causal = heads, dropout, causal
        self.query = nn.Linear(size, size)
        self.key = nn.Linear(size, size)
        self.value = nn.Linear(size, size)
        self.out = nn.Linear(size, size)

    def forward(self, x: Tensor) -> Tensor:
        """Return [N, L, size] of `x` [N, L, size]."""
        # [N, L, size] -> [N, heads, L, size / heads]
        query, key, value = (
            y.unflatten(2, (self.heads, -1)).transpose(1, 2)
            for y in (self.query(x), self.key(x), self.value(x))
        )
        dropout = self.dropout if self.training else 0.0
        y = F.scaled_dot_product_attention(query, key, value, dropout_p=dropout, is_causal=self.causal)
        result: Tensor = self.out(y.transpose(1, 2).flatten(2))
        return result


class TransformerBlock(nn.Module):
    """Attention, then two linear layers of four times the size, each after a norm."""

    def __init__(self, size: int, heads: int, dropout: float, causal: bool) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(size)
        self.attention = Attention(size, heads, dropout, causal)
        self.norm2 = nn.LayerNorm(size)
        self.fc1 = nn.Linear(size, 4 * size)
        self.fc2 = nn.Linear(4 * size, size)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Return [N, L, size] of `x` [N, L, size]."""
        x = x + self.dropout(self.attention(self.norm1(x)))
        result: Tensor = x + self.dropout(self.fc2(F.gelu(self.fc1(self.norm2(x)))))
        return result


def _blocks(
    dim: int, depth: int, heads: int, dropout: float, width: float, causal: bool
) -> tuple[int, nn.Sequential]:
    """Return the size of a token's vector, and the blocks; `width` scales each head."""
    dim, depth, heads = (
        require_count("dim", dim),
        require_count("depth", depth),
        require_count("heads", heads),
    )
    if dim % heads:
        raise RegrowValueError(f"`dim` must be a multiple of `heads`, got {dim} and {heads}")
    dropout = require_fraction("dropout", dropout)
    size = heads * scaled(dim // heads, require_width(width))
    return size, nn.Sequential(*(TransformerBlock(size, heads, dropout, causal) for _ in range(depth)))


def _initialise(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.trunc_normal_(module.weight, std=0.02)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)


class ViT(nn.Module):
    """``patches`` (a convolution), learned positions, ``blocks``, ``norm``, the mean over tokens, ``fc``."""

    def __init__(
        self,
        classes: int,
        size: int,
        patch: int,
        channels: int,
        dim: int,
        depth: int,
        heads: int,
        dropout: float,
        width: float,
    ) -> None:
        super().__init__()
        classes, channels = require_count("classes", classes), require_count("channels", channels)
        size, patch = require_count("size", size), require_count("patch", patch)
        if size % patch:
            raise RegrowValueError(f"`size` must be a multiple of `patch`, got {size} and {patch}")
        inner, blocks = _blocks(dim, depth, heads, dropout, width, causal=False)
        self.patches = nn.Conv2d(channels, inner, patch, patch)
        self.positions = nn.Parameter(torch.empty(1, (size // patch) ** 2, inner))
        self.blocks = blocks
        self.norm = nn.LayerNorm(inner)
        self.fc = nn.Linear(inner, classes)
        _initialise(self)
        nn.init.trunc_normal_(self.positions, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits [N, classes] of images `x` [N, channels, size, size]."""
        tokens = self.patches(x).flatten(2).transpose(1, 2) + self.positions
        logits: Tensor = self.fc(self.norm(self.blocks(tokens)).mean(1))
        return logits


class GPT(nn.Module):
    """``tokens`` and ``positions`` (embeddings), causal ``blocks``, ``norm``, and ``head``, tied to ``tokens``."""

    def __init__(
        self,
        classes: int,
        context: int,
        dim: int,
        depth: int,
        heads: int,
        dropout: float,
        width: float,
    ) -> None:
        super().__init__()
        classes = require_count("classes", classes)
        self.context = context = require_count("context", context)
        size, blocks = _blocks(dim, depth, heads, dropout, width, causal=True)
        self.tokens = nn.Embedding(classes, size)
        self.positions = nn.Embedding(context, size)
        self.dropout = nn.Dropout(dropout)
        self.blocks = blocks
        self.norm = nn.LayerNorm(size)
        self.head = nn.Linear(size, classes, bias=False)
        self.head.weight = self.tokens.weight
        _initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits [N, L, classes] of the token after each of `x` [N, L], int64, L at most `context`."""
        if x.shape[-1] > self.context:
            raise RegrowValueError(
                f"`x` must hold at most `context` = {self.context} tokens, got {x.shape[-1]}"
            )
        places = torch.arange(x.shape[-1], device=x.device)
        y = self.dropout(self.tokens(x) + self.positions(places))
        logits: Tensor = self.head(self.norm(self.blocks(y)))
        return logits


def vit(
    classes: int = 10,
    size: int = 32,
    patch: int = 4,
    channels: int = 3,
    dim: int = 192,
    depth: int = 12,
    heads: int = 3,
    dropout: float = 0.0,
    width: float = 1.0,
) -> ViT:
    """Build a vision transformer; by default ViT-Ti's sizes on images of 32 x 32 in patches of 4 x 4.

    Args:
        classes: the number of outputs.
        size: height and width of the images.
        patch: height and width of a patch; `size` is a multiple of it.
        channels: channels of the images.
        dim: length of a token's vector, a multiple of `heads`.
        depth: number of blocks.
        heads: attention heads of a block.
        dropout: probability, in attention and after each half of a block.
        width: factor of each head's size ``dim / heads``, and with it of all sizes but inputs and outputs.
    """
    return ViT(classes, size, patch, channels, dim, depth, heads, dropout, width)


def gpt(
    classes: int = 256,
    context: int = 128,
    dim: int = 192,
    depth: int = 6,
    heads: int = 6,
    dropout: float = 0.0,
    width: float = 1.0,
) -> GPT:
    """Build a decoder-only transformer in GPT-2's form; its read-out is tied to the embedding and so stays dense.

    Args:
        classes: the size of the vocabulary; 256 for bytes.
        context: the most tokens it can see.
        dim: length of a token's vector, a multiple of `heads`.
        depth: number of blocks.
        heads: attention heads of a block.
        dropout: probability, in attention, after the embedding and after each half of a block.
        width: factor of each head's size ``dim / heads``, and with it of all sizes but the vocabulary.
    """
    return GPT(classes, context, dim, depth, heads, dropout, width)
