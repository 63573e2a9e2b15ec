"""Builds the compiled backends. Everything else is in pyproject.toml.

torch must be installed first, and pip run with --no-build-isolation. Without torch or a C++17
compiler the install succeeds all the same, and the reference backend serves every device.

The CUDA backend is built where torch has CUDA and nvcc is found. FORCE_CUDA=1 builds it wherever
nvcc is found, FORCE_CUDA=0 never; NVCC names the compiler, CUDA_ARCHITECTURES what it targets.
"""

from __future__ import annotations

import glob
import os
import platform
import shutil
import subprocess
import sys

from setuptools import Extension, setup

try:
    import torch
    from torch.utils.cpp_extension import (
        BuildExtension,
        CppExtension,
        include_paths,
        library_paths,
    )
except ImportError:
    torch = None

STABLE_ABI = "0x020a000000000000"  # torch 2.10: the library loads in this and every later version
CPU_FLAGS = [
    *("-O3", "-std=c++17", "-fvisibility=hidden", "-Wno-maybe-uninitialized"),
    # the first flag keeps the bits of the noise, the others do not affect them
    *("-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math"),
]
CUDA_FLAGS = [
    *("-O3", "-std=c++17", "-fmad=false", "-Xcompiler", "-fPIC,-ffp-contract=off"),
    *("--threads", "2", "-DUSE_CUDA", f"-DTORCH_TARGET_VERSION={STABLE_ABI}"),
]
ARCHITECTURES = "80 86 89 90 100"
# Before torch's libraries: they export parts of the C++ library they were built with, without a
# version. A symbol taken from there would be missing from another torch, or from the wheel's tag.
CPP_LIBRARY = ["stdc++"] if sys.platform == "linux" else []
HEADERS = sorted(glob.glob("csrc/**/*.h", recursive=True) + glob.glob("csrc/**/*.[ci]*h"))


def say(line: str) -> None:
    print(f"fedspzo: {line}", flush=True)


def find_nvcc() -> str | None:
    """Find the CUDA compiler. Return None if there is none, and print the reason."""
    force = os.environ.get("FORCE_CUDA", "")
    home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    nvcc = os.environ.get("NVCC") or shutil.which("nvcc") or shutil.which(f"{home}/bin/nvcc")
    if force == "0":
        say("no CUDA backend: FORCE_CUDA=0")
    elif force != "1" and torch.version.cuda is None:
        say("no CUDA backend: this torch has no CUDA (FORCE_CUDA=1 builds it all the same)")
    elif nvcc is None:
        say("no CUDA backend: no nvcc on the path; set NVCC or CUDA_HOME")
    else:
        return nvcc
    return None


def architectures(nvcc: str) -> list[str]:
    """Return -gencode flags: architectures that nvcc knows, and PTX of the last for later ones."""
    run = subprocess.run([nvcc, "--list-gpu-arch"], check=True, capture_output=True, text=True)
    known = run.stdout.split()
    wanted = os.environ.get("CUDA_ARCHITECTURES", ARCHITECTURES).split()
    chosen = [number for number in wanted if f"compute_{number}" in known]
    say(f"CUDA architectures {', '.join(chosen)} and PTX of the last, with {nvcc}")
    flags = [f"-gencode=arch=compute_{n},code=sm_{n}" for n in chosen]
    return [*flags, f"-gencode=arch=compute_{chosen[-1]},code=compute_{chosen[-1]}"]


def cuda_command(nvcc: str, target: str | os.PathLike[str], *flags: str) -> list[str]:
    """Return nvcc's call that builds the CUDA backend's library, with `flags` besides the usual."""
    return [
        *(nvcc, *CUDA_FLAGS, *architectures(nvcc), *flags),
        *(f"-I{path}" for path in include_paths()),
        *("csrc/cuda/perturb.cu", "-shared", "-o", os.fspath(target)),
        # torch loads its symbols with RTLD_LOCAL, so the library has to name where it finds them
        *(f"-L{path}" for path in library_paths()),
        *(f"-l{name}" for name in CPP_LIBRARY),
        *("-Xlinker", "--no-as-needed", "-ltorch", "-ltorch_cpu", "-lc10"),
    ]


def extensions() -> list[Extension]:
    cpu = CppExtension(
        "fedspzo_kernels._C",
        sorted(glob.glob("csrc/cpu/*.cpp")),
        define_macros=[("TORCH_TARGET_VERSION", STABLE_ABI)],
        extra_compile_args=CPU_FLAGS,
        libraries=[*CPP_LIBRARY],
        depends=HEADERS,
        py_limited_api=True,
    )
    say(f"torch {torch.__version__}, {platform.machine()}, Python {platform.python_version()}")
    say(f"compiling fedspzo_kernels._C from {len(cpu.sources)} files: {' '.join(CPU_FLAGS)}")
    if find_nvcc() is None:
        return [cpu]
    cuda = Extension(
        "fedspzo_kernels._C_cuda",
        [],  # torch's BuildExtension refuses .cu files where torch itself has no CUDA
        depends=["csrc/cuda/perturb.cu", *HEADERS],
        py_limited_api=True,
    )
    return [cpu, cuda]


if torch is not None:

    class OptionalBuild(BuildExtension):
        """Builds the extensions, and leaves out those that fail, so that the install succeeds."""

        def run(self) -> None:
            built, compiler = [], self.compiler
            for extension in self.extensions:
                self.extensions, self.compiler = [extension], compiler
                try:
                    super().run()
                    built.append(extension)
                except Exception as error:
                    say(f"{extension.name} was not built: {error}")
                    say("the install goes on without that backend")
            self.extensions = built

        def build_extension(self, extension: Extension) -> None:
            if not extension.name.endswith("_cuda"):
                super().build_extension(extension)
                return
            nvcc = find_nvcc()
            assert nvcc is not None  # or there would be no such extension
            target = self.get_ext_fullpath(extension.name)
            os.makedirs(os.path.dirname(target), exist_ok=True)
            subprocess.run(cuda_command(nvcc, target), check=True)


def main() -> None:
    if torch is None:
        say("torch is not installed, so nothing is compiled: install it, then use")
        say("pip install --no-build-isolation (the reference backend works without)")
        setup()
        return
    setup(
        ext_modules=extensions(),
        cmdclass={"build_ext": OptionalBuild.with_options(use_ninja=False)},
        options={"bdist_wheel": {"py_limited_api": "cp311"}},
    )


if __name__ == "__main__":  # benchmarks and tests take the compiler's call from here
    main()
