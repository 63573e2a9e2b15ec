"""The op and the optimizer on a GPU: the same bits as on the CPU."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
from kernel_backends import same_bits
from test_perturb import DTYPES, TERMS, values

import fedspzo_kernels
from fedspzo import SPZO
from fedspzo_kernels import perturb, perturb_, perturb_rows

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device"),
]

# Around the packets (8), runs (16, 32), chunks (16384) and a launch's blocks.
SIZES = (0, 1, 7, 8, 9, 31, 32, 33, 4097, 16383, 16385, 300_001)
OFFSETS = (0, 1, 8, 4093, 2**34 - 5, 2**62 + 6)


@pytest.fixture(autouse=True, scope="module")
def _served_by_the_backend_under_test() -> None:
    """FEDSPZO_BACKEND names it, else it is cuda: another one's bits would prove nothing here."""
    backend = os.environ.get("FEDSPZO_BACKEND") or "cuda"
    reason = fedspzo_kernels.info()["backends"]["cuda"]
    assert fedspzo_kernels.serving("cuda") == backend, reason


def assert_equal(on_gpu: list[torch.Tensor], on_cpu: list[torch.Tensor]) -> None:
    for a, b in zip(on_gpu, on_cpu, strict=True):
        back, special = a.cpu(), b.isnan()
        assert torch.equal(back.isnan(), special)
        assert same_bits(back[~special], b[~special]), a.shape


@pytest.mark.parametrize("stream", list(fedspzo_kernels.STREAMS))
@pytest.mark.parametrize("rounding_seed", [None, 11])
@pytest.mark.parametrize("dtype", DTYPES)
def test_bits_equal_the_cpu(dtype: torch.dtype, rounding_seed: int | None, stream: str) -> None:
    many = tuple(range(100)), tuple(0.01 * k for k in range(100))
    for offset in OFFSETS:
        for seeds, coeffs in (*TERMS, many):
            on_cpu = [values(size, dtype) for size in SIZES]
            on_gpu = [tensor.cuda() for tensor in on_cpu]
            for tensors in (on_cpu, on_gpu):
                perturb_(
                    tensors,
                    range(len(SIZES)),
                    seeds,
                    coeffs,
                    rounding="nearest" if rounding_seed is None else "stochastic",
                    rounding_seed=rounding_seed,
                    offsets=[offset] * len(SIZES),
                    stream=stream,
                )
            assert_equal(on_gpu, on_cpu)


@pytest.mark.parametrize("dtype", DTYPES)
def test_unaligned_memory_and_nothing_outside(dtype: torch.dtype) -> None:
    for start in (1, 3, 8):
        on_cpu = torch.full((40_000,), 2.0, dtype=dtype)
        on_gpu = on_cpu.cuda()
        for whole in (on_cpu, on_gpu):
            perturb_([whole[start:-7]], [5], [1], [1.0], offsets=[start])
        assert_equal([on_gpu], [on_cpu])


def test_more_tensors_than_a_launch_holds() -> None:
    on_cpu = [torch.zeros(1 + j % 50) for j in range(1500)]
    on_gpu = [tensor.cuda() for tensor in on_cpu]
    for tensors in (on_cpu, on_gpu):
        perturb_(tensors, range(1500), [3, 4], [1.0, 0.5])
    assert_equal(on_gpu, on_cpu)


def test_more_than_two_to_the_32_elements() -> None:
    elements = 2**32 + 20_000
    if torch.cuda.mem_get_info()[0] < 2.5 * elements:
        pytest.skip("needs 11 GB of GPU memory")
    tensor = torch.zeros(elements, dtype=torch.bfloat16, device="cuda")
    perturb_([tensor], [5], [6], [1.0])
    for start in (0, 2**31 - 100, 2**32 - 100, elements - 9999):
        part = torch.zeros(9999, dtype=torch.bfloat16)
        perturb_([part], [5], [6], [1.0], offsets=[start])
        assert_equal([tensor[start : start + 9999]], [part])


def test_a_graph_replays_with_new_seeds_and_coefficients() -> None:
    tensors = [torch.zeros(50_000, device="cuda"), torch.zeros(33, device="cuda").bfloat16()]
    seeds = torch.tensor([1, 2], device="cuda")
    coeffs = torch.tensor([1.0, 0.5], device="cuda")
    random = torch.tensor(9, device="cuda")

    def step() -> None:
        perturb_(tensors, [1, 2], seeds, coeffs, rounding="stochastic", rounding_seed=random)

    step()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    for tensor in tensors:
        tensor.zero_()
    expected = [tensor.cpu() for tensor in tensors]
    for number in range(3):
        seeds.copy_(torch.tensor([10 * number, 10 * number + 1]))
        coeffs.fill_(0.1 + number)
        random.fill_(number)
        graph.replay()
        perturb_(
            expected,
            [1, 2],
            seeds.cpu(),
            coeffs.cpu(),
            rounding="stochastic",
            rounding_seed=number,
        )
    assert_equal(tensors, expected)


