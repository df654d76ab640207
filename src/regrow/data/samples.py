"""Samples of text: what a network writes on, symbol by symbol."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from regrow._random import generator
from regrow.arguments import require_count, require_positive, require_text


@dataclass(frozen=True)
class Samples:
    """How text is drawn from a network.

    Args:
        count: so many texts; 0 for none.
        length: symbols of each.
        temperature: logits are divided by it: low for likely text, 1 for the network's own probabilities, 0 for the
            likeliest symbol each time.
        prompt: what comes before each text. Default: the beginning of what is tested.

    Raises:
        RegrowValueError: for a value that is not allowed.
    """

    count: int = 2
    length: int = 300
    temperature: float = 1.0
    prompt: str = ""

    def __post_init__(self) -> None:
        require_count("samples.count", self.count, least=0)
        require_count("samples.length", self.length)
        require_positive("samples.temperature", self.temperature, zero=True)
        if self.prompt != "":
            require_text("samples.prompt", self.prompt)

    def draw(self, step: Callable[[Tensor], Tensor], prompt: Tensor, classes: int, seed: int) -> Tensor:
        """Draw the texts, a pure function of `seed` and the network.

        Args:
            step: the network: takes the symbols that come next, int64 [count, T], first of all the prompt, and returns
                logits [count, T, classes or more].
            prompt: int64 [T], at least one symbol.
            classes: size of the vocabulary.
            seed: of the random numbers.

        Returns:
            int64 [count, length] on the CPU; shorter where logits are not finite.
        """
        random = generator(seed, "samples")
        given, drawn = (
            prompt.expand(self.count, -1),
            torch.empty(self.count, 0, dtype=torch.int64, device="cpu"),
        )
        while drawn.shape[1] < self.length:
            logits = step(given)[:, -1, :classes].double().cpu()
            if self.temperature == 0:
                symbols = logits.argmax(-1, keepdim=True)
            else:
                likely = (logits / self.temperature).softmax(-1)
                if not likely.isfinite().all():
                    break
                symbols = likely.multinomial(1, generator=random)
            drawn = torch.cat([drawn, symbols], 1)
            given = symbols.to(prompt.device)
        return drawn
