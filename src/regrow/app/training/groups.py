"""Which parameters weight decay leaves alone, as groups for an optimizer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from regrow._torch import ConvNd
from regrow.errors import RegrowValueError, closest

WORDS = ("norms", "biases", "depthwise", "embeddings")


def parameter_groups(model: nn.Module, no_decay: Sequence[str]) -> list[dict[str, Any]]:
    """Return the parameters of `model` in one group, or in two, of which the second has no weight decay.

    Args:
        no_decay: any of the words norms, biases, depthwise (kernels of depthwise convolutions) and embeddings, or
            globs of parameters' names.

    Raises:
        RegrowValueError: for a word or glob that fits no parameter.
    """
    parameters = dict(model.named_parameters())
    free: set[str] = set()
    for word in no_decay:
        found = {name for name, kind in _kinds(model) if kind == word} & parameters.keys()
        if word not in WORDS:
            found = {name for name in parameters if fnmatchcase(name, word)}
        if not found and word not in WORDS:
            others = ", ".join(other for other in no_decay if other != word)
            raise RegrowValueError(
                f"`no_decay` must hold {', '.join(WORDS)} or globs of parameters' names, and {word!r} fits none"
                f"{closest(word, [*WORDS, *parameters])}\nWithout it: no_decay=[{others}]."
            )
        free |= found
    groups: list[dict[str, Any]] = [
        {"params": [p for name, p in parameters.items() if name not in free]},
        {"params": [p for name, p in parameters.items() if name in free], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def _kinds(model: nn.Module) -> Iterator[tuple[str, str]]:
    """Yield (name, word) of each parameter that a word stands for."""
    for prefix, module in model.named_modules():
        for name, _ in module.named_parameters(recurse=False):
            full = f"{prefix}.{name}" if prefix else name
            if isinstance(module, nn.Embedding):
                yield full, "embeddings"
            elif "Norm" in type(module).__name__:
                yield full, "norms"
            elif name.startswith("bias") or name.endswith("bias"):
                yield full, "biases"
            elif isinstance(module, ConvNd) and 1 < module.groups == module.in_channels:
                yield full, "depthwise"
