"""The noise streams: known answers on every backend, and what makes them addressable."""

from __future__ import annotations

import functools
import importlib.util
import shutil
import subprocess
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import scipy.special
import torch
from kernel_backends import Op, perturb, same_bits, signed
from torch import Tensor

from fedspzo_kernels import noise, noise_table, parameter_key, reference
from fedspzo_kernels.streams import STREAMS

TESTS = Path(__file__).parent
TABLE_SHA256 = "90c97223051b954007b5e75270313092308909246741763c9e9d8107699a2883"


def rows(name: str) -> list[list[str]]:
    lines = (TESTS / "data" / name).read_text().splitlines()
    return [line.split() for line in lines if not line.startswith("#")]


def test_known_answers(backend: Op) -> None:
    for stream, key, seed, index, bits in rows("noise.txt"):
        z = perturb(
            backend,
            torch.zeros(1),
            key=signed(int(key, 16)),
            offset=int(index),
            seeds=(signed(int(seed, 16)),),
            stream=STREAMS[stream],
        )
        expected = int(bits, 16) if int(bits, 16) != 0x80000000 else 0  # 0 + -0 is 0
        assert z.view(torch.int32).item() & 0xFFFFFFFF == expected, (stream, key, seed, index)


def test_philox_known_answers_in_the_reference() -> None:
    for row in rows("philox4x32_10.txt"):
        words = [torch.tensor(int(word, 16)) for word in row]
        assert reference.philox4x32(words[:4], words[4:6]) == words[6:]


def test_transform_known_answers_in_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    table = rows("normal_words.txt")
    words = torch.tensor([int(word, 16) for word, _ in table])
    monkeypatch.setattr(reference, "words", lambda *_: words)
    z = reference.normal(words, 0, torch.tensor(0))
    assert [f"{bits & 0xFFFFFFFF:08x}" for bits in z.view(torch.int32).tolist()] == [
        bits for _, bits in table
    ]


@pytest.fixture(params=["c++", "nvcc"])
def host_program(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[str], Path]:
    """Compiles a program of tests/host with the host's compiler, and with nvcc for the host."""
    compiler = shutil.which(request.param)
    if compiler is None:
        pytest.skip(f"no {request.param} on the path")
    flags = ["-x", "cu", "-fmad=false"] if request.param == "nvcc" else ["-ffp-contract=off"]

    def build(name: str) -> Path:
        program = tmp_path / name
        source = TESTS / "host" / f"{name}.cpp"
        subprocess.run(
            [compiler, "-O2", "-std=c++17", *flags, source, "-o", program],
            check=True,
            capture_output=True,
        )
        return program

    return build


@pytest.mark.slow
def test_known_answers_of_the_shared_header(host_program: Callable[[str], Path]) -> None:
    philox, normal = rows("philox4x32_10.txt"), rows("normal_words.txt")
    asked = ["philox " + " ".join(row[:6]) for row in philox]
    asked += ["normal " + row[0] for row in normal]
    done = subprocess.run(
        [host_program("noise")], input="\n".join(asked), text=True, capture_output=True, check=True
    )
    assert done.stdout.splitlines() == [" ".join(r[6:]) for r in philox] + [r[1] for r in normal]


# Stream, seed, key, offset, elements: the ends of each range; carries into a counter's high word.
SPANS = (
    ("normal-v1", 0, 0, 0, 4_000_000),
    ("normal-v1", 2**64 - 1, 2**64 - 1, 2**62 + 3, 2_000_000),
    ("normal-v1", 0x0123456789ABCDEF, 0xFEDCBA9876543210, 2**34 - 1_000_003, 2_000_000),
    ("normal-v1", 1, 2**32, 2**63 - 2_000_001, 2_000_000),
    ("rademacher-v1", 2**63, 5, 2**39 - 500_001, 1_000_000),
    ("rademacher-v1", 7, 2**63, 2**63 - 1_000_001, 1_000_000),
)


@functools.cache
def span_of_the_reference(stream: str, seed: int, key: int, offset: int, elements: int) -> Tensor:
    parts = (torch.arange(elements) + offset).split(1 << 16)
    z = reference.NOISE[STREAMS[stream]]
    return torch.cat([z(part, key, torch.tensor(signed(seed))) for part in parts])


