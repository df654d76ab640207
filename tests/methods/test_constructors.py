"""Constructors spell their arguments out, so that editors, mypy and `help` see what recipes see."""

import ast
import inspect
import textwrap

import pytest
from test_method_pages import DEFAULTS

import regrow
from regrow import accounting, data, methods, models, tickets
from regrow.methods import registry

CLASSES = sorted(
    {
        value
        for module in (regrow, accounting, data, methods, models, tickets)
        for name in module.__all__
        if inspect.isclass(value := getattr(module, name)) and not getattr(value, "_is_protocol", False)
    },
    key=lambda cls: cls.__qualname__,
)
METHODS = [cls for cls in CLASSES if issubclass(cls, methods.Method)]


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_no_constructor_takes_just_anything(cls):
    makers = [vars(c)["__init__"] for c in cls.__mro__ if "__init__" in vars(c)][:1]
    makers += [m.__func__ for m in vars(cls).values() if isinstance(m, classmethod)]
    for maker in makers:
        if inspect.isfunction(maker):  # and not one of Python itself
            kinds = {p.kind for p in inspect.signature(maker).parameters.values()}
            assert inspect.Parameter.VAR_KEYWORD not in kinds, maker


@pytest.mark.parametrize("cls", METHODS, ids=lambda cls: cls.__name__)
def test_arguments_are_shared_with_the_class_above_by_name(cls):
    if cls is methods.Method:
        return
    own, above = (set(inspect.signature(c).parameters) for c in (cls, cls.__mro__[1]))
    tree = ast.parse(textwrap.dedent(inspect.getsource(cls.__init__)))
    [call] = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "super().__init__"
    ]
    assert [ast.unparse(argument) for argument in call.args] == ["model", "optimizer"]
    handed = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
    shared = (own & above) - {"model", "optimizer"}
    assert {name: handed.get(name) for name in shared} == {name: name for name in shared}


@pytest.mark.parametrize("name", sorted(registry.methods()))
def test_a_default_of_its_own_is_in_the_table(name):
    cls = registry.get(name).cls
    own, above = (inspect.signature(c).parameters for c in (cls, cls.__mro__[1]))
    listed = {(name.strip("`"), argument.strip("`")) for name, argument, _ in DEFAULTS}
    for name in own.keys() & above.keys():
        if own[name].default not in (above[name].default, inspect.Parameter.empty):
            assert (cls.__name__, name) in listed


class Handing(regrow.RigL):
    """A user's method in the short way: it hands what it does not know on."""

    def __init__(self, model, optimizer, *, power=2.0, update_every=7, **options):
        self.power = power
        super().__init__(model, optimizer, update_every=update_every, **options)


class Further(Handing):
    def __init__(self, model, optimizer, **options):
        super().__init__(model, optimizer, **options)


def test_options_that_are_handed_on_are_known():
    rigl = registry.parameters_of(regrow.RigL)
    assert list(rigl) == list(inspect.signature(regrow.RigL).parameters)
    for cls in (Handing, Further):
        found = registry.parameters_of(cls)
        assert {name: p.default for name, p in found.items()} == {
            **{name: p.default for name, p in rigl.items()},
            "power": 2.0,
            "update_every": 7,
        }
    assert list(registry.parameters_of(Handing))[:4] == ["model", "optimizer", "power", "update_every"]


def test_a_function_may_take_anything():
    def function(width, **options): ...

    assert [p.kind for p in registry.parameters_of(function).values()][-1] is inspect.Parameter.VAR_KEYWORD
