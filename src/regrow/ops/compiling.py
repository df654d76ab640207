"""Compile the kernels: their sources, the compiler, and the key that a library carries of what it was made of.

The standard library only, and torch is looked up but not imported: `setup.py` runs this file before there is a package.
"""

from __future__ import annotations

import hashlib
import importlib.util
import mmap
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

SOURCES = Path(__file__).parent.parent / "csrc"
LIBRARY = "_kernels.abi3.so"

FLAGS = (
    "-std=c++20",
    "-fPIC",
    "-fvisibility=hidden",
    "-DNDEBUG",
    "-DTORCH_TARGET_VERSION=0x020a000000000000",  # 2.10, the oldest torch whose stable ABI has all that is used
)
PORTABLE = ("-DREGROW_PORTABLE", "-include", "portable.h")
"""For a library that runs on systems older than the one it is built on (csrc/portable.h)."""

CORE_SECONDS = 120
"""What one core takes, roughly."""

MARK = b"regrow kernels of "


class CompilerError(RuntimeError):
    """A compiler is missing, or has failed; the text is its last lines."""


def sources_key() -> str:
    """Digest the names and contents of all sources."""
    found = hashlib.sha256()
    for file in sorted(SOURCES.iterdir()):
        found.update(f"{file.name}\n{file.stat().st_size}\n".encode() + file.read_bytes())
    return found.hexdigest()[:32]


def flags() -> tuple[str, ...]:
    """Return what the compiler is told, paths apart: `REGROW_SANITIZE` names sanitizers, `REGROW_PORTABLE` is for
    wheels.
    """
    if named := os.environ.get("REGROW_SANITIZE"):
        return (*FLAGS, "-O1", "-g", "-fno-omit-frame-pointer", f"-fsanitize={named}")
    return (*FLAGS, "-O3", "-g0", *(PORTABLE if os.environ.get("REGROW_PORTABLE") else ()))


def key() -> str:
    """Return what decides what a library does: sources, flags and processor.

    The version of torch is not a part: the flags name the stable ABI, which each later torch keeps.
    """
    return f"{sources_key()} {_digest(*flags(), platform.machine())}"


def key_of(library: Path) -> str:
    """Return the key that `library` carries; empty where it has none. The file is read, not loaded."""
    try:
        with library.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            start = content.find(MARK)
            return "" if start < 0 else content[start + len(MARK) : content.find(b"\0", start)].decode()
    except (OSError, ValueError):  # not there, or empty
        return ""


def compiler() -> list[str] | None:
    """Return the C++ compiler, as a command: `CXX`, or the system's; None where there is none."""
    named = os.environ.get("CXX")
    for words in [shlex.split(named)] if named else [["c++"], ["g++"], ["clang++"]]:
        if words and (path := shutil.which(words[0])):
            return [path, *words[1:]]
    return None


def compiler_key(command: Sequence[str]) -> str:
    """Return which compiler this is, by its file: asking it for its version would take longer at each start."""
    file = os.path.realpath(command[0])
    found = os.stat(file)
    return _digest(file, *command[1:], str(found.st_size), str(found.st_mtime_ns))


def torch_folder() -> Path | None:
    """Return where torch is installed, without importing it."""
    found = importlib.util.find_spec("torch")
    return Path(found.origin).parent if found and found.origin else None


