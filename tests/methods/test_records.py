"""A method's record owns what others ask about it: a user's own gets all that the built-in ones have."""

import ast
import json
import re
from pathlib import Path

import pytest
import torch
from tiny import cli, write_recipe
from torch import nn

import regrow
from regrow.accounting import costs, granet_levels, training_multiple
from regrow.app.compare import plan
from regrow.app.recipes import method_of
from regrow.errors import RegrowValueError
from regrow.methods import register, registry

PACKAGE = Path(regrow.__file__).parent
OWN = """
import regrow
from regrow.methods import register

@register(name="own-gradual", line="GraNet from another start")
class Gradual(regrow.GraNet):
    initial_sparsity = 0.25

    def __init__(self, model, optimizer, *, update_every=5, prune_stop_fraction=0.5, **options):
        more = {"update_every": update_every, "prune_stop_fraction": prune_stop_fraction}
        super().__init__(model, optimizer, **more, **options)

@register(name="own-masked", line="RigL on masks alone")
class Masked(regrow.RigL):
    storages = ("masked",)
"""


@pytest.fixture(autouse=True)
def _nothing_stays(monkeypatch):
    monkeypatch.setattr(registry, "_records", dict(registry._records))


def linear() -> nn.Module:
    return nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 10))


# --- no name of a method outside the methods

ROOMS = (
    "accounting",
    "app/training",
    "app/recipes",
    "app/compare",
    "app/report",
    "app/cli",
    "app/__init__.py",
)
FILES = sorted(
    file
    for room in ROOMS
    for file in ([PACKAGE / room] if room.endswith(".py") else (PACKAGE / room).glob("*.py"))
)
BUILT_IN = {
    n: r for n, r in registry.ways().items() if r.cls.__module__.startswith("regrow.") and n != "dense"
}
CLASSES = {record.cls.__name__ for record in BUILT_IN.values()}
PLAIN = {"static", "set", "small-dense"}  # English words, and the word for a dense network in what is shown
COUNTER = ("accounting/units.py", "rigl")  # a convention of counting that has the same name
SHOWN = {"app/cli"}  # examples in the help of commands


def named(source: str, *, prose: bool) -> list[str]:
    """Classes and recipe names of methods in `source`: identifiers, whole strings, and (prose) words in strings."""
    tree = ast.parse(source)
    documentation = {
        id(node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    words = re.compile(rf"\b({'|'.join(sorted(BUILT_IN.keys() - PLAIN, key=len, reverse=True))})\b(?!_)")
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            found += [node.id] if node.id in CLASSES else []
        elif isinstance(node, ast.Attribute):
            found += [node.attr] if node.attr in CLASSES else []
        elif isinstance(node, ast.ImportFrom | ast.Import):
            found += [alias.name for alias in node.names if alias.name in CLASSES]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documentation:
            found += [node.value] if node.value in BUILT_IN else words.findall(node.value) if prose else []
    return found


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_no_method_is_named_where_its_record_is_asked(file):
    place = str(file.relative_to(PACKAGE))
    found = named(file.read_text(), prose=str(Path(place).parent) not in SHOWN)
    assert [name for name in found if (place, name) != COUNTER] == []


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("from regrow import RigL", ["RigL"]),
        ("regrow.Static(model)", ["Static"]),
        ("isinstance(method, GraNet)", ["GraNet"]),
        ('kind = "snfs"', ["snfs"]),
        ('f"take a method such as rigl, not {name}"', ["rigl"]),
        ('name in ("set", "dense")', ["set"]),
        ('"""What rigl costs."""', []),
        ("granet_levels(0.5)", []),
    ],
)
def test_the_walk_itself(source, found):
    assert named(source, prose=True) == found


# --- a user's own method


def own_file(tmp_path: Path) -> Path:
    path = tmp_path / f"own_records_{tmp_path.name.replace('-', '_')}.py"
    path.write_text(OWN)
    return path


def test_commands_know_an_imported_method(tmp_path, capsys):
    file = own_file(tmp_path)
    listed = json.loads(cli(capsys, "methods", "--json", "--import", file).out)
    record = next(record for record in listed if record["name"] == "own-gradual")
    assert (record["cost"], record["needs"], record["needs_dense"]) == ("granet", "update", False)
    assert next(record for record in listed if record["name"] == "own-masked")["storages"] == ["masked"]
    ended = cli(capsys, "flops", "lenet", "--import", file)
    assert (
        "granet: every 1,000, from sparsity 0.5; own-gradual: every 5, from sparsity 0.25"
        in ended.out.replace("\n", " ")
    )
    assert "own-masked" in ended.out


