"""What a run of text has in its folder beside others: its vocabulary, and samples of what the network writes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from regrow.app.tasks import Carried, Model
from regrow.app.training.build import Setup
from regrow.app.training.evaluation import in_evaluation
from regrow.app.training.folder import RunFolder
from regrow.data import Samples, Text, Vocabulary
from regrow.errors import RegrowRuntimeError

VOCABULARY = "vocabulary.json"
_END = 60
"""Characters of a prompt that are shown."""


def write_vocabulary(setup: Setup, folder: RunFolder) -> None:
    """Write the vocabulary of a text, of which the numbers in the network's embedding are."""
    if isinstance(setup.data, Text):
        folder.write_json(VOCABULARY, setup.data.vocabulary.to_dict())


def check_vocabulary(setup: Setup, folder: RunFolder) -> None:
    """Refuse a text whose vocabulary is not the run's: its numbers would stand for other symbols.

    Raises:
        RegrowRuntimeError: naming the first difference.
    """
    if not isinstance(setup.data, Text):
        return
    vocabulary = setup.data.vocabulary
    if vocabulary.unit == "bytes" and not (folder.path / VOCABULARY).is_file():
        return  # of a run before there were others
    there = folder.read(VOCABULARY)
    try:
        kept = Vocabulary.from_dict(there)
    except (KeyError, TypeError) as error:
        raise RegrowRuntimeError(
            f"{folder.path / VOCABULARY} is not a vocabulary\nCopy the whole run folder again."
        ) from error
    if kept != vocabulary:
        raise RegrowRuntimeError(
            f"the vocabulary of `data` {setup.recipe.data.name} is not that of the run ({VOCABULARY}): "
            f"{_difference(kept, vocabulary)}\n"
            "Put back the text and the `data` of the recipe as they were, or start a new run."
        )


def _difference(kept: Vocabulary, found: Vocabulary) -> str:
    if kept.unit != found.unit:
        return f"it is of {found.unit}, and the run's of {kept.unit}"
    if len(kept) != len(found):
        return f"it has {len(found):,} {found.unit}, and the run's {len(kept):,}"
    at = next(n for n, pair in enumerate(zip(kept.symbols, found.symbols, strict=True)) if pair[0] != pair[1])
    return f"symbol {at:,} is {found.symbols[at]!r}, and the run's {kept.symbols[at]!r}"


def write_samples(setup: Setup, network: nn.Module, folder: RunFolder) -> None:
    """Write ``samples.txt``: what `network` writes on after the recipe's prompt, or after what is tested begins."""
    how, data, recipe = Samples(**setup.recipe.samples), setup.data, setup.recipe
    if not isinstance(data, Text) or not how.count:
        return
    vocabulary, tested = data.vocabulary, setup.batches.final
    length = tested.inputs.shape[1]
    if how.prompt:
        prompt = vocabulary.encode(how.prompt, "samples.prompt")
    else:
        prompt = tested.inputs[tested.chosen[0]].long()
    with in_evaluation(setup.batches.task, network, recipe.precision) as model, torch.inference_mode():
        step = model if _has_state(setup, network) else _Window(model, length)
        drawn = how.draw(step, prompt.to(setup.device), len(vocabulary), recipe.seed)
    shown = vocabulary.decode(prompt)[-_END:]
    parts = [
        f"[{number} of {how.count}, temperature {how.temperature:g}, seed {recipe.seed}, after {shown!r}]\n"
        f"{vocabulary.decode(one)}\n"
        for number, one in enumerate(drawn, 1)
    ]
    folder.write("samples.txt", "\n".join(parts).encode(errors="replace"))


def _has_state(setup: Setup, network: nn.Module) -> bool:
    return isinstance(setup.batches.task.carrying(network), Carried)


class _Window:
    """Calls a network without a state on the last `length` symbols that it was given."""

    def __init__(self, model: Model, length: int) -> None:
        self.model, self.length = model, length
        self.symbols: Tensor | None = None

    def __call__(self, symbols: Tensor) -> Tensor:
        seen = symbols if self.symbols is None else torch.cat([self.symbols, symbols], 1)
        self.symbols = seen[:, -self.length :]
        return self.model(self.symbols)
