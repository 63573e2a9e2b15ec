"""What the CUDA and Triton kernels compile to: instructions an element, registers, accesses.

`make sass` prints a table for sm_80 and sm_90. It needs nvcc and the cuobjdump that triton
carries, and no GPU.
"""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from torch.utils.cpp_extension import include_paths

ROOT = Path(__file__).parent.parent
NAME = re.compile(r"perturb_kernelINS_\d+(\w+?)ENS_\d+(\w+?)ELb([01])ELb([01])E")
# Elements of a thread's turn: kPackets * kPacket in csrc/cuda/kernel.cuh.
PLACES = {("NormalNoise", True): 8, ("NormalNoise", False): 16}
SIGN_PLACES = 32


@dataclass(frozen=True)
class Kernel:
    """One kernel's machine code.

    Attributes:
        dtype: "Float32", "Bfloat16" or "Float16".
        noise: "NormalNoise" or "SignNoise".
        one_term: the kernel for one term; else the loop over terms is counted.
        stochastic: with stochastic rounding.
        instructions: in the main loop, for each element (and term).
        registers: for each thread.
        spills: bytes of spill stores and loads.
        shared: bytes of static shared memory.
        accesses: the loads and stores of the main loop by opcode.
        local: loads and stores of local memory in the whole kernel.
    """

    dtype: str
    noise: str
    one_term: bool
    stochastic: bool
    instructions: float
    registers: int
    spills: int
    shared: int
    accesses: dict[str, int]
    local: int


def missing() -> str | None:
    """Why the kernels cannot be compiled and read here, or None."""
    if shutil.which("nvcc") is None:
        return "no nvcc on the path"
    if importlib.util.find_spec("triton") is None:
        return "no triton, whose cuobjdump reads the machine code"
    return None


def cuobjdump(cubin: Path) -> str:
    spec = importlib.util.find_spec("triton")
    assert spec is not None
    assert spec.origin is not None
    program = Path(spec.origin).parent / "backends/nvidia/bin/cuobjdump"
    run = subprocess.run([program, "-sass", cubin], check=True, capture_output=True, text=True)
    return run.stdout


def triton_instructions(architecture: int, dtype: str) -> float:
    """Instructions an element of the whole Triton kernel: `normal-v1`, one term, to nearest.

    Args:
        architecture: e.g. 90.
        dtype: "fp32", "bf16" or "fp16".
    """
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile

    from fedspzo_kernels.triton import GROUPS, WARPS
    from fedspzo_kernels.triton.kernel import perturb_kernel

    types = {"theta": f"*{dtype}", "numel": "i32", "offset": "i64", "key": "i64", "seeds": "*i64"}
    types |= {"coeffs": "*fp32", "terms": "i32", "rounding_seed": "*i64", "table": "*i64"}
    constants = {"NORMAL": True, "ONE_TERM": True, "STOCHASTIC": False, "SHIFT": 0}
    constants["GROUPS"] = GROUPS
    signature = types | dict.fromkeys(constants, "constexpr")
    aligned = ("theta", "numel", "seeds", "coeffs", "rounding_seed", "table")
    source = ASTSource(
        fn=perturb_kernel,
        signature=signature,
        constexprs={(list(signature).index(name),): v for name, v in constants.items()},
        attrs={(list(signature).index(name),): [["tt.divisibility", 16]] for name in aligned},
    )
    options = {"num_warps": WARPS, "enable_fp_fusion": False}
    kernel = compile(source, target=GPUTarget("cuda", architecture, 32), options=options)
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernel.cubin"
        cubin.write_bytes(kernel.asm["cubin"])
        text = cuobjdump(cubin)
    lines = re.findall(r"/\*[0-9a-f]{4,5}\*/\s+([^;]*);", text)
    return sum(not line.startswith("NOP") for line in lines) / (4 * GROUPS / (32 * WARPS))