def test_a_method_that_prunes_is_trained_and_compared_from_its_own_start(tmp_path, capsys):
    recipe, run, file = write_recipe(tmp_path), tmp_path / "run", own_file(tmp_path)
    words = ["method=own-gradual", "steps=20", f"out={run}", "--import", file]
    assert cli(capsys, "train", recipe, *words).code == 0
    flops = json.loads((run / "summary.json").read_text())["flops"]
    assert (
        flops["most"] > flops["least"] == flops["test"]
    )  # from a quarter of the connections away to the end
    grid = plan(
        recipe, ["own-gradual", "own-masked"], imports=[str(file)], overrides=["method.update_every=2"]
    )
    assert [run.recipe.method.options["update_every"] for run in grid.runs] == [2, 2]
    assert [method_of(run.recipe.method).needs_dense for run in grid.runs] == [False, False]


def test_what_a_method_costs_follows_from_what_it_says_of_itself():
    @register(name="own-always")
    class Always(regrow.SNFS):
        initial_sparsity = 0.4

    @register(name="own-rigl")
    class Own(regrow.RigL):
        pass

    model = regrow.sparsify(linear(), 0.8, storage="masked")
    counted = costs(model, torch.zeros(1, 20), update_every=7)
    multiples, flops = counted.training_multiple, counted.flops
    given = {"dense": flops["dense"], "sparse": flops["sparse"]}
    assert multiples["own-rigl"] == multiples["rigl"] == training_multiple("rigl", update_every=7, **given)
    levels = registry.get("own-always").levels(1 - counted.parameters["sparse"] / counted.parameters["dense"])
    mean = sum(given["dense"] - level * (given["dense"] - given["sparse"]) for level in levels) / len(levels)
    assert multiples["own-always"] == pytest.approx((2 * mean + given["dense"]) / (3 * given["dense"]))
    assert list(multiples)[-2:] == ["own-always", "own-rigl"]
    assert registry.get("granet").levels(0.9) == granet_levels(0.9)


def test_a_need_that_is_none_is_refused():
    with pytest.raises(RegrowValueError, match="`needs_gradient` must be one of never, update, always"):

        @register(name="own-wrong")
        class Wrong(regrow.RigL):
            needs_gradient = "updates"


# --- storages


class Masked(regrow.RigL):
    """A method that works on masks alone."""

    storages = ("masked",)


class Real(regrow.SET):
    storages = ("compressed",)


@pytest.mark.parametrize(("cls", "storage"), [(Masked, "compressed"), (Real, "masked")])
def test_another_storage_is_refused_before_anything_is_touched(cls, storage):
    model = regrow.sparsify(linear(), 0.8, storage=storage)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = [value.clone() for value in model.state_dict().values()]
    with pytest.raises(RegrowValueError) as caught:
        cls(model, optimizer, total_steps=10, update_every=2)
    allowed = cls.storages[0]
    assert str(caught.value) == (
        f"{cls.__name__} runs on {allowed} storage, and `0.weight` is stored {storage}.\n"
        f"Use regrow.sparsify(..., storage={allowed!r})."
    )
    assert all(torch.equal(a, b) for a, b in zip(before, model.state_dict().values(), strict=True))
    assert (
        optimizer.param_groups[0].keys() == torch.optim.SGD(model.parameters(), lr=0.1).param_groups[0].keys()
    )
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks
    regrow.RigL(model, optimizer, total_steps=10, update_every=2)  # nobody drives it


@pytest.mark.parametrize(("cls", "storage"), [(Masked, "masked"), (Real, "compressed")])
def test_its_own_storage_is_taken(cls, storage):
    model = regrow.sparsify(linear(), 0.8, storage=storage)
    cls(model, torch.optim.SGD(model.parameters(), lr=0.1), total_steps=10, update_every=2)


def test_a_recipe_with_another_storage_is_refused_when_it_is_read(tmp_path, capsys):
    recipe, words = write_recipe(tmp_path), ["method=own-masked", "--import", own_file(tmp_path)]
    ended = cli(capsys, "train", recipe, *words, "sparsify.storage=compressed", f"out={tmp_path / 'run'}")
    assert ended.code == 2
    assert "`sparsify.storage` is compressed, but method own-masked runs on masked" in ended.err
    assert not (tmp_path / "run").exists()
    assert (
        cli(
            capsys, "train", recipe, *words, "method.update_every=1", "steps=3", f"out={tmp_path / 'run'}"
        ).code
        == 0
    )  # auto: masks


@pytest.mark.parametrize("storages", ["masked", (), ("masks",)])
def test_storages_that_are_none_are_refused(storages):
    with pytest.raises(
        RegrowValueError, match=r"`storages` of Own must be a tuple of masked, compressed, got"
    ):
        register(name="own-storages")(type("Own", (regrow.SET,), {"storages": storages}))
