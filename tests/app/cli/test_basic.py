"""The commands that need no extra, and what the others say without it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from tiny import ENVIRONMENT, cli

import regrow
from regrow.ops import native

WITHOUT_EXTRA = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"typer", "rich", "pydantic", "yaml", "matplotlib", "PIL", "click"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Blocked())
from pathlib import Path
from regrow.ops import building
if package := sys.argv.pop(1):
    building.PACKAGE = Path(package)
from regrow.__main__ import main
main()
"""


def run(*arguments: str, package: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    """``regrow`` without the extra; with `package`, kernels are looked for there instead of in regrow's own."""
    return subprocess.run(
        [sys.executable, "-c", WITHOUT_EXTRA, str(package or ""), *arguments],
        env={**ENVIRONMENT, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_version_and_doctor() -> None:
    assert run("--version").stdout == f"regrow {regrow.__version__}\n"
    ended = run("doctor")
    assert ended.returncode == (0 if native.available() else 1)
    assert ended.stderr == ""
    assert ended.stdout.startswith("kernels")
    assert "typer" in ended.stdout


@pytest.mark.parametrize("arguments", [("train", "fashion-mlp"), ("methods",), ()])
def test_what_needs_the_extra_says_how_to_get_it(arguments: tuple[str, ...]) -> None:
    ended = run(*arguments)
    assert ended.returncode == 2
    assert ended.stdout == ""
    assert ended.stderr.startswith(f"error: `{' '.join(['regrow', *arguments[:1]])}` needs ")
    assert 'pip install "regrow[train]"' in ended.stderr
    assert "Traceback" not in ended.stderr


def test_without_kernels_doctor_and_build_fail_with_the_reason(tmp_path: Path) -> None:
    settings = {"XDG_CACHE_HOME": str(tmp_path / "cache"), "CXX": "/bin/false"}
    ended = run("doctor", package=tmp_path, REGROW_BUILD="0", **settings)
    assert ended.returncode == 1
    first, second = ended.stdout.splitlines()[:2]
    assert first.startswith(
        "kernels       none, the reference runs: they were not built when regrow was installed"
    )
    assert second.strip() == "Run `regrow build`."
    assert "float32 right" in ended.stdout
    ended = run("build", package=tmp_path, **settings)
    assert ended.returncode == 1
    assert "error: the C++ compiler failed\n/bin/false ended with 1\nMend it, or let CXX" in ended.stderr
    assert ended.stdout == ""


@pytest.mark.skipif(not native.available(), reason="no kernels here")
def test_build_where_the_kernels_are(capsys: pytest.CaptureFixture[str]) -> None:
    ended = run("build")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout == f"kernels: {native.isa()}, {native.library()}\n"
    listed = cli(capsys, "--help").out
    assert "doctor" in listed
    assert "build" in listed
    assert cli(capsys, "build").out == ended.stdout
