"""Patterns in recipes."""

from pathlib import Path

import pytest
import torch

import regrow
from regrow.app.recipes import as_yaml, load, method_of
from regrow.app.recipes.loading import read
from regrow.app.training.ways import settings
from regrow.errors import RegrowValueError

NONE = "sparsify.sparsity=null"


def test_two_to_four_is_a_text(tmp_path: Path) -> None:
    """YAML 1.1 has it as the number 124, in base 60."""
    recipe = load("fashion-patterns", ["sparsify.pattern=2:4", NONE])
    assert recipe.sparsify["pattern"] == "2:4"
    for text, pattern in (("'2:4'", "2:4"), ("1:16", "1:16"), ("1x4", "1x4"), ("fan-in", "fan-in")):
        assert (
            load("fashion-patterns", [f"sparsify.pattern={text}", NONE][: 1 + (":" in text)]).sparsify[
                "pattern"
            ]
            == pattern
        )
    config = tmp_path / "config.yaml"
    config.write_text(as_yaml(recipe))
    assert read(config).sparsify == recipe.sparsify


def test_a_block_is_a_list() -> None:
    blocks = load("fashion-patterns", ["sparsify.pattern=[1, 4]"]).sparsify
    model = torch.nn.Sequential(torch.nn.Linear(8, 8))
    regrow.sparsify(model, 0.5, pattern=blocks["pattern"])
    assert regrow.summary(model).rows[0].pattern == "1x4"


@pytest.mark.parametrize(
    ("keys", "text"),
    [
        (["sparsify.pattern=4:2"], "`sparsify.pattern` must be .*got '4:2'"),
        (["sparsify.pattern=1x4", NONE], "`sparsify.sparsity` is missing"),
    ],
)
def test_what_cannot_be_is_refused_when_the_recipe_is_read(keys: list[str], text: str) -> None:
    with pytest.raises(RegrowValueError, match=text):
        load("fashion-patterns", keys)


def test_a_method_that_needs_a_pattern_gets_it() -> None:
    for name, own, expected in (("srigl", None, "fan-in"), ("srigl", "1x4", "1x4"), ("rigl", None, None)):
        keys = [f"method={name}", *([] if own is None else [f"sparsify.pattern={own}"])]
        recipe = load("fashion-patterns", keys)
        how = settings(recipe, torch.device("cpu"), method_of(recipe.method))
        assert how.get("pattern") == expected
