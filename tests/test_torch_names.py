"""Private names of torch stand in `regrow._torch` alone, and this torch has them.

A name counts as torch's where it follows `torch`, where it is imported from there, or where an attribute or a text has
the name of something private of the classes that users share with regrow.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import regrow
from regrow import _torch

PACKAGE = Path(regrow.__file__).parent
FILES = sorted(set(PACKAGE.rglob("*.py")) - {PACKAGE / "_torch.py"})

DICTIONARIES = {name for name in vars(nn.Module()) if name.startswith("_")}
DIRECT = DICTIONARIES | {"_version", "_make_wrapper_subclass"}
"""What may be used anywhere; `regrow._torch` says why."""

MADE = (nn.Conv2d(1, 1, 1), nn.RNN(1, 1), torch.compile(nn.Linear(1, 1)), torch.optim.SGD([torch.ones(1)]))
TEXTS = {name for each in MADE for name in dir(each)}
THEIRS = TEXTS | {
    name for each in (Tensor, torch.autograd.Function, torch.ops.aten.add.Tensor) for name in dir(each)
}


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("_regrow") and not name.endswith("__") and name != "_"


def dotted(node: ast.expr) -> list[str]:
    """`torch._C._nn` -> ["torch", "_C", "_nn"]; what is not a name at its root begins with ""."""
    if isinstance(node, ast.Attribute):
        return [*dotted(node.value), node.attr]
    return [node.id if isinstance(node, ast.Name) else ""]


def aliases(tree: ast.AST) -> set[str]:
    """Names in a file that are torch or come from it."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {
                (alias.asname or "torch") for alias in node.names if alias.name.split(".")[0] == "torch"
            }
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "torch":
            found |= {alias.asname or alias.name for alias in node.names}
    return found


def own(trees: list[ast.AST]) -> set[str]:
    """Private names that regrow itself gives: of functions, classes, variables and attributes of `self`."""
    found = set()
    for tree in trees:
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                found.add(node.name)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                found.add(node.id)
            elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
                found.update([node.attr] if dotted(node)[0] == "self" else [])
    return found


def violations(source: str, ours: set[str] = frozenset()) -> Iterator[str]:  # type: ignore[assignment]
    tree = ast.parse(source)
    torchs = aliases(tree)
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "torch":
            names = [*(node.module or "").split("."), *(alias.name for alias in node.names)]
            names = [name for name in names if is_private(name)]
        elif isinstance(node, ast.Import):
            names = [a.name for a in node.names if a.name.startswith("torch.") and "._" in a.name]
        elif isinstance(node, ast.Attribute) and is_private(node.attr) and node.attr not in DIRECT:
            root = dotted(node)[0]
            if root in torchs or (
                node.attr not in ours and (node.attr in THEIRS or root not in ("self", "cls"))
            ):
                names = [node.attr]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            text = node.value
            private = is_private(text) and text in TEXTS and text not in DIRECT | ours
            names = [text] if private or text.startswith(("torch._", "_optimizer_")) else []
        for name in names:
            yield f"line {node.lineno}: {name}"  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def ours() -> set[str]:
    return own([ast.parse(file.read_text()) for file in PACKAGE.rglob("*.py")]) | {
        "_replace",  # of named tuples
        "_fields",
        "_getframe",  # of sys
    }


@pytest.mark.smoke
def test_private_names_of_torch_stand_in_one_file(ours: set[str]) -> None:
    found = [
        f"{file.relative_to(PACKAGE)} {each}" for file in FILES for each in violations(file.read_text(), ours)
    ]
    assert found == [], "use a function of regrow._torch, or write one there"


@pytest.mark.parametrize(
    ("source", "count"),
    [
        ("import torch\ntorch._C._nn", 2),
        ("from torch import nn\nisinstance(x, nn.modules.conv._ConvNd)", 1),
        ("from torch._C import _set_tracing_state", 2),
        ("from torch.utils import _pytree", 1),
        ("import torch._dynamo", 1),
        ("x._base", 1),
        ("optimizer._optimizer_step_pre_hooks", 1),
        ("getattr(model, '_orig_mod', None)", 1),
        ("'torch._dynamo' in sys.modules", 1),
        ("name.startswith('_optimizer_')", 1),
        ("variable._execution_engine", 1),
        ("self._base", 1),
        ("module._parameters, module._forward_hooks, tensor._version", 0),
        ("Tensor._make_wrapper_subclass(cls, shape)", 0),
        ("self._mine, weight._part, x.__class__, '_mask'", 0),
        ("from regrow._torch import apply", 0),
    ],
)
def test_the_check_itself(source: str, count: int) -> None:
    assert len(list(violations(source, {"_part", "_mine"}))) == count


def test_each_has_its_reason() -> None:
    """A docstring behind each public name of the file."""
    body = ast.parse(Path(_torch.__file__).read_text()).body
    bare = []
    for node, after in zip(body, [*body[1:], None], strict=True):
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            bare += [] if ast.get_docstring(node) else [node.name]
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            target = node.targets[0] if isinstance(node, ast.Assign) else node.target
            explained = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
            bare += [] if explained or ast.unparse(target) == "Decorated" else [ast.unparse(target)]
    assert bare == []


def test_what_has_no_other_test() -> None:
    assert _torch.running_backward() == -1
    assert _torch.tracing_state() is None
    assert not _torch.transforms_active()
    assert not _torch.is_under_vmap(torch.ones(2))
    seen = []
    torch.vmap(lambda x: seen.append(_torch.is_under_vmap(x)) or x)(torch.ones(2))
    torch.func.grad(lambda x: seen.append(_torch.is_under_vmap(x)) or x)(torch.tensor(1.0))
    assert seen == [True, False]
    assert _torch.compiled_from(nn.Linear(1, 1)) is None
    layer = nn.Linear(1, 1)
    assert _torch.compiled_from(torch.compile(layer)) is layer
    assert "weight_hh_l0" in _torch.recurrent_weights(nn.RNN(1, 1))
    assert set(_torch.recurrent_weights(nn.GRUCell(1, 1))) == {"weight_ih", "weight_hh"}
    assert _torch.is_weight_norm(nn.utils.parametrizations.weight_norm(layer).parametrizations.weight[0])
    assert hasattr(nn.Conv2d, _torch.COMPUTES[1])
    assert _torch.nn_functions is not torch
    assert _torch.will_run.__name__ == "_will_engine_execute_node"


def test_a_first_step_hook_runs_first() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))])
    order: list[int] = []
    optimizer.register_step_pre_hook(lambda *_: order.append(1))
    optimizer.register_step_pre_hook(lambda *_: order.append(2))
    handle = _torch.register_first_step_hook(optimizer, lambda *_: order.append(0))
    optimizer.step()
    assert order == [0, 1, 2]
    handle.remove()
    optimizer.step()
    assert order[3:] == [1, 2]
    assert {name.rsplit("_hooks", 1)[0] for name in _torch.hook_attributes(optimizer)} >= {
        "_optimizer_step_pre",
        "_optimizer_step_post",
    }


def test_a_function_is_constant_in_graphs() -> None:
    calls = []

    @_torch.constant_in_graphs
    def note(x: object) -> None:
        calls.append(type(x))
        print(end="")  # which dynamo would not take into a graph of one piece

    def run(x: Tensor) -> Tensor:
        note(layer)
        return x + 1

    layer = nn.Linear(1, 1)
    compiled = torch.compile(run, backend="eager", fullgraph=True)
    for _ in range(3):
        assert compiled(torch.ones(2)).tolist() == [2, 2]
    assert calls == [nn.Linear]
