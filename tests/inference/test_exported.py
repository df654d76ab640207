"""What torch.export writes of a deployed network: it runs in a process without its code, and without Python."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny import ENVIRONMENT
from torch import nn

import regrow
from regrow.ops import native

pytestmark = pytest.mark.skipif(not native.available(), reason="there are no kernels")
CPP = Path(__file__).parents[2] / "examples" / "cpp"

LOADER = """
import sys, torch
torch.ops.load_library(sys.argv[2])
wanted, x = torch.load(sys.argv[1] + "/wanted.pt")
found = torch.export.load(sys.argv[1] + "/network.pt2").module()(x)
torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)
assert "regrow" not in sys.modules
"""


def test_an_exported_network_runs_in_a_fresh_process_without_regrow(tmp_path: Path) -> None:
    torch.manual_seed(0)
    layers = (
        nn.Conv2d(3, 16, 3),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(576, 10),
        nn.Softmax(-1),
    )
    model, x = regrow.sparsify(nn.Sequential(*layers), sparsity=0.8).eval(), torch.rand(2, 3, 8, 8)
    deployed = regrow.deploy(model, x)
    with torch.no_grad():
        torch.save((model(x), x), tmp_path / "wanted.pt")
    torch.export.save(torch.export.export(deployed, (x,)), tmp_path / "network.pt2")
    command = [sys.executable, "-c", LOADER, str(tmp_path), str(regrow.Deployed.library())]
    subprocess.run(command, env=ENVIRONMENT, check=True, timeout=120)


def test_an_exported_network_holds_connections_alone(tmp_path: Path) -> None:
    model = regrow.sparsify(nn.Sequential(nn.Linear(2000, 1000)), sparsity=0.95).eval()
    x = torch.rand(1, 2000)
    torch.export.save(torch.export.export(regrow.deploy(model, x), (x,)), tmp_path / "network.pt2")
    assert (tmp_path / "network.pt2").stat().st_size < 0.12 * 4 * 2_000_000


@pytest.mark.skipif(shutil.which("g++") is None, reason="there is no g++")
def test_a_packaged_network_runs_without_python(tmp_path: Path) -> None:
    torch_ = Path(torch.__file__).parent
    done = subprocess.run(
        [sys.executable, CPP / "package.py"],
        cwd=tmp_path,
        env=ENVIRONMENT,
        check=True,
        timeout=600,
        capture_output=True,
        text=True,
    )
    kernels = done.stdout.splitlines()[-1]
    build = [
        *("g++", "-std=c++20", CPP / "main.cpp", "-o", "run"),
        *(f"-I{torch_ / 'include'}", f"-I{torch_ / 'include/torch/csrc/api/include'}", f"-L{torch_ / 'lib'}"),
        *(f"-Wl,-rpath,{torch_ / 'lib'}", "-Wl,--no-as-needed", "-ltorch", "-ltorch_cpu", "-lc10", "-ldl"),
    ]
    subprocess.run(build, cwd=tmp_path, check=True, timeout=600)
    command = ["./run", "network.pt2", kernels, "1", "784"]
    ran = subprocess.run(command, cwd=tmp_path, check=True, timeout=120, capture_output=True, text=True)
    found = torch.tensor([[float(line) for line in ran.stdout.split()]])
    torch.testing.assert_close(found, torch.load(tmp_path / "wanted.pt"), rtol=1e-4, atol=1e-5)
