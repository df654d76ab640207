"""The tables of docs/methods.md and docs/own-method.md against the classes themselves."""

import ast
import inspect
import re
from pathlib import Path

import pytest
import torch
from torch import nn

import regrow
from regrow.app.recipes import shipped
from regrow.methods import registry
from regrow.weights import SparseWeight

DOCS = Path(__file__).parent.parent / "docs"


def cells(page: str, columns: int) -> list[list[str]]:
    """The rows of all tables of `page` that have so many columns, without heads."""
    lines = [line for line in (DOCS / page).read_text().splitlines() if line.startswith("| ")]
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    return [row for row in rows if len(row) == columns and row[0].startswith("`")]


DEFAULTS = [row[:3] for row in cells("methods.md", 5)]


@pytest.mark.parametrize(("name", "argument", "default"), DEFAULTS, ids=lambda cell: cell.strip("`"))
def test_defaults_are_those_of_the_class(name, argument, default):
    parameters = inspect.signature(getattr(regrow, name.strip("`"))).parameters
    assert parameters[argument.strip("`")].default == ast.literal_eval(default.strip("`"))


def test_every_method_with_published_numbers_is_in_the_table():
    """By class, and each argument that a class defines with a number of its own."""
    listed = {(name.strip("`"), argument.strip("`")) for name, argument, _ in DEFAULTS}
    for record in registry.records().values():
        own = record.cls.__module__.startswith("regrow.")  # and not of another test
        if own and record.name != "static":
            assert record.cls.__name__ in {name for name, _ in listed}
    for name in ("ITOP", "GraNet", "Pruning"):
        cls = getattr(regrow, name)
        handed_on = inspect.signature(cls.__mro__[1].__init__).parameters
        for parameter in inspect.signature(cls.__init__).parameters.values():
            inherited = parameter.name in handed_on and handed_on[parameter.name].default == parameter.default
            numbered = isinstance(parameter.default, int | float | str)
            if numbered and parameter.name not in ("seed", "skip_step") and not inherited:
                assert (name, parameter.name) in listed


def test_every_recipe_is_on_the_page():
    text = (DOCS / "methods.md").read_text()
    named = set(re.findall(r"`([a-z0-9.-]+)`", text))
    own = {name for name in shipped() if name.startswith(("fashion-", "gcide-"))}
    assert set(shipped()) - own <= named


def test_every_recipe_has_its_time():
    timed = {name for row in cells("recipes.md", 5) for name in re.findall(r"`([a-z0-9.-]+)`", row[0])}
    assert timed == set(shipped())


def test_what_an_own_method_may_define_is_there_to_define():
    rows = cells("own-method.md", 3)
    assert len(rows) == 10
    for name, *_ in rows:
        name, _, arguments = name.strip("`").rstrip(")").partition("(")
        member = getattr(regrow.Dynamic, name)
        if arguments:
            assert [n for n in inspect.signature(member).parameters if n != "self"] == arguments.split(", ")
    for name in ("average", "random", "remember", "remembered"):
        assert callable(getattr(regrow.Dynamic, name))
    for name in ("best", "fan_in", "values"):
        assert callable(getattr(SparseWeight, name))


def test_the_words_of_an_own_method_are_those_of_weight_and_method():
    model = regrow.sparsify(nn.Sequential(nn.Linear(8, 8)), sparsity=0.5)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    method = regrow.RigL(model, optimizer, total_steps=100, update_every=10)
    owners = {"weight": method.weights[0], "self": method}
    words = [
        word
        for name, _ in cells("own-method.md", 2)
        for word in re.findall(r"`((?:weight|self)\.[^`]+)`", name)
    ]
    assert len(words) == 26
    for word in words:
        owner, _, name = word.partition(".")
        name, _, arguments = name.rstrip(")").partition("(")
        member = getattr(owners[owner], name)
        assert callable(member) == bool(arguments or word.endswith("()")), word
        given = [n for n in arguments.split(", ") if n and not n.startswith('"')]
        if callable(member):
            assert list(inspect.signature(member).parameters)[: len(given)] == given
