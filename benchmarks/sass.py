"""What the CUDA and Triton kernels compile to: instructions an element, registers, accesses.

`make sass` prints a table for sm_80 and sm_90. It needs nvcc and the cuobjdump that triton
carries, and no GPU. `python benchmarks/sass.py VARIANT` counts a variant of gpu_build.py.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import itertools
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import gpu_build
import numpy as np
from gpu_build import VARIANTS as BUILDS

ROOT = Path(__file__).parent.parent
DTYPES = ("float32", "bfloat16", "float16")
STREAMS = ("normal-v1", "rademacher-v1")
ARCHITECTURES = (80, 90)
THREADS = 256
"""Of a block: kThreads of csrc/cuda/layout.h."""


class Variant(NamedTuple):
    """One kernel of those each language has.

    Attributes:
        dtype: "float32", "bfloat16" or "float16".
        stream: "normal-v1" or "rademacher-v1".
        one_term: for one term, or for any number of them.
        stochastic: with stochastic rounding, which float32 has no use for.
    """

    dtype: str
    stream: str
    one_term: bool = True
    stochastic: bool = False


VARIANTS = [
    variant
    for variant in itertools.starmap(
        Variant, itertools.product(DTYPES, STREAMS, (True, False), (False, True))
    )
    if variant.dtype != "float32" or not variant.stochastic
]


@dataclass(frozen=True)
class Code:
    """One kernel's machine code.

    Attributes:
        instructions: for each element and term. CUDA: in the loop over elements with one term, else
            in the loop over terms. Triton has no loop over elements: with one term the whole
            kernel, set-up included, else the loop over terms.
        chunk: a thread's instructions for each chunk of csrc/cuda/kernel.cuh beside its loops, each
            counted once, whether it is run or not. 0 for Triton.
        registers: for each thread.
        stack: bytes for each thread; spilled registers would be there.
        local: loads and stores of local memory in the whole kernel.
        shared: bytes for each block; from sm_90 on with a kilobyte that is the driver's.
        accesses: loads and stores of global memory by opcode, in CUDA's loop over elements or the
            whole Triton kernel. Loads narrower than 16 bytes are of seeds, coefficients and, in
            Triton, rows of the table.
    """

    instructions: float
    chunk: int
    registers: int
    stack: int
    local: int
    shared: int
    accesses: dict[str, int]

    def blocks(self, architecture: int, threads: int) -> int:
        """Blocks of `threads` that a multiprocessor holds at a time: what the occupancy API says.

        Registers are given to warps 256 at a time, in four parts of a multiprocessor; a block has
        128 bytes of shared memory at a time. Both architectures hold 64 warps, 32 blocks and 65,536
        registers (CUDA C++ Programming Guide, "Compute Capabilities").
        """
        warps = threads // 32
        registers = -(-self.registers * 32 // 256) * 256
        by_registers = 4 * (65536 // 4 // registers) // warps
        counted = architecture >= 90 and self.shared > 0
        shared = self.shared if counted else self.shared + 1024  # the driver's kilobyte
        by_shared = {80: 164, 90: 228}[architecture] * 1024 // (-(-shared // 128) * 128)
        return min(64 // warps, 32, by_registers, by_shared)


def missing() -> str | None:
    """Why the kernels cannot be compiled and read here, or None."""
    if shutil.which("nvcc") is None:
        return "no nvcc on the path"
    if importlib.util.find_spec("triton") is None:
        return "no triton, whose cuobjdump reads the machine code"
    return None


def cuda_kernels(library: Path, architecture: int, form: str = "whole") -> dict[Variant, Code]:
    """Every kernel of csrc/cuda.

    Args:
        library: as setup.py or gpu_build.py builds it, for that architecture among others.
        architecture: e.g. 90.
        form: "whole" tensors, in place and out of place, or "rows" of one.
    """
    functions = _read_library(library, architecture)
    return {variant: _read_cuda(functions[form, variant], variant) for variant in VARIANTS}


@functools.cache
def _read_library(library: Path, architecture: int) -> dict[tuple[str, Variant], _Function]:
    """The kernels by their form and variant."""
    functions = _disassemble(library, "-arch", f"sm_{architecture}")
    return {_cuda_variant(name): function for name, function in functions.items()}


def wavefronts(flags: Sequence[str] = ()) -> float:
    """Shared-memory wavefronts of a warp's read of the table, the mean over random words.

    The addresses are those of csrc/cuda/table.cuh, which is compiled for the host. A 16-byte access
    serves eight threads at a time, and takes a wavefront for each row that meets another one in its
    four banks: 4 is the floor.
    """
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "kernel.so"
        command = ["c++", "-std=c++20", "-O0", "-shared", "-fPIC", "-pthread", *flags]
        subprocess.run([*command, ROOT / "tests/host/kernel.cpp", "-o", library], check=True)
        words = np.random.default_rng(0).integers(0, 2**32, 32 * 20_000, dtype=np.uint32)
        offsets = np.empty_like(words)
        pointers = (ctypes.c_void_p(array.ctypes.data) for array in (words, offsets))
        ctypes.CDLL(str(library)).table_offsets(*pointers, ctypes.c_int64(len(words)))
    return count_wavefronts(offsets)


def count_wavefronts(offsets: np.ndarray) -> float:
    """The mean wavefronts of warps whose threads read 16 bytes at these places, a multiple of 16.

    `offsets`: integers, 32 for each warp.
    """
    rows = np.sort(offsets.reshape(-1, 8) // 16, axis=1)
    first = np.ones(rows.shape, dtype=bool)  # threads that read the same row share a wavefront
    first[:, 1:] = rows[:, 1:] != rows[:, :-1]
    meeting = [(first & (rows % 8 == banks)).sum(axis=1) for banks in range(8)]
    return float(4 * np.max(meeting, axis=0).mean())


def triton_kernels(
    architecture: int, form: str = "whole", variants: Iterable[Variant] = VARIANTS
) -> dict[Variant, Code]:
    """Variants of a Triton kernel, as for tensors at aligned addresses.

    Triton must not be interpreting in this process.

    Args:
        architecture: e.g. 90.
        form: "whole" parameters, "shifted" by some whole vectors within one, or "rows" of one.
        variants: those to compile.
    """
    return {variant: _compile_triton(architecture, variant, form) for variant in variants}


class _Function(NamedTuple):
    code: Code  # but for what the loops tell
    lines: list[str]
    loops: list[list[str]]


def _disassemble(file: Path, *flags: str) -> dict[str, _Function]:
    """The kernels of a file by their names."""
    spec = importlib.util.find_spec("triton")
    assert spec is not None
    assert spec.origin is not None
    program = Path(spec.origin).parent / "backends/nvidia/bin/cuobjdump"
    command = [program, "-sass", "-res-usage", *flags, file]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    usage = r"Function (\w+):\s+REG:(\d+) STACK:(\d+) SHARED:(\d+)"
    resources = {name: map(int, rest) for name, *rest in re.findall(usage, text)}
    functions = {}
    for body in text.split("Function : ")[1:]:
        name = body.split(maxsplit=1)[0]
        registers, stack, shared = resources[name]
        found = re.findall(r"/\*([0-9a-f]{4,5})\*/\s+(?:@\S+\s+)?([^;]*);", body)
        lines = [line for _, line in found]
        at = {int(address, 16): number for number, (address, _) in enumerate(found)}
        loops = []
        for number, line in enumerate(lines):
            target = re.search(r"^BRA\b.*0x([0-9a-f]+)", line)
            if target and (start := at.get(int(target[1], 16), number)) < number:
                loops.append(range(start, number + 1))
        *inner, outer = sorted(loops, key=len) or [range(0)]
        chunk = len(set(outer).difference(*inner))
        local = sum(line.startswith(("LDL", "STL")) for line in lines)
        functions[name] = _Function(
            Code(0, chunk, registers, stack, local, shared, {}),
            lines,
            [[lines[number] for number in loop] for loop in loops],
        )
    return functions


def _accesses(lines: list[str]) -> dict[str, int]:
    return dict(Counter(line.split()[0] for line in lines if line.startswith(("LDG", "STG"))))


def _holds(loop: list[str], *opcodes: str) -> bool:
    return any(line.startswith(opcodes) for line in loop)


def _cuda_variant(name: str) -> tuple[str, Variant]:
    types = r"INS_\d+(\w+?)ENS_\d+(\w+?)ENS_\d+(\w+?)ELb([01])ELb([01])E"
    found = re.search(f"perturb_kernel{types}", name)
    assert found is not None, name
    tensors, dtype, noise, one_term, stochastic = found.groups()
    form = {"TensorTable": "whole", "RowTable": "rows"}[tensors]
    stream = {"NormalNoise": "normal-v1", "SignNoise": "rademacher-v1"}[noise]
    return form, Variant(dtype.lower(), stream, one_term == "1", stochastic == "1")


def _read_cuda(function: _Function, variant: Variant) -> Code:
    # Whole runs go 16 bytes at a time; the loop over edges goes element by element.
    turns = min((loop for loop in function.loops if _holds(loop, "STG.E.128")), key=len)
    loop = turns
    if not variant.one_term:
        terms = (each for each in function.loops if _holds(each, "LDS.128"))
        terms = (each for each in terms if _holds(each, "FFMA", "FADD") and not _holds(each, "STG"))
        loop = min(terms, key=len)
    accesses = _accesses(turns)
    places = 16 * accesses["STG.E.128"] / (4 if variant.dtype == "float32" else 2)
    return replace(function.code, instructions=len(loop) / places, accesses=accesses)


def _compile_triton(architecture: int, variant: Variant, form: str) -> Code:
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile

    from fedspzo_kernels.triton import GROUPS, ROW_GROUPS, VECTOR, WARPS
    from fedspzo_kernels.triton.kernel import perturb_kernel, rows_kernel

    data = "*" + {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}[variant.dtype]
    kernel, groups = (rows_kernel, ROW_GROUPS) if form == "rows" else (perturb_kernel, GROUPS)
    if form == "rows":
        types = {"source": data, "rows": "*i64", "out": data}
        types |= {"count": "i32", "width": "i32", "offset": "i64"}
        aligned = {"source", "rows", "out", "width", "offset"}
    else:
        types = {"source": data, "out": data, "numel": "i32", "offset": "i64", "shift": "i32"}
        aligned = {"source", "out", "numel"}
    types |= {"key": "i64", "seeds": "*i64", "coeffs": "*fp32", "terms": "i32"}
    types |= {"rounding_seed": "*i64", "table": "*i64"}
    aligned |= {"seeds", "coeffs", "rounding_seed", "table"}
    constants = {
        "NORMAL": variant.stream == "normal-v1",
        "ONE_TERM": variant.one_term,
        "STOCHASTIC": variant.stochastic,
        "GROUPS": groups,
    }
    if form != "rows":
        constants["UNIT"] = VECTOR if form == "shifted" else 0
    # in the kernel's order
    signature = {name: types.get(name, "constexpr") for name in kernel.arg_names}
    place = {name: (number,) for number, name in enumerate(signature)}
    source = ASTSource(
        fn=kernel,
        signature=signature,
        constexprs={place[name]: value for name, value in constants.items()},
        attrs={place[name]: [["tt.divisibility", 16]] for name in aligned},
    )
    options = {"num_warps": WARPS, "enable_fp_fusion": False}
    compiled = compile(source, target=GPUTarget("cuda", architecture, 32), options=options)
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernel.cubin"
        cubin.write_bytes(compiled.asm["cubin"])
        (function,) = _disassemble(cubin).values()
    counted = function.lines
    if not variant.one_term:
        (counted,) = (loop for loop in function.loops if _holds(loop, "FFMA"))
    return replace(
        function.code,
        instructions=sum(line != "NOP" for line in counted) / (4 * groups / (32 * WARPS)),
        chunk=0,
        shared=function.code.shared + compiled.metadata.shared,
        accesses=_accesses(function.lines),
    )


def _triton_threads() -> int:
    from fedspzo_kernels.triton import WARPS

    return 32 * WARPS


def main() -> None:
    if reason := missing():
        sys.exit(f"sass: {reason}")
    build = sys.argv[1] if len(sys.argv) > 1 else "default"
    if build not in BUILDS:
        sys.exit(f"sass: no variant {build!r}: there are {', '.join(BUILDS)}")
    forms = ("whole", "rows")
    os.environ["CUDA_ARCHITECTURES"] = " ".join(map(str, ARCHITECTURES))
    with tempfile.TemporaryDirectory() as folder:
        (library,) = gpu_build.build(Path(folder), [build])
        cuda = {(a, f): cuda_kernels(library, a, f) for a in ARCHITECTURES for f in forms}
    columns = (
        "sm, kernel, dtype, stream, counted, instr., chunk, regs, blocks, stack, local, shared,"
    )
    print("|", f"{columns} accesses".replace(", ", " | "), "|")
    print("|" + " --- |" * 13)
    for architecture in ARCHITECTURES:
        kernels = {f"CUDA, {form}": cuda[architecture, form] for form in forms}
        if build == "default":
            for form in ("whole", "shifted", "rows"):
                kernels[f"Triton, {form}"] = triton_kernels(architecture, form)
        for language, found in kernels.items():
            threads = THREADS if language.startswith("CUDA") else _triton_threads()
            for variant, code in found.items():
                counted = "one term" if variant.one_term else "each term"
                counted += ", stochastic" if variant.stochastic else ""
                cells = [architecture, language, variant.dtype, variant.stream, counted]
                cells += [f"{code.instructions:.1f}", code.chunk, code.registers]
                cells += [code.blocks(architecture, threads), code.stack, code.local, code.shared]
                cells += [", ".join(f"{n} {opcode}" for opcode, n in code.accesses.items())]
                print("|", " | ".join(map(str, cells)), "|")
    print(f"\nwavefronts of a read of CUDA's table: {wavefronts(BUILDS[build]):.2f}")


if __name__ == "__main__":
    main()
