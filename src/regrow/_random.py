"""Random numbers that are the same in every process: seeded generators, and positions drawn without repetition."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from regrow.arguments import require_count, require_instance, require_seed
from regrow.ops.sketch import PIECE


def generator(seed: int, *words: object) -> torch.Generator:
    """Return a CPU generator that is a pure function of `seed` and `words`, the same in every process."""
    seed = require_seed("seed", seed)
    digest = hashlib.sha256("/".join(map(str, (seed, *words))).encode()).digest()
    return torch.Generator("cpu").manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def sample(count: int, population: int, generator: torch.Generator) -> Tensor:
    """Return `count` distinct numbers below `population`, ascending, uniform over all such sets, int64 [count].

    Costs memory of `count`, not of `population`, where less than half is drawn: 16 bytes for each.
    """
    population = require_count("population", population, least=0)
    count = require_count("count", count, least=0, most=population)
    require_instance("generator", generator, torch.Generator, "a torch.Generator")
    if 2 * count > population:
        return torch.randperm(population, generator=generator, device="cpu")[:count].sort().values
    drawn = torch.empty(0, dtype=torch.int64, device="cpu")
    while len(drawn) < count:  # drawing just what is missing keeps every set of `count` equally likely
        more = torch.randint(population, (count - len(drawn),), generator=generator, device="cpu")
        drawn = _distinct(torch.cat([drawn, more]) if len(drawn) else more)
    return drawn


def _distinct(numbers: Tensor) -> Tensor:
    """Return `numbers`, which are overwritten, ascending and each once; in place, where `unique` makes several
    copies.
    """
    numbers.numpy().sort()
    repeated = numbers[1:] == numbers[:-1]
    if not repeated.any():
        return numbers
    end = 1
    for start in range(1, len(numbers), PIECE):
        piece = numbers[start : start + PIECE]
        kept = piece[~repeated[start - 1 : start - 1 + PIECE]]
        numbers[end : end + len(kept)] = kept
        end += len(kept)
    return numbers[:end]
