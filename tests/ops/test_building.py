"""Kernels where none came with the package: built once in the user's cache, or a reason and a remedy.

All but the last test compile a stand-in of two small files, by the code that compiles the kernels.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from regrow.ops import building, compiling, native
from regrow.ops.building import NoKernels, provide

needs_compiler = pytest.mark.skipif(compiling.compiler() is None, reason="no C++ compiler")

PROCESS = """
import sys
from pathlib import Path
from regrow.ops import building, compiling, native
compiling.SOURCES, building.PACKAGE = Path(sys.argv[1]), Path(sys.argv[2])
print(native.load(), native.library())
"""


def any_loads(library: Path) -> str | None:
    assert library.stat().st_size > 0
    return None


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The place in the cache, with stand-ins for the sources, the installed package and the temporary folder."""
    sources = tmp_path / "csrc"
    for folder in (sources, tmp_path / "package", tmp_path / "temporary"):
        folder.mkdir()
    (sources / "one.cpp").write_text('#include "one.h"\nextern "C" int regrow_one() { return ONE; }\n')
    (sources / "one.h").write_text("#define ONE 1\n")
    (sources / "two.cpp").write_text('extern "C" int regrow_two() { return 2; }\n')
    monkeypatch.setattr(compiling, "SOURCES", sources)
    monkeypatch.setattr(building, "PACKAGE", tmp_path / "package")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("REGROW_BUILD", raising=False)
    return tmp_path / "cache" / "regrow" / "kernels"


@pytest.fixture
def calls(tmp_path: Path) -> Path:
    return tmp_path / "calls"


def script(tmp_path: Path, calls: Path, body: str, name: str = "cxx") -> str:
    """A compiler that notes each of its calls and then does as `body` says."""
    file = tmp_path / name
    real = shutil.which("c++") or "c++"
    file.write_text(f'#!/bin/sh\necho "$@" >> {calls}\n{body.replace("REAL", real)}\n')
    file.chmod(0o755)
    return str(file)


def count(calls: Path) -> int:
    return len(calls.read_text().splitlines()) if calls.is_file() else 0


