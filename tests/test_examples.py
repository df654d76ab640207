"""Each example runs as it stands, is short, and uses public names of regrow only; studies may reach further."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from tiny import ENVIRONMENT

import regrow

FOLDER = Path(__file__).parents[1] / "examples"
EXAMPLES = sorted(FOLDER.glob("*.py"))
PROCESSES = {"ddp": ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]}
LEFT = {
    "ddp": ["model.safetensors"],
    "deploy": ["deployed.safetensors", "model.onnx", "model.pt2"],
    "lightning_trainer": [],
    "plain_loop": ["checkpoint.pt"],
    "threads": ["deployed.safetensors"],
    "transformers_trainer": ["model/model.safetensors"],
}


def name(path: Path) -> str:
    return path.stem


@pytest.mark.parametrize("path", EXAMPLES, ids=name)
def test_runs(path: Path, tmp_path: Path) -> None:
    command = [sys.executable, *PROCESSES.get(path.stem, []), str(path)]
    done = subprocess.run(
        command, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    for left in LEFT[path.stem]:
        assert (tmp_path / left).is_file(), left
    if path.stem not in ("deploy", "threads"):  # which train nothing
        assert "no update to come" in done.stdout
        assert "was due at step" in done.stdout


@pytest.mark.parametrize("path", EXAMPLES, ids=name)
def test_is_short(path: Path) -> None:
    assert len(path.read_text().splitlines()) < 40


def names_of_regrow(source: str) -> set[str]:
    """What a file imports from regrow, or reads as an attribute of it."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import(names=names):
                found |= {alias.name.removeprefix("regrow.") for alias in names} if _deep(names) else set()
            case ast.ImportFrom(module=str(module)) if module.split(".")[0] == "regrow":
                room = module.removeprefix("regrow").removeprefix(".")
                found |= {room} if room else {alias.name for alias in node.names}
            case ast.Attribute(value=ast.Name(id="regrow"), attr=attribute):
                found.add(attribute)
    return found


def _deep(names: list[ast.alias]) -> bool:
    return any(alias.name.startswith("regrow.") for alias in names)


@pytest.mark.parametrize("path", EXAMPLES, ids=name)
def test_uses_public_names_only(path: Path) -> None:
    used = names_of_regrow(path.read_text())
    assert used
    assert used <= set(regrow.__all__)


def test_the_check_itself() -> None:
    source = "import regrow.ops\nfrom regrow import RigL\nfrom regrow.weights import x\nregrow.sparsify()\n"
    assert names_of_regrow(source) == {"ops", "RigL", "weights", "sparsify"}
