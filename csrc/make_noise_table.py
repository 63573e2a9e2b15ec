"""Compute the table of `normal-v1` and write it for C++ and for Python.

Run `python csrc/make_noise_table.py` from the repository's root; it needs mpmath only (torch
installs it). The arithmetic is in 50 digits, so every machine writes the same files.

The normal quantile is approximated on each half of each octave of the tail probability by the
cubic that interpolates it at the four Chebyshev nodes. docs/noise.md tells why.
"""

from __future__ import annotations

import hashlib
import struct
from pathlib import Path

from mpmath import cos, erfc, erfinv, findroot, lu_solve, matrix, mp, mpf, pi, sqrt

ROOT = Path(__file__).resolve().parent.parent
SEGMENT_BITS = 1  # 2**SEGMENT_BITS segments in each octave
DEGREE = 3
OCTAVES = 32  # |f| is an odd integer below 2**31, rounded to float32: octaves 0 to 31
WORD = mpf(2) ** 32

Row = tuple[float, ...]


def upper_quantile(p: mpf) -> mpf:
    """Return the z whose upper tail probability is p, for 0 < p <= 1/2."""
    if p > mpf("1e-3"):
        return sqrt(2) * erfinv(1 - 2 * p)
    start = sqrt(-2 * mp.log(p))
    start -= mp.log(start * sqrt(2 * pi)) / start
    return findroot(lambda z: mp.log(erfc(z / sqrt(2)) / 2) - mp.log(p), start)


def cubic(low: mpf, high: mpf) -> list[mpf]:
    """Return the interpolant at the Chebyshev nodes as monomial coefficients, constant first."""
    count = DEGREE + 1
    centre, half = (low + high) / 2, (high - low) / 2
    nodes = [centre + half * cos(pi * (2 * i + 1) / (2 * count)) for i in range(count)]
    vandermonde = matrix(count, count)
    for i, node in enumerate(nodes):
        for j in range(count):
            vandermonde[i, j] = node**j
    return list(lu_solve(vandermonde, matrix([upper_quantile(node / WORD) for node in nodes])))


def to_float32(value: mpf) -> float:
    """Round to the nearest float32, ties to even (through 53 bits this would round twice)."""
    if value == 0:
        return 0.0
    exponent = mp.floor(mp.log(abs(value), 2)) - 23
    return float(mp.nint(value / mpf(2) ** exponent) * mpf(2) ** exponent)


def table() -> list[Row]:
    """Compute the rows (c0, c1, c2, c3), in the order of `bits(f) >> (23 - SEGMENT_BITS)`.

    The index keeps five bits of the biased exponent, so octave k stands at row (k - 1) mod 32.
    The last octave holds f = 2**31 alone, where the quantile is 0.
    """
    per_octave = 1 << SEGMENT_BITS
    rows: list[Row] = [(0.0,) * (DEGREE + 1)] * (OCTAVES * per_octave)
    for octave in range(OCTAVES - 1):
        for segment in range(per_octave):
            low = mpf(2) ** octave * (1 + mpf(segment) / per_octave)
            high = mpf(2) ** octave * (1 + mpf(segment + 1) / per_octave)
            index = (octave - 1) % OCTAVES * per_octave + segment
            rows[index] = tuple(to_float32(c) for c in cubic(low, high))
    return rows


def digest(rows: list[Row]) -> str:
    """Return the SHA-256 of the rows as little-endian float32."""
    flat = [value for row in rows for value in row]
    return hashlib.sha256(struct.pack(f"<{len(flat)}f", *flat)).hexdigest()


def cpp(rows: list[Row]) -> str:
    lines = [
        "// Written by csrc/make_noise_table.py: do not edit.",
        f"// SHA-256 of the rows as little-endian float32: {digest(rows)}",
        "// One row a line: c0, c1, c2, c3 of z = ((c3 t + c2) t + c1) t + c0.",
        *("{" + ", ".join(f"{value.hex()}f" for value in row) + "}," for row in rows),
    ]
    return "\n".join(lines) + "\n"


def python(rows: list[Row]) -> str:
    def bits(value: float) -> str:
        return f"0x{struct.unpack('<I', struct.pack('<f', value))[0]:08X}"

    lines = [
        '"""The table of `normal-v1`. Written by csrc/make_noise_table.py: do not edit."""',
        "",
        f"SEGMENT_BITS = {SEGMENT_BITS}",
        f'SHA256 = "{digest(rows)}"',
        "# The float32 bits of c0, c1, c2, c3 of z = ((c3 t + c2) t + c1) t + c0.",
        "ROWS = (",
        *("    (" + ", ".join(bits(value) for value in row) + ")," for row in rows),
        ")",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    rows = table()
    (ROOT / "csrc" / "noise_table.inc").write_text(cpp(rows))
    (ROOT / "fedspzo_kernels" / "noise_table.py").write_text(python(rows))
    print(f"{len(rows)} rows, SHA-256 {digest(rows)}")


mp.dps = 50
if __name__ == "__main__":
    main()