@pytest.mark.slow
def test_twelve_million_elements_of_the_shared_header(host_program: Callable[[str], Path]) -> None:
    program = host_program("stream")
    for span in SPANS:
        done = subprocess.run([program, *map(str, span)], capture_output=True, check=True)
        got = torch.frombuffer(bytearray(done.stdout), dtype=torch.float32)
        assert same_bits(got, span_of_the_reference(*span)), span


@pytest.mark.slow
def test_the_cuda_kernel_visits_each_element_once(host_program: Callable[[str], Path]) -> None:
    done = subprocess.run([host_program("layout")], text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stdout
    assert int(done.stdout) == 3 * 2 * 15 * (21 + 7 + 1)


def test_table_is_what_its_script_computes() -> None:
    path = TESTS.parent / "csrc" / "make_noise_table.py"
    spec = importlib.util.spec_from_file_location("make_noise_table", path)
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    table = script.table()
    assert script.digest(table) == TABLE_SHA256 == noise_table.SHA256
    assert (TESTS.parent / "csrc" / "noise_table.inc").read_text() == script.cpp(table)
    assert Path(noise_table.__file__).read_text() == script.python(table)


@pytest.mark.slow
def test_transform_follows_the_normal_quantile(monkeypatch: pytest.MonkeyPatch) -> None:
    """Exact for each of the words tried, which are dense in every octave: no sampling error."""
    exponents = np.linspace(0, 31, 2_000_000, endpoint=False)
    words = torch.from_numpy(np.unique((2.0**exponents).astype(np.int64)))
    monkeypatch.setattr(reference, "words", lambda *_: words)
    z = reference.normal(words, 0, torch.tensor(0)).double().numpy()
    tail = (words.numpy() | 1) / 2.0**32
    assert np.abs(scipy.special.ndtr(-z) - tail).max() < 8.3e-6
    far = tail < 1e-3
    assert np.abs(z + scipy.special.ndtri(tail))[far].max() < 3e-5


def test_a_shard_regenerates_its_slice(backend: Op) -> None:
    for stream in STREAMS.values():
        whole = perturb(backend, torch.zeros(10_000), key=3, seeds=(5,), stream=stream)
        for start, stop in ((0, 1), (1, 4), (4095, 4099), (777, 9_999)):
            shard = torch.zeros(stop - start)
            perturb(backend, shard, key=3, offset=start, seeds=(5,), stream=stream)
            assert torch.equal(shard, whole[start:stop])


def test_streams_differ_by_seed_key_and_high_words() -> None:
    base = noise(64, key=1, seed=1)
    others = [
        noise(64, key=2, seed=1),
        noise(64, key=1, seed=2),
        noise(64, key=1 + 2**32, seed=1),
        noise(64, key=1, seed=1 + 2**32),
        noise(64, key=1, seed=1, offset=2**34),
        noise(64, key=1, seed=1, stream="rademacher-v1"),
    ]
    assert not any(torch.isin(base, other).any() for other in others[:-1])
    assert set(others[-1].tolist()) == {-1.0, 1.0}


def test_parameter_key_never_changes() -> None:
    assert parameter_key("model.embed_tokens.weight") == 17744852841324204394
    assert parameter_key("") == 0xB4B2797457A0A6E4


def test_fma_is_rounded_once() -> None:
    """Against exact rational arithmetic, on operands that make double rounding show."""
    generator = torch.Generator().manual_seed(0)
    a, b, c = (torch.randn(20_000, generator=generator) for _ in range(3))
    c = c * torch.exp2(torch.randint(-30, 30, c.shape, generator=generator).float())
    # 1 + 2**-24 + 2**-60 lies just above a tie of float32; in float64 it is the tie.
    a[0], b[0], c[0] = 1 + 2.0**-18, 2.0**-24 * (1 - 2.0**-18), 1.0
    a[1], b[1], c[1] = 1 + 2.0**-18, 2.0**-24 * (1 - 2.0**-18), 1 + 2.0**-23
    result = reference.fma(a, b, c)
    for x, y, z, r in zip(a.tolist(), b.tolist(), c.tolist(), result.tolist(), strict=True):
        exact = Fraction(x) * Fraction(y) + Fraction(z)
        here = torch.tensor(r)
        down, up = (torch.nextafter(here, torch.tensor(s * torch.inf)).item() for s in (-1, 1))
        error = abs(exact - Fraction(r))
        assert error <= abs(exact - Fraction(down))
        assert error <= abs(exact - Fraction(up))
