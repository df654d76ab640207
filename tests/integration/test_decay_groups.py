"""Optimizers whose groups go by names, types or dimensions: minGPT's, nanoGPT's and the Trainer's rules."""

import warnings
from collections.abc import Callable

import pytest
import torch
from torch import nn

import regrow

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from transformers import Trainer, TrainingArguments

STORAGES = ["masked", "compressed"]


class Block(nn.Module):
    """As a block of minGPT: an embedding, norms, linear layers with and without bias."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, 16)
        self.norm = nn.LayerNorm(16)
        self.mlp = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16))
        self.head = nn.Linear(16, 20, bias=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embedding(tokens)
        out: torch.Tensor = self.head(x + self.mlp(self.norm(x)))
        return out


def by_type(model: nn.Module, *, also: tuple[str, ...] = ()) -> set[str]:
    """Names of the parameters that decay by minGPT's rule, which wants each of them to be of a known kind."""
    decay, rest = set(), set()
    for path, module in model.named_modules():
        for name, _ in module.named_parameters(recurse=False):
            full = f"{path}.{name}" if path else name
            if name.endswith("bias") or isinstance(module, nn.LayerNorm | nn.Embedding):
                rest.add(full)
            elif (name.endswith("weight") and isinstance(module, nn.Linear)) or name.endswith(also):
                decay.add(full)
    left = {name for name, _ in model.named_parameters()} - decay - rest
    assert not left, f"neither decays nor not: {sorted(left)}"
    return decay


def by_dimension(model: nn.Module) -> set[str]:
    """nanoGPT's rule: whatever has two dimensions, embeddings too."""
    return {name for name, p in model.named_parameters() if p.dim() >= 2} - {"embedding.weight"}


def by_trainer(model: nn.Module) -> set[str]:
    arguments = TrainingArguments(output_dir="unused", use_cpu=True, report_to="none")
    return set(Trainer(model, arguments).get_decay_parameter_names(model)) - {"embedding.weight"}


@pytest.mark.parametrize("rule", [by_dimension, by_trainer])
@pytest.mark.parametrize("storage", STORAGES)
def test_rules_by_dimension_and_by_excluded_names_work_as_they_are(
    rule: Callable[[nn.Module], set[str]], storage: str
) -> None:
    model = regrow.sparsify(Block(), 0.7, storage=storage)
    assert {name.removesuffix("_values") for name in rule(model)} == rule(Block())
    trains(model, rule(model))


def test_a_rule_by_type_works_on_masks_and_needs_a_line_for_compressed_weights() -> None:
    masked = regrow.sparsify(Block(), 0.7, storage="masked")
    assert by_type(masked) == by_type(Block()) == {"mlp.0.weight", "mlp.2.weight", "head.weight"}
    trains(masked, by_type(masked))
    compressed = regrow.sparsify(Block(), 0.7, storage="compressed")
    with pytest.raises(AssertionError, match="head.weight_values"):
        by_type(compressed)
    decay = by_type(compressed, also=("weight_values",))
    assert {name.removesuffix("_values") for name in decay} == by_type(Block())
    trains(compressed, decay)


def trains(model: nn.Module, decay: set[str]) -> None:
    groups = [
        {"params": [p for name, p in model.named_parameters() if name in decay], "weight_decay": 0.1},
        {"params": [p for name, p in model.named_parameters() if name not in decay], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=0.01)
    method = regrow.RigL(model, optimizer, total_steps=10, update_every=2)
    tokens = torch.arange(20)
    for _ in range(4):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(tokens), tokens).backward()
        optimizer.step()
    assert method.step == 4


@pytest.mark.parametrize("storage", [*STORAGES, None])
def test_what_changes_in_a_model(storage: str | None) -> None:
    """The table of docs/guide.md."""
    model = nn.Sequential(nn.Linear(16, 32), nn.Conv2d(3, 8, 3))
    if storage is not None:
        regrow.sparsify(model, 0.7, storage=storage)
    types, parameters, keys, shape, is_linear = {
        None: ((nn.Linear, nn.Conv2d), ["weight", "bias"], ["weight", "bias"], (32, 16), True),
        "masked": (
            (nn.Linear, nn.Conv2d),
            ["weight", "bias"],
            ["weight", "bias", "weight_mask"],
            (32, 16),
            True,
        ),
        "compressed": (
            (regrow.SparseLinear, regrow.SparseConv2d),
            ["weight_values", "bias"],
            ["weight_values", "bias", "weight_crow", "weight_col"],
            None,
            False,
        ),
    }[storage]
    for module, kind in zip(model, types, strict=True):
        assert type(module) is kind
        assert [name for name, _ in module.named_parameters()] == parameters
        assert list(module.state_dict()) == keys
    first = next(model[0].parameters())
    assert isinstance(model[0], nn.Linear) is is_linear
    assert first.dim() == 2
    assert first.shape == shape if shape else first.shape[1] == 1
