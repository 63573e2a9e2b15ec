"""Build of the compiled backend; everything else stands in pyproject.toml.

torch must be installed first, and pip run with --no-build-isolation. Without torch or a C++17
compiler the install succeeds all the same, and the reference backend serves every device.
"""

from __future__ import annotations

import glob
import platform

from setuptools import setup

try:
    import torch
    from torch.utils.cpp_extension import BuildExtension, CppExtension
except ImportError:
    torch = None

STABLE_ABI = "0x020a000000000000"  # torch 2.10: the library loads in this and every later version
FLAGS = [
    "-O3",
    "-std=c++17",
    "-ffp-contract=off",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fvisibility=hidden",
    "-Wno-maybe-uninitialized",
]


def say(line: str) -> None:
    print(f"fedspzo: {line}", flush=True)


if torch is None:
    say("torch is not installed, so nothing is compiled: install it, then use")
    say("pip install --no-build-isolation (the reference backend works without)")
    extensions, commands = [], {}
else:

    class OptionalBuild(BuildExtension):
        """A failed compilation leaves the reference backend instead of failing the install."""

        def run(self) -> None:
            try:
                super().run()
            except Exception as error:
                say(f"the compiled backend was not built: {error}")
                say("the install goes on; the reference backend serves every device")
                self.extensions = []

        def copy_extensions_to_source(self) -> None:
            if self.extensions:
                super().copy_extensions_to_source()

    extensions = [
        CppExtension(
            "fedspzo_kernels._C",
            sorted(glob.glob("csrc/cpu/*.cpp")),
            define_macros=[("TORCH_TARGET_VERSION", STABLE_ABI)],
            extra_compile_args=FLAGS,
            depends=sorted(glob.glob("csrc/**/*.[hi]*", recursive=True)),
            py_limited_api=True,
        )
    ]
    commands = {"build_ext": OptionalBuild.with_options(use_ninja=False)}
    say(f"torch {torch.__version__}, {platform.machine()}, Python {platform.python_version()}")
    say(f"compiling fedspzo_kernels._C from {len(extensions[0].sources)} files: {' '.join(FLAGS)}")

setup(
    ext_modules=extensions,
    cmdclass=commands,
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