def test_it_runs_on_the_current_stream() -> None:
    side = torch.cuda.Stream()
    tensor = torch.zeros(1 << 24, device="cuda")
    torch.cuda.synchronize()
    with torch.cuda.stream(side):
        torch.cuda._sleep(50_000_000)
        perturb_([tensor], [1], [2], [1.0])
        done = side.record_event()
    assert not done.query()
    done.synchronize()
    expected = torch.zeros(1 << 24)
    perturb_([expected], [1], [2], [1.0])
    assert_equal([tensor], [expected])


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_a_device_that_is_not_the_current_one() -> None:
    tensors = [torch.zeros(100, device=f"cuda:{d}") for d in (1, 0)]
    perturb_(tensors, [1, 1], [2], [1.0])
    assert_equal(tensors, [fedspzo_kernels.noise(100, 1, 2)] * 2)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_step_has_the_cpus_bits_given_equal_losses(dtype: torch.dtype) -> None:
    def stepped(device: str) -> list[torch.Tensor]:
        losses = iter([1.0, 0.75, 0.5, 1.25] * 5)
        parameters = {
            name: torch.nn.Parameter(values(n, dtype)[45:].clone().to(device))
            for name, n in (("a", 5000), ("b", 133))
        }
        optimizer = SPZO(
            parameters.items(), lr=1e-2, perturbations=2, seed=3, evaluation="layerwise"
        )
        for _ in range(5):
            optimizer.step(losses.__next__)
        return [parameter.detach() for parameter in parameters.values()]

    assert_equal(stepped("cuda"), stepped("cpu"))


@pytest.mark.parametrize("stream", list(fedspzo_kernels.STREAMS))
@pytest.mark.parametrize("rounding_seed", [None, 11])
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_other_forms_have_the_cpus_bits(
    dtype: torch.dtype, rounding_seed: int | None, stream: str
) -> None:
    settings: dict[str, Any] = {"stream": stream, "rounding_seed": rounding_seed}
    settings["rounding"] = "nearest" if rounding_seed is None else "stochastic"
    many = tuple(range(70)), tuple(0.01 * k for k in range(70))
    ids = torch.tensor([49, 0, 7, 7, 12])
    for width in (1, 33, 768, 4100):
        source = values(50 * width, dtype).view(50, width)

        def forms(device: str, offset: int, terms: Any, source: Any = source) -> list[torch.Tensor]:
            there, rows = source.to(device), ids.to(device)
            (whole,) = perturb([there], [3], *terms, offsets=[offset], **settings)
            looked_up = perturb_rows(there, rows, 3, *terms, offset=offset, **settings)
            return [whole, looked_up, there]

        for offset in OFFSETS:
            for terms in (*TERMS, many):
                on_cpu = forms("cpu", offset, terms)
                assert_equal(forms("cuda", offset, terms), on_cpu)
                assert_equal(on_cpu[2:], [source])


def test_a_row_that_is_not_there_is_nan() -> None:
    rows = torch.tensor([3, 1, -1, 2**62], device="cuda")
    out = perturb_rows(torch.zeros(3, 40, device="cuda"), rows, 1, [2], [1.0])
    assert out.isnan().all(1).tolist() == [True, False, True, True]


def test_no_rows_no_columns_and_no_terms() -> None:
    source = values(120, torch.bfloat16).view(3, 40).cuda()
    for shape, ids in (((3, 40), []), ((3, 0), [2, 1]), ((0, 40), [])):
        rows = torch.tensor(ids, dtype=torch.int64, device="cuda")
        empty = torch.zeros(shape, device="cuda")
        assert perturb_rows(empty, rows, 1, [2], [1.0]).shape == (len(ids), shape[1])
    none = torch.zeros(2, 40, device="cuda")[:0]
    assert perturb_rows(none, torch.tensor([0], device="cuda"), 1, [2], [1.0]).isnan().all()
    assert_equal(perturb([source], [1], [], []), [source.cpu()])
    assert_equal(
        [perturb_rows(source, torch.tensor([2], device="cuda"), 1, [], [])], [source[2:].cpu()]
    )


def test_memory_that_is_not_aligned_in_the_other_forms() -> None:
    ids = torch.tensor([2, 0, 2, 1])
    for a, b in ((1, 1), (0, 3), (5, 8)):
        on_cpu = values(30_100, torch.bfloat16), torch.zeros(40_100, dtype=torch.bfloat16)
        on_gpu = [tensor.cuda() for tensor in on_cpu]
        for source, out in (on_cpu, on_gpu):
            table, looked_up = source[a:][:30_000].view(3, -1), out[b:][:40_000].view(4, -1)
            rows = ids.to(source.device)
            perturb_rows(table, rows, 1, [2], [1.0], offset=2**34 - 5, out=looked_up)
            part = [source[a:][:50]], [out[-60 + b :][:50]]
            perturb(part[0], [1], [2, 3], [1.0, 0.5], offsets=[a], out=part[1])
        assert_equal(on_gpu, list(on_cpu))


def test_a_lookup_does_not_wait_for_the_gpu() -> None:
    source, rows = torch.zeros(300, 40, device="cuda"), torch.arange(100, device="cuda")
    seeds, coeffs = torch.tensor([3], device="cuda"), torch.tensor([1.0], device="cuda")
    perturb_rows(source, rows, 1, seeds, coeffs)
    torch.cuda.set_sync_debug_mode("error")
    try:
        out = perturb_rows(source, rows, 1, seeds, coeffs)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert_equal([out], [fedspzo_kernels.noise(4000, 1, 3).view(100, 40)])