def cores() -> int:
    """Return how many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def compile_to(library: Path, progress: Callable[[int, int], None], objects: Path | None = None) -> None:
    """Compile the kernels into the file `library`, which is there whole or not at all.

    Args:
        library: the file; its folder must be there.
        progress: called with how many of how many files are done.
        objects: a folder that keeps what is compiled, for the next time that most sources are the same. Default: none.

    Raises:
        CompilerError: with the last lines of what the compiler said.
        OSError: the folder is full, or cannot be written to.
    """
    command, torch = compiler(), torch_folder()
    if command is None or torch is None:
        raise CompilerError("there is no torch" if command else "there is no C++ compiler")
    used = flags()
    include = ["-I", str(SOURCES), "-isystem", str(torch / "include")]
    sanitize = [flag for flag in used if flag.startswith("-fsanitize")]
    with tempfile.TemporaryDirectory(dir=library.parent, prefix="build-") as scratch:
        folder = Path(scratch) if objects is None else objects
        mark = Path(scratch, "mark.cpp")
        mark.write_text(
            f'extern "C" __attribute__((used)) const char regrow_key[] = "{MARK.decode()}{key()}";\n'
        )
        headers = b"".join(file.read_bytes() for file in sorted(SOURCES.glob("*.h")))
        known = _digest(headers, *command, *used, *include)
        # first a short one, which shows whether compiler and torch will do, then the kernels: they take longest
        order = {"dispatch": 0, "isa_baseline": 1, "isa_avx2": 1, "isa_avx512": 1}
        files = [*sorted(SOURCES.glob("*.cpp"), key=lambda file: (order.get(file.stem, 2), file)), mark]
        made = {file: folder / f"{file.stem}-{_digest(file.read_bytes(), known)}.o" for file in files}
        wanted = {
            made[file]: [*command, *used, *include, "-c", str(file)]
            for file in files
            if not made[file].is_file()
        }
        done = len(files) - len(wanted)
        progress(done, len(files))
        _run_all(wanted, Path(scratch), lambda more: progress(done + more, len(files)))
        link = [*command, "-shared", *sanitize, *map(str, made.values()), f"-L{torch / 'lib'}", "-ltorch_cpu"]
        linked = Path(scratch, LIBRARY)
        _run_all({linked: link}, Path(scratch), lambda _: None)
        linked.replace(library)


def _run_all(commands: dict[Path, list[str]], scratch: Path, ended: Callable[[int], None]) -> None:
    """Run commands that make a file each, so many at a time as there are cores; none outlives this call."""
    waiting, running = list(commands.items()), dict[subprocess.Popen[bytes], tuple[Path, Path, str]]()
    environment = {**os.environ, "LC_ALL": "C", "TMPDIR": str(scratch)}
    count = 0
    try:
        while waiting or running:
            while waiting and len(running) < cores():
                file, command = waiting.pop(0)
                part, log = scratch / f"{file.name}.part", scratch / f"{file.name}.log"
                with log.open("wb") as output:
                    process = subprocess.Popen(
                        [*command, "-o", str(part)],
                        stdin=subprocess.DEVNULL,
                        stdout=output,
                        stderr=subprocess.STDOUT,
                        env=environment,
                    )
                running[process] = file, log, command[0]
            time.sleep(0.02)
            for process in [process for process in running if process.poll() is not None]:
                file, log, name = running.pop(process)
                if process.returncode:
                    _refuse(name, process.returncode, log)
                (scratch / f"{file.name}.part").replace(file)
                count += 1
                ended(count)
    finally:
        for process in running:
            process.kill()
            process.wait()


def _refuse(name: str, code: int, log: Path) -> None:
    said = log.read_text(errors="replace").strip()
    if "No space left on device" in said or "Disk quota exceeded" in said:
        raise OSError(f"{log.parent.parent} is full")
    raise CompilerError("\n".join([f"{name} ended with {code}", *said.splitlines()[-8:]]))


def _digest(*parts: str | bytes) -> str:
    return hashlib.sha256(
        b"\0".join(part if isinstance(part, bytes) else part.encode() for part in parts)
    ).hexdigest()[:16]


class Bar:
    """Tells on standard error how far a compilation is: one line on a terminal, a first and a last one elsewhere."""

    def __init__(self, what: str = "building the kernels") -> None:
        self._what = f"regrow: {what} (once, about {max(1, round(CORE_SECONDS / cores()))} s)"
        self._terminal = sys.stderr is not None and sys.stderr.isatty()
        self._start = time.monotonic()
        self._begun = False

    def __call__(self, done: int, total: int) -> None:
        if self._terminal:
            self._say(f"\r{self._what} ... {done}/{total}")
        elif not self._begun:
            self._say(f"{self._what} ... {total} files\n")
        self._begun = True

    def end(self, how: str) -> None:
        """Say how it ended."""
        if self._begun:
            took = time.monotonic() - self._start
            self._say(("\n" if self._terminal else "") + f"regrow: {how} after {took:.0f} s\n")

    @staticmethod
    def _say(text: str) -> None:
        if sys.stderr is not None:
            sys.stderr.write(text)
            sys.stderr.flush()
