"""A default device or dtype that a user has set is theirs: regrow's own tensors say where they are."""

import ast
import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._device import _device_constructors

import regrow

PACKAGE = Path(regrow.__file__).parent
CONSTRUCTORS = {function.__name__ for function in _device_constructors()}
USERS = {"models", "bench", "compare", "testing"}
"""What makes a user's own network or example, on the device that they have chosen."""


def room(file: Path) -> str:
    """The first folder in the package or in its `app`."""
    parts = file.relative_to(PACKAGE).parts
    return parts[parts[0] == "app"]


def without_device(source: str) -> list[int]:
    """Lines of the calls that make a tensor wherever the default is."""
    return [
        node.lineno
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and isinstance(node.func.value, ast.Name)
        and node.func.value.id == "torch"
        and node.func.attr in CONSTRUCTORS
        and not any(keyword.arg in ("device", None) for keyword in node.keywords)
    ]


@pytest.mark.parametrize(
    "file",
    [file for file in sorted(PACKAGE.rglob("*.py")) if room(file) not in USERS],
    ids=lambda file: str(file.relative_to(PACKAGE)),
)
def test_every_tensor_that_is_made_names_its_device(file: Path) -> None:
    assert without_device(file.read_text()) == []


def test_the_check_itself() -> None:
    assert without_device("import torch\ntorch.zeros(3)\ntorch.ones(3, device='cpu')\ntorch.rand(**o)") == [2]


@pytest.fixture
def on_meta() -> Iterator[None]:
    """Whatever names no device is lost."""
    torch.set_default_device("meta")
    yield
    torch.set_default_device(None)


@pytest.fixture
def in_double() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


METHODS: dict[str, tuple[Any, dict[str, Any]]] = {
    "rigl": (regrow.RigL, {}),
    "rigl columns": (regrow.RigL, {"grow_columns": 8}),
    "rigl normal": (regrow.RigL, {"grow_init": "normal"}),
    "set": (regrow.SET, {"grow_init": "uniform"}),
    "snfs": (regrow.SNFS, {}),
    "pruning": (regrow.Pruning, {"final_sparsity": 0.9, "start_fraction": 0.0, "stop_fraction": 1.0}),
    "granet": (regrow.GraNet, {"final_sparsity": 0.9}),
    "mest-soft": (regrow.SoftMEST, {"final_sparsity": 0.9}),
    "top-kast": (regrow.TopKAST, {"final_sparsity": 0.9}),
}


def networks() -> tuple[nn.Module, torch.Tensor]:
    """Linear layers and convolutions large enough for the kernels, and an input, all in float32 on the CPU."""
    torch.manual_seed(0)
    kind: dict[str, Any] = {"device": "cpu", "dtype": torch.float32}
    network = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1, **kind),
        nn.BatchNorm2d(16, **kind),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3, padding=1, **kind),
        nn.Flatten(),
        nn.Linear(16 * 36, 64, **kind),
        nn.ReLU(),
        nn.Linear(64, 10, **kind),
    )
    return network, torch.randn(8, 3, 6, 6, **kind)


def works(storage: str, method: str, folder: Path) -> None:
    """sparsify, steps with updates, save and load, in the defaults that are set."""
    network, x = networks()
    other = copy.deepcopy(network)
    regrow.sparsify(network, sparsity=0.6, storage=storage)
    if storage == "compressed":
        regrow.fuse(network)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9)
    make, options = METHODS[method]
    attached = make(network, optimizer, total_steps=6, update_every=2, **options)
    updates: list[Any] = []
    attached.register_update_hook(updates.append)
    before = regrow.masks(network)
    for _ in range(6):
        optimizer.zero_grad()
        network(x).square().mean().backward()
        optimizer.step()
    assert updates
    assert any(not torch.equal(mask, before[name]) for name, mask in regrow.masks(network).items())
    assert {t.device.type for t in network.state_dict().values()} == {"cpu"}
    assert {t.dtype for t in network.parameters()} == {torch.float32}
    str(regrow.summary(network))
    regrow.save(network, folder / "model.safetensors")
    regrow.load(folder / "model.safetensors", into=other)
    torch.testing.assert_close(other.eval()(x), network.eval()(x))
    attached.detach()
    regrow.densify(network)


@pytest.mark.parametrize("method", METHODS)
def test_another_default_device(method: str, on_meta: None, tmp_path: Path) -> None:
    works("masked", method, tmp_path)


@pytest.mark.parametrize("method", ["rigl", "rigl columns", "rigl normal", "set"])
def test_another_default_device_compressed(method: str, on_meta: None, tmp_path: Path) -> None:
    works("compressed", method, tmp_path)


@pytest.mark.parametrize("storage", ["masked", "compressed"])
def test_another_default_dtype(storage: str, in_double: None, tmp_path: Path) -> None:
    works(storage, "rigl normal", tmp_path)


@pytest.mark.parametrize("default", ["on_meta", "in_double"])
def test_deployment_minds_no_default(default: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    layers = (nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.ZeroPad2d(1), nn.Flatten(), nn.Linear(800, 10))
    model = regrow.sparsify(nn.Sequential(*layers).eval(), sparsity=0.8, include=["0", "4"])
    x = torch.randn(2, 3, 8, 8)
    wanted = model(x).detach()
    request.getfixturevalue(default)
    for precision, allowed in (("float32", 1e-5), ("int8", 0.05)):
        calibration = [x] if precision == "int8" else None
        regrow.deploy(model, x, precision=precision, calibration=calibration).save(tmp_path / precision)
        found = regrow.Deployed.load(tmp_path / precision)(x)
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, wanted, rtol=allowed, atol=allowed)