def test_the_key_is_that_of_sources_flags_and_processor(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = compiling.key()
    assert compiling.key() == first
    (compiling.SOURCES / "one.h").write_text("#define ONE 2\n")
    second = compiling.key()
    assert second.split()[0] != first.split()[0]
    monkeypatch.setenv("REGROW_SANITIZE", "undefined")
    third = compiling.key()
    assert third.split()[0] == second.split()[0]
    assert third != second


@needs_compiler
def test_built_once_and_found_again(place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    library = provide(any_loads)
    assert library.parent.parent == place
    assert compiling.key_of(library) == compiling.key()
    said = capfd.readouterr().err.splitlines()
    assert said[0].startswith("regrow: building the kernels (once, about ")
    assert said[0].endswith(" ... 3 files")
    assert said[-1].startswith(f"regrow: built {library} after ")
    assert provide(any_loads) == library
    assert capfd.readouterr() == ("", "")
    assert sorted(path.name for path in library.parent.iterdir()) == [compiling.LIBRARY, "lock"]
    (compiling.SOURCES / "one.h").write_text("#define ONE 2\n")
    assert provide(any_loads).parent != library.parent


@needs_compiler
def test_another_compiler_builds_its_own_and_none_takes_what_is_there(
    place: Path, tmp_path: Path, calls: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = provide(any_loads)
    monkeypatch.setenv("CXX", script(tmp_path, calls, 'exec REAL "$@"'))
    assert provide(any_loads).parent not in (first.parent, None)
    assert count(calls) == 4
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert provide(any_loads).parent.parent == place


def test_no_compiler(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(NoKernels, match="and CXX names no-such-compiler, which is not there\nLet CXX name"):
        provide(any_loads)
    monkeypatch.delenv("CXX")
    monkeypatch.setenv("PATH", str(place))
    with pytest.raises(
        NoKernels, match="(?s)there is no C.. compiler\nInstall a C.. compiler.*`apt-get install g"
    ):
        provide(any_loads)
    assert not place.exists()


@needs_compiler
def test_two_processes_at_once_build_once(place: Path, tmp_path: Path, calls: Path) -> None:
    environment = {**os.environ, "CXX": script(tmp_path, calls, 'sleep 0.7; exec REAL "$@"')}
    command = [sys.executable, "-c", PROCESS, str(compiling.SOURCES), str(building.PACKAGE)]
    pipe = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    both = [subprocess.Popen(command, env=environment, **pipe) for _ in range(2)]
    ended = [(*process.communicate(timeout=120), process.returncode) for process in both]
    (library,) = place.glob(f"*/{compiling.LIBRARY}")
    assert [(out, code) for out, _, code in ended] == [(f"None {library}\n", 0)] * 2
    assert count(calls) == 4  # two files, the mark, the link
    waited = [err for _, err, _ in ended if "waiting for another process that builds the kernels" in err]
    assert len(waited) <= 1
    assert sum("building the kernels" in err for _, err, _ in ended) == 1


def test_a_failing_compiler_is_not_asked_again(
    place: Path, tmp_path: Path, calls: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = (
        "i=0; while [ $i -lt 20 ]; do echo line $i; i=$((i+1)); done; echo 'one.cpp:1: error: no' >&2; exit 3"
    )
    monkeypatch.setenv("CXX", script(tmp_path, calls, body))
    with pytest.raises(NoKernels) as first:
        provide(any_loads)
    assert first.value.reason == "the C++ compiler failed"
    assert "ended with 3" in first.value.details
    assert first.value.details.splitlines()[-2:] == ["line 19", "one.cpp:1: error: no"]
    assert first.value.remedy == "Mend it, or let CXX name another one, then run `regrow build`."
    asked = count(calls)
    with pytest.raises(NoKernels, match="failed in an earlier process\n(?s:.*)one.cpp:1: error: no\nMend it"):
        provide(any_loads)
    assert count(calls) == asked
    with pytest.raises(NoKernels, match="compiler failed\n"):
        provide(any_loads, ask=True)
    assert count(calls) > asked
    assert not list(place.glob(f"*/{compiling.LIBRARY}"))
    assert not list(place.glob("*/build-*"))


@needs_compiler
def test_a_cache_that_cannot_be_written(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/nowhere")
    own = tmp_path / "temporary" / f"regrow-{os.getuid()}"
    library = provide(any_loads)
    assert library.parent.parent == own
    assert own.stat().st_mode & 0o077 == 0
    assert provide(any_loads) == library
    own.chmod(0o777)  # somebody else may have put it there
    with pytest.raises(
        NoKernels, match="there is no room to build them: .*/proc/nowhere.*\nLet XDG_CACHE_HOME name"
    ):
        provide(any_loads)


@needs_compiler
def test_a_full_cache(place: Path, tmp_path: Path, calls: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full = f'case "$*" in *{place}*) echo "as: No space left on device"; exit 1;; esac; exec REAL "$@"'
    monkeypatch.setenv("CXX", script(tmp_path, calls, full))
    assert tmp_path / "temporary" in provide(any_loads).parents
    assert not list(place.glob("*/failed.txt"))


@needs_compiler
def test_regrow_build_0(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REGROW_BUILD", "0")
    with pytest.raises(NoKernels, match="and REGROW_BUILD=0 forbids to build them\nRun `regrow build`"):
        provide(any_loads)
    library = provide(any_loads, ask=True)
    assert provide(any_loads) == library


@needs_compiler
def test_an_installed_library_of_other_sources_is_not_loaded(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = tmp_path / "package" / compiling.LIBRARY
    shutil.copy(provide(any_loads), installed)
    shutil.rmtree(place)
    assert provide(any_loads) == installed
    (compiling.SOURCES / "two.cpp").write_text('extern "C" int regrow_two() { return 3; }\n')
    tried: list[Path] = []
    assert provide(tried.append).parent.parent == place
    assert installed not in tried
    shutil.rmtree(place)
    monkeypatch.setenv("REGROW_BUILD", "0")
    with pytest.raises(
        NoKernels, match="_kernels.abi3.so was built from other sources than those of this regrow"
    ):
        provide(any_loads)


@needs_compiler
def test_an_installed_library_that_does_not_load(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "package" / compiling.LIBRARY
    broken.write_bytes(compiling.MARK + compiling.key().encode() + b"\0")
    assert compiling.key_of(broken) == compiling.key()
    library = provide(lambda file: None if file != broken else "does not load")
    assert library.parent.parent == place
    library.write_bytes(b"no library")
    with pytest.raises(
        NoKernels, match="_kernels.abi3.so does not load with torch .*\n`regrow build` tries again"
    ):
        provide(native._load)
    assert provide(native._load, ask=True) == library


def test_the_kernels_of_this_tree_carry_its_key() -> None:
    if native.available():
        library = native.library()
        assert library is not None
        assert compiling.key_of(library).split()[0] == compiling.sources_key()
