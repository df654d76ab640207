"""Provide a library of kernels: the one that was installed, one from the user's cache, or one that is built there now.

What decides is the key of the sources (`regrow.ops.compiling`), never the version of the package.
"""

from __future__ import annotations

import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from regrow._places import cache
from regrow.ops import compiling
from regrow.ops.compiling import LIBRARY, Bar, CompilerError

PACKAGE = Path(__file__).parent.parent
AGAIN = "`regrow build` tries again."
FAILED = "failed.txt"


class NoKernels(Exception):
    """Why there are no kernels."""

    def __init__(self, reason: str, remedy: str, details: str = "") -> None:
        super().__init__("\n".join(filter(None, (reason, details, remedy))))
        self.reason = reason
        """In one line."""
        self.remedy = remedy
        """The one thing that mends it."""
        self.details = details
        """The last lines of the compiler."""


def provide(load: Callable[[Path], str | None], *, ask: bool = False) -> Path:
    """Load the kernels, and build them first where there are none that are right.

    Args:
        load: loads a library, and says why it could not.
        ask: the user asks for a build: an earlier failure and `REGROW_BUILD` do not count.

    Returns:
        The library.

    Raises:
        NoKernels: there are none, and why.
    """
    if sys.platform == "win32":
        raise NoKernels("there are none for Windows", "Use Linux, or WSL.")
    why = "they were not built when regrow was installed"
    for library in _installed():
        if compiling.key_of(library).split(" ")[0] != compiling.sources_key():
            why = f"{library.name} was built from other sources than those of this regrow"
        elif (trouble := load(library)) is None:
            return library
        else:
            why = trouble
    command = compiling.compiler()
    what = "-".join(part[:12] for part in compiling.key().split(" "))
    name = f"{what}-{compiling.compiler_key(command)[:8]}" if command else f"{what}-*"
    for place in places():
        for library in sorted(place.glob(f"{name}/{LIBRARY}")):
            if load(library) is None:
                return library
    if command is None:
        named = os.environ.get("CXX")
        raise NoKernels(
            f"{why}, and "
            + (f"CXX names {named}, which is not there" if named else "there is no C++ compiler"),
            "Let CXX name a C++ compiler."
            if named
            else "Install a C++ compiler, for example with "
            "`apt-get install g++`: the kernels are then built at the next start.",
        )
    if os.environ.get("REGROW_BUILD") == "0" and not ask:
        raise NoKernels(f"{why}, and REGROW_BUILD=0 forbids to build them", "Run `regrow build`.")
    library = _build(name, ask=ask)
    if (trouble := load(library)) is not None:
        _remember(library.parent, trouble)
        raise NoKernels(trouble, AGAIN)
    return library


def places(*, make: bool = False) -> Iterator[Path]:
    """Yield folders for libraries: in the user's cache, else a temporary one of the user's own, which `make`
    creates.
    """
    with suppress(RuntimeError):  # there is no home
        yield cache() / "kernels"
    own = Path(tempfile.gettempdir(), f"regrow-{os.getuid()}")
    with suppress(OSError):
        if make:
            own.mkdir(mode=0o700, exist_ok=True)
        found = own.lstat()
        # what lies there is loaded: nobody else may have put it there
        if stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o077:
            yield own


def _installed() -> list[Path]:
    return sorted(PACKAGE.glob("_kernels*.so"))


def _build(name: str, *, ask: bool) -> Path:
    """Build the library, by one process at a time, in the first place that takes it."""
    troubles = []
    for place in places(make=True):
        try:
            folder = place / name
            folder.mkdir(parents=True, exist_ok=True)
            with _locked(folder / "lock"):
                return _build_in(folder, ask=ask)
        except OSError as error:
            troubles.append(str(error))
    raise NoKernels(
        f"there is no room to build them: {'; '.join(troubles) or 'no folder can be written to'}",
        "Let XDG_CACHE_HOME name a folder with room, then run `regrow build`.",
    )


def _build_in(folder: Path, *, ask: bool) -> Path:
    library, failed = folder / LIBRARY, folder / FAILED
    if library.is_file() and not ask:
        return library  # built by the process that had the lock
    if failed.is_file() and not ask:
        raise _failure(failed.read_text(encoding="utf-8", errors="replace"), before=True)
    for left in folder.glob("build-*"):  # by a process that was killed
        shutil.rmtree(left, ignore_errors=True)
    bar = Bar()
    try:
        compiling.compile_to(library, bar)
    except CompilerError as error:
        bar.end("the compiler failed")
        _remember(folder, str(error))
        raise _failure(str(error)) from None
    except BaseException:
        bar.end("the build was stopped")
        raise
    bar.end(f"built {library}")
    failed.unlink(missing_ok=True)
    return library


def _failure(said: str, *, before: bool = False) -> NoKernels:
    return NoKernels(
        f"the C++ compiler {'failed in an earlier process' if before else 'failed'}",
        "Mend it, or let CXX name another one, then run `regrow build`.",
        said,
    )


def _remember(folder: Path, failure: str) -> None:
    with suppress(OSError):
        (folder / FAILED).write_text(failure, encoding="utf-8")


@contextmanager
def _locked(file: Path) -> Iterator[None]:
    """Wait until no other process holds the lock of `file`; whoever ends gives it back."""
    import fcntl  # not on Windows

    with file.open("w") as held:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if sys.stderr is not None:
                print(
                    "regrow: waiting for another process that builds the kernels", file=sys.stderr, flush=True
                )
            fcntl.flock(held, fcntl.LOCK_EX)
        except OSError:
            pass  # a file system without locks: the library still appears whole or not at all
        yield
