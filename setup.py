"""The kernels are compiled where torch and a C++ compiler are there; elsewhere regrow does it itself, at first need."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from pathlib import Path
from typing import Any

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOM = Path(__file__).parent / "src" / "regrow"
spec = importlib.util.spec_from_file_location("compiling", ROOM / "ops" / "compiling.py")
assert spec is not None
assert spec.loader is not None
compiling = importlib.util.module_from_spec(spec)
spec.loader.exec_module(compiling)


class BuildPackage(build_py):
    """A build that takes over no source of the kernels from an earlier one, which would change their key."""

    def run(self) -> None:
        shutil.rmtree(Path(self.build_lib, "regrow", "csrc"), ignore_errors=True)
        super().run()


class BuildKernels(build_ext):
    """A build of all sources with the flags of `compiling`; what fails is left to regrow, which tells the reason."""

    def build_extension(self, ext: Extension) -> None:
        library = Path(self.get_ext_fullpath(ext.name)).with_name(compiling.LIBRARY)
        library.parent.mkdir(parents=True, exist_ok=True)
        there = ROOM / compiling.LIBRARY
        if compiling.key_of(there) == compiling.key():
            if there.resolve() != library.resolve():
                shutil.copy2(there, library)
            return
        library.unlink(missing_ok=True)
        objects = Path(self.build_temp, "kernels")
        objects.mkdir(parents=True, exist_ok=True)
        bar = compiling.Bar()
        try:
            compiling.compile_to(library, bar, objects)
        except (compiling.CompilerError, OSError) as error:
            bar.end("the compiler failed")
            print(
                f"regrow is installed without its kernels, which it builds when needed:\n{error}",
                file=sys.stderr,
            )
            if os.environ.get("REGROW_PORTABLE"):
                raise
        else:
            bar.end("built the kernels")


def extension() -> dict[str, Any]:
    """Return what `setup` is told of the extension; nothing where it cannot be built, or is not to be."""
    possible = compiling.torch_folder() and compiling.compiler() and sys.platform != "win32"
    if os.environ.get("REGROW_BUILD") == "0" or not possible:
        return {}
    return {
        "ext_modules": [Extension("regrow._kernels", [], py_limited_api=True, optional=True)],
        "options": {"bdist_wheel": {"py_limited_api": "cp311"}},
    }


setup(cmdclass={"build_py": BuildPackage, "build_ext": BuildKernels}, **extension())
