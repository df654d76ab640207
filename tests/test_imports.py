"""Who may import whom, and how light `import regrow` stays.

The rooms stand from the bottom up. A file may import its own room and the rooms below, wherever in the file
the import stands; rooms on one line are neighbours that do not know each other.
"""

import ast
import json
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

import regrow

PACKAGE = Path(regrow.__file__).parent

ROOMS: list[set[str]] = [
    {"errors", "_text", "_torch"},
    {"arguments", "_files", "_formats", "_places"},
    {"ops"},
    {"growth", "_random"},
    {"weights", "tiles", "data"},
    {"nn"},
    {"sparsity"},
    {"rewrite", "methods", "optim"},
    {"measure", "tickets", "testing", "tricks"},
    {"accounting"},
    {"inference"},
    {"regrow", "models"},  # regrow: src/regrow/__init__.py, the public names of the library
    {"app.recipes", "app.tasks", "app.export"},
    {"app.training", "app.report"},
    {"app.compare", "app.bench"},
    {"app.cli"},
    {"__main__"},
]
LEVEL = {room: level for level, rooms in enumerate(ROOMS) for room in rooms}
LIBRARY = [room for room in LEVEL if not room.startswith(("app.", "__main__", "data"))]
HEAVY = {"matplotlib", "pydantic", "typer", "rich", "yaml", "safetensors", "PIL"}
FILES = sorted(PACKAGE.rglob("*.py"))


def room_of(module: str) -> str:
    """`regrow.weights.base` -> `weights`; `regrow.app.training.loop` -> `app.training`; `regrow` -> `regrow`."""
    parts = module.split(".")[1:]
    return ".".join(parts[: 1 + (parts[0] == "app")]) if parts else "regrow"


def module_of(file: Path) -> str:
    parts = ["regrow", *file.relative_to(PACKAGE).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def is_submodule(module: str) -> bool:
    path = PACKAGE.joinpath(*module.split(".")[1:])
    return path.is_dir() or path.with_suffix(".py").is_file()


def imports(source: str, module: str, is_package: bool) -> list[tuple[int, str]]:
    """(line, full name of what is imported) for each import statement, those in functions included."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = module.split(".")[
                    : None if is_package and node.level == 1 else is_package - node.level
                ]
                base = ".".join([*parents, *([node.module] if node.module else [])])
            for alias in node.names:
                name = f"{base}.{alias.name}"
                found.append((node.lineno, name if base == "regrow" and is_submodule(name) else base))
    return found


def violations(source: str, module: str, is_package: bool = False) -> list[str]:
    own = room_of(module)
    wrong = []
    for line, target in imports(source, module, is_package):
        if target.split(".")[0] != "regrow":
            continue
        room = room_of(target)
        if room != own and LEVEL[room] >= LEVEL[own]:
            wrong.append(f"line {line}: `{own}` imports `{target}`")
    return wrong


def test_every_file_has_a_room() -> None:
    rooms = {room_of(module_of(file)) for file in FILES}
    assert rooms - {"app"} <= set(LEVEL), "give it a place in ROOMS of tests/test_imports.py"


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_imports_go_downwards_only(file: Path) -> None:
    assert violations(file.read_text(), module_of(file), file.name == "__init__.py") == []


@pytest.mark.parametrize(
    ("source", "module", "count"),
    [
        ("from regrow.methods import RigL", "regrow.weights.base", 1),
        ("def f():\n    import regrow.app.cli.main", "regrow.app.training.loop", 1),
        ("from regrow import RigL", "regrow.methods.set", 1),
        ("from regrow import errors", "regrow.methods.set", 0),
        ("from ..methods import base", "regrow.weights.base", 1),
        ("from . import masked", "regrow.weights.base", 0),
        ("from regrow.nn import SparseLinear", "regrow.growth.among", 1),
        ("from regrow import RigL", "regrow.app.training.loop", 0),
    ],
)
def test_the_check_itself(source: str, module: str, count: int) -> None:
    assert len(violations(source, module)) == count


def top_level(nodes: list[ast.stmt]) -> list[str]:
    """Roots of what runs at import time; `if TYPE_CHECKING:` does not run."""
    names = []
    for node in nodes:
        if isinstance(node, ast.Import):
            names += [alias.name.split(".")[0] for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names.append((node.module or "").split(".")[0])
        elif isinstance(node, ast.If):
            names += [] if "TYPE_CHECKING" in ast.unparse(node.test) else top_level(node.body)
            names += top_level(node.orelse)
        elif isinstance(node, ast.Try):
            names += top_level([*node.body, *node.orelse, *node.finalbody])
            names += [name for handler in node.handlers for name in top_level(handler.body)]
    return names


@pytest.mark.parametrize(
    "file",
    [file for file in FILES if room_of(module_of(file)) in LIBRARY],
    ids=lambda file: str(file.relative_to(PACKAGE)),
)
def test_the_library_half_imports_torch_and_numpy_only(file: Path) -> None:
    tree = ast.parse(file.read_text())
    allowed = {"regrow", "torch", "numpy"} | sys.stdlib_module_names
    assert set(top_level(tree.body)) <= allowed
    anywhere = {
        name.split(".")[0]
        for _, name in imports(file.read_text(), module_of(file), file.name == "__init__.py")
    }
    # safetensors only where it is needed, inside a function
    assert anywhere <= allowed | {"safetensors"}


PROBE = """
import json, os, sys, threading, time
import torch
before = set(sys.modules)
threads = threading.active_count(), len(os.listdir("/proc/self/task"))
start = time.perf_counter(), time.process_time()
import regrow
seconds = time.perf_counter() - start[0], time.process_time() - start[1]
after = threading.active_count(), len(os.listdir("/proc/self/task"))
print(json.dumps({
    "modules": sorted({name.split(".")[0] for name in set(sys.modules) - before}),
    "heavy": sorted({name.split(".")[0] for name in sys.modules}),
    "threads": [threads, after],
    "seconds": min(seconds),
}))
"""


@pytest.fixture(scope="module")
def probes() -> list[dict]:
    """`import regrow` after `import torch` in three fresh processes."""
    runs = [
        subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, check=True)
        for _ in range(3)
    ]
    return [json.loads(run.stdout) for run in runs]


@pytest.mark.smoke
def test_import_loads_nothing_of_the_command_line(probes: list[dict]) -> None:
    assert HEAVY.isdisjoint(probes[0]["heavy"])
    third_party = set(probes[0]["modules"]) - sys.stdlib_module_names
    assert third_party <= {"regrow", "numpy", "torch", "triton"}  # the last by torch, built for CUDA


def test_import_starts_no_thread(probes: list[dict]) -> None:
    for probe in probes:
        before, after = probe["threads"]
        assert before == after


def test_import_takes_under_a_second(probes: list[dict]) -> None:
    assert statistics.median(probe["seconds"] for probe in probes) < 1.0
