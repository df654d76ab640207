"""`regrow export`: the network of a run in a file, what it costs and how good it is, before and after."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny import ENVIRONMENT, cli, write_recipe

import regrow
from regrow.app.training.finished import Finished
from regrow.ops import native

NEEDS_KERNELS = pytest.mark.skipif(not native.available(), reason="there are no kernels")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder that tests copy."""
    folder = tmp_path_factory.mktemp("run")
    recipe = write_recipe(folder)
    command = [sys.executable, "-m", "regrow", "train", str(recipe), f"out={folder / 'run'}"]
    subprocess.run(command, env=ENVIRONMENT, check=True, timeout=120, capture_output=True)
    return folder / "run"


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    shutil.copytree(trained, tmp_path / "run")
    return tmp_path / "run"


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "int8"])
def test_to_a_file_of_regrow(run: Path, precision: str, capsys: pytest.CaptureFixture[str]) -> None:
    ended = cli(capsys, "export", run, "--precision", precision, "--json")
    assert ended.code == 0, ended.err
    found = json.loads(ended.out)
    file = run / "deployed.safetensors"
    assert (found["file"], found["bytes"]) == (str(file), file.stat().st_size)
    finished = Finished(run)
    network = finished.network()
    deployed = regrow.Deployed.load(file)
    assert deployed.graph is not None
    assert deployed.graph.precision == precision
    x = finished.data.test_inputs
    x = finished.data.prepare(x)  # type: ignore[attr-defined]
    with torch.no_grad():
        wanted = network(x)
    torch.testing.assert_close(deployed(x), wanted, rtol=0, atol=1e-5 if precision == "float32" else 0.1)
    targets = finished.data.test_targets
    assert found["before"]["accuracy"] == finished.summary["accuracy"]
    assert found["before"]["accuracy"] == pytest.approx(float((wanted.argmax(1) == targets).float().mean()))
    assert found["after"]["accuracy"] == pytest.approx(
        float((deployed(x).argmax(1) == targets).float().mean())
    )
    assert (found["examples"], found["tested_on"]) == (60, "test")
    weights = sum(parameter.numel() for parameter in regrow.densify(network).parameters())
    assert found["dense_bytes"] == 4 * weights


def test_what_it_prints(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ended = cli(capsys, "export", run, "--out", run / "own")
    assert ended.code == 0, ended.err
    assert (run / "own").is_file()
    accuracy = f"{Finished(run).summary['accuracy']:.2%}"
    assert f"accuracy     {accuracy} before, {accuracy} after, of 60 test examples" in ended.out
    assert "bytes in float32" in ended.out
    assert "regrow.Deployed.load(" in ended.out


@NEEDS_KERNELS
def test_to_torch_export(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ended = cli(capsys, "export", run, "--to", "torch-export")
    assert ended.code == 0, ended.err
    program = torch.export.load(run / "deployed.pt2").module()
    finished = Finished(run)
    x = finished.data.prepare(finished.data.test_inputs[:1])  # type: ignore[attr-defined]
    with torch.no_grad():
        torch.testing.assert_close(program(x), finished.network()(x), rtol=1e-5, atol=1e-5)
    assert str(regrow.Deployed.library()) in ended.out


@NEEDS_KERNELS
def test_a_program_of_torch_holds_nothing_of_the_data(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ended = cli(capsys, "export", run, "--to", "torch-export")
    assert ended.code == 0, ended.err
    (args, _) = torch.export.load(run / "deployed.pt2").example_inputs
    assert args[0].untyped_storage().nbytes() == 4 * args[0].numel()
    assert not args[0].any()


def test_to_onnx(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("onnxscript")
    ended = cli(capsys, "export", run, "--to", "onnx", "--json")
    assert ended.code == 0, ended.err
    found = json.loads(ended.out)
    assert found["after"] is None
    assert "zeros" in found["notes"][0]
    assert found["bytes"] > 0.9 * found["dense_bytes"]


def test_bad_arguments_have_their_answer(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cases = {
        ("--to", "tflite"): "`--to` must be one of regrow, torch-export, onnx, got 'tflite'",
        ("--precision", "int4"): "`--precision` must be one of float32, bfloat16, int8, got 'int4'",
        (
            "--to",
            "onnx",
            "--precision",
            "int8",
        ): "`--precision` int8 is for files of regrow and torch-export, got it",
        ("--out", str(tmp_path / "no" / "file")): "must be a file in a folder that exists",
        ("--out", str(tmp_path)): "must be a file in a folder that exists",
    }
    before = sorted(path.name for path in run.iterdir())
    for arguments, text in cases.items():
        ended = cli(capsys, "export", run, *arguments)
        assert ended.code == 2
        assert text in ended.err.replace("\n", " "), ended.err
    assert "holds no run: it has no config.yaml" in cli(capsys, "export", tmp_path / "nothing").err
    (run / "summary.json").unlink()
    assert "is not finished\nContinue it with" in cli(capsys, "export", run).err
    assert sorted(path.name for path in run.iterdir()) == [name for name in before if name != "summary.json"]
