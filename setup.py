"""The kernels, as an optional extension: where torch or a C++ compiler is missing, regrow installs without them."""

from __future__ import annotations

import os
import platform
import sys
import warnings
from pathlib import Path
from typing import Any

from setuptools import setup

TORCH_TARGET = "0x020a000000000000"  # 2.10, the oldest torch whose stable ABI has all that the kernels use
SOURCES = sorted(str(path) for path in Path("csrc").glob("*.cpp"))
SANITIZE = os.environ.get("REGROW_SANITIZE")  # sanitizers for g++, as `make sanitize` names them
HEADERS = sorted(str(path) for path in Path("csrc").glob("*.h"))


def extension() -> dict[str, Any]:
    """What `setup` is told of the extension; nothing where it cannot be built."""
    if os.environ.get("REGROW_NO_KERNELS") or platform.system() == "Windows":
        return {}
    try:
        from torch.utils.cpp_extension import BuildExtension, CppExtension
    except ImportError:
        warnings.warn(
            "torch is not installed here, so regrow is built without its kernels. To have them: install torch, then "
            "regrow with `pip install --no-build-isolation`.",
            stacklevel=1,
        )
        return {}

    class Build(BuildExtension):
        """A build whose failure leaves the package without kernels."""

        def run(self) -> None:
            try:
                super().run()
            except Exception as error:
                for file in Path("src/regrow").glob("_kernels*.so"):
                    file.unlink()
                self.extensions = []
                print(f"warning: regrow is built without its kernels: {error}", file=sys.stderr)

    flags = ["-O1", "-g", "-fno-omit-frame-pointer", f"-fsanitize={SANITIZE}"] if SANITIZE else ["-O3", "-g0"]
    kernels = CppExtension(
        "regrow._kernels",
        SOURCES,
        depends=HEADERS,
        py_limited_api=True,
        define_macros=[("TORCH_TARGET_VERSION", TORCH_TARGET)],
        extra_compile_args=["-fvisibility=hidden", "-Wall", "-Wno-maybe-uninitialized", *flags],
        extra_link_args=flags if SANITIZE else [],
    )
    return {
        "ext_modules": [kernels],
        "cmdclass": {"build_ext": Build},
        "options": {"bdist_wheel": {"py_limited_api": "cp311"}},
    }


setup(**extension())
