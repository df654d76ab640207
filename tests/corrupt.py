"""Files that are wrong on purpose: each is read in another process, which a crash would end, and has its answer.

A test module gives its cases, ``{name: function that writes the files of the case into a folder}``, to `answers`, and
ends with `serve`, which reads one folder after another in that process.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import re
import resource
import stat
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tiny import ENVIRONMENT

MARK = "RAN"
"""What a payload writes, where one runs."""
MEMORY = 1 << 30
"""Bytes that reading a small file may take beside what Python and torch take."""


def answers(module: str, cases: Mapping[str, Callable[[Path], Any]], root: Path) -> dict[str, dict[str, Any]]:
    """What each case was answered, by its name; what is missing was not answered, because the process died."""
    for name, make in cases.items():
        folder = root / name
        folder.mkdir()
        make(folder)
    tests = os.pathsep.join([str(Path(__file__).parent), ENVIRONMENT["PYTHONPATH"]])
    ended = subprocess.run(
        [sys.executable, module, str(root)],
        env={**ENVIRONMENT, "PYTHONPATH": tests, "XDG_CACHE_HOME": str(root / "cache")},
        capture_output=True,
        text=True,
        timeout=300,
    )
    found = [json.loads(line) for line in ended.stdout.splitlines() if line.startswith('{"case"')]
    if ended.returncode:
        sys.stderr.write(f"ended with {ended.returncode}, after {found[-1:]}: {ended.stderr[-2000:]}")
    return {one["case"]: one for one in found}


def check(answer: Mapping[str, Any] | None, pattern: str) -> None:
    """See that an answer is a clear error: of regrow's own and as expected, nothing written, run or left in memory."""
    assert answer is not None, "the process ended before it answered"
    assert answer["error"] in ("RegrowValueError", "RegrowRuntimeError", "exit 2"), answer
    assert answer["changed"] == [], answer
    assert answer["memory"] < MEMORY, answer
    text: str = answer["text"]
    assert "weights_only" not in text, text  # torch's advice to turn safety off
    assert "allow_pickle" not in text, text
    assert "\n" in text, f"no remedy: {text}"
    assert len(text) < 2000, text
    assert re.search(pattern, text), text


def serve(read: Callable[[Path], object]) -> None:
    """Read each folder of the cases, and tell what came of it."""
    for folder in sorted(path for path in Path(sys.argv[1]).iterdir() if path.name != "cache"):
        os.chdir(folder)
        before, used = _content(folder), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        error, text = "none", ""
        said = io.StringIO()
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(said):
            try:
                read(folder)
            except SystemExit as ended:
                error, text = f"exit {ended.code}", said.getvalue()
            except Exception as problem:
                error, text = type(problem).__name__, str(problem)
        changed = sorted(set(before.items()) ^ set(_content(folder).items()))
        memory = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - used)
        one = {"case": folder.name, "error": error, "text": text, "changed": changed, "memory": memory}
        print(json.dumps(one), flush=True)


def _content(folder: Path) -> dict[str, str]:
    """Each file below `folder`, and what is in it."""
    found = {}
    for path in folder.rglob("*"):
        if path.name == "lock":  # of a run folder, while a process is in it
            continue
        status = path.lstat()
        name = os.fsencode(path.relative_to(folder)).decode(errors="backslashreplace")
        found[name] = f"{stat.S_IFMT(status.st_mode)} {status.st_size}"
        if stat.S_ISREG(status.st_mode) and status.st_size < 2**20:
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found
