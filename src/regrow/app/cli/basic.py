"""The commands that need no extra: ``regrow doctor``, ``regrow build`` and ``regrow --version``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence

import regrow
from regrow._text import columns, wrapped
from regrow.app.cli.doctor import doctor
from regrow.ops import native
from regrow.ops.building import NoKernels

DOCTOR = "Tell what this machine has: kernels, instruction set, threads, load, data; and try the kernels."
BUILD = "Build the kernels into the user's cache where there are none that are right; an earlier failure is forgotten."


def run_doctor(given: Sequence[str]) -> int:
    """Run ``regrow doctor``; `given` are the arguments of ``regrow``."""
    parser = argparse.ArgumentParser("regrow doctor", description=DOCTOR)
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    return doctor(given, parser.parse_args(given[1:]).json)


def run_build(given: Sequence[str]) -> int:
    """Run ``regrow build``: exit code 1 if there are no kernels afterwards."""
    argparse.ArgumentParser("regrow build", description=BUILD).parse_args(given[1:])
    try:
        library = native.build()
    except NoKernels as why:
        print(wrapped(f"error: {why}", columns(sys.stderr)), file=sys.stderr)
        return 1
    print(f"kernels: {native.isa()}, {library}")
    return 0


def run_version(given: Sequence[str]) -> int:
    """Run ``regrow --version``."""
    print(f"regrow {regrow.__version__}")
    return 0


COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    "doctor": run_doctor,
    "build": run_build,
    "--version": run_version,
}