def kernels(architecture: int) -> list[Kernel]:
    """Compile csrc/cuda for one architecture, e.g. 90, and read every kernel."""
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "perturb.cubin"
        command = ["nvcc", f"-arch=sm_{architecture}", "-O3", "-std=c++17", "-fmad=false"]
        command += ["-DUSE_CUDA", "-DTORCH_TARGET_VERSION=0x020a000000000000", "-Xptxas", "-v"]
        command += [f"-I{path}" for path in include_paths()]
        command += ["-cubin", "-o", str(cubin), str(ROOT / "csrc/cuda/perturb.cu")]
        ptxas = subprocess.run(command, check=True, capture_output=True, text=True).stderr
        sass = cuobjdump(cubin)
    resources = {
        found[1]: ptxas[found.end() : ptxas.find("Compiling", found.end())]
        for found in re.finditer(r"Compiling entry function '(\w+)'", ptxas)
    }
    functions = sass.split("Function : ")[1:]
    return sorted((_read(text, resources) for text in functions), key=str)


def _read(function: str, resources: dict[str, str]) -> Kernel:
    name = function.split(maxsplit=1)[0]
    found = NAME.search(name)
    assert found is not None, name
    dtype, noise, one_term, stochastic = found[1], found[2], found[3] == "1", found[4] == "1"
    lines = re.findall(r"/\*([0-9a-f]{4,5})\*/\s+([^;]*);", function)
    loop = _main_loop(lines, one_term)
    places = PLACES.get((noise, one_term), SIGN_PLACES)
    opcodes = [re.sub(r"^@\S+\s+", "", text).split()[0] for text in loop]
    everything = [re.sub(r"^@\S+\s+", "", text).split()[0] for _, text in lines]
    notes = resources[name]
    spills = re.findall(r"(\d+) bytes spill", notes)
    shared = re.search(r"(\d+) bytes smem", notes)
    registers = re.search(r"Used (\d+) registers", notes)
    assert registers is not None
    return Kernel(
        dtype=dtype,
        noise=noise,
        one_term=one_term,
        stochastic=stochastic,
        instructions=len(loop) / places,
        registers=int(registers[1]),
        spills=sum(map(int, spills)),
        shared=int(shared[1]) if shared else 0,
        accesses=dict(Counter(o for o in opcodes if o.startswith(("LDG", "STG")))),
        local=sum(o.startswith(("LDL", "STL")) for o in everything),
    )


def _main_loop(lines: list[tuple[str, str]], one_term: bool) -> list[str]:
    """The loop over whole runs, which moves 16 bytes at a time; or its inner loop over terms."""
    texts = [text for _, text in lines]
    at = {int(address, 16): number for number, (address, _) in enumerate(lines)}
    loops = []
    for number, text in enumerate(texts):
        target = re.search(r"\bBRA\b.*0x([0-9a-f]+)", text)
        if target and (start := at.get(int(target[1], 16), number)) < number:
            loops.append(texts[start : number + 1])

    def holds(loop: list[str], opcode: str) -> bool:
        return any(opcode in text for text in loop)

    if one_term:
        loops = [loop for loop in loops if holds(loop, "STG.E.128")]
    else:
        loops = [loop for loop in loops if holds(loop, "LDS.128") and not holds(loop, "STG")]
        loops = [loop for loop in loops if holds(loop, "FFMA") or holds(loop, "FADD")]
    return min(loops, key=len)


def main() -> None:
    if reason := missing():
        sys.exit(f"sass: {reason}")
    print("| sm | dtype | noise | kernel | instr. | regs | spills | local | shared | accesses |")
    print("|" + " --- |" * 10)
    for architecture in (80, 90):
        for k in kernels(architecture):
            kernel = "one term" if k.one_term else "each term"
            kernel += ", stochastic" if k.stochastic else ""
            cells = [architecture, k.dtype, k.noise, kernel, f"{k.instructions:.1f}"]
            cells += [k.registers, k.spills, k.local, k.shared]
            cells.append(", ".join(f"{n} {opcode}" for opcode, n in k.accesses.items()))
            print("| " + " | ".join(map(str, cells)) + " |")
        for dtype in ("fp32", "bf16", "fp16"):
            count = triton_instructions(architecture, dtype)
            print(
                f"| {architecture} | {dtype} | Triton | one term, whole | {count:.1f} |" + " |" * 5
            )


if __name__ == "__main__":
    main()
