from __future__ import annotations

import math
import signal

import numpy as np
import pytest
import torch
from federated_toys import toy
from torch import nn

from fedspzo.blocks.cut import Blocks
from fedspzo.journal import records as journal
from fedspzo.journal.records import Record, Terms, apply, digest
from fedspzo.journal.replica import Replica
from fedspzo_kernels import parameter_key, perturb_

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def terms(count: int, *, start: int = 0) -> Terms:
    seeds = np.arange(count, dtype=np.uint64) + np.uint64(2**63 + start)
    return Terms(seeds, np.linspace(-0.1, 0.2, count, dtype=np.float32))


def a_record(round: int = 0, *, rounding_seed: int | None = None) -> Record:
    return Record(round, (terms(3, start=10 * round), terms(5, start=10 * round)), rounding_seed)


def bits(model: nn.Module) -> list[bytes]:
    return [p.detach().view(torch.uint8).numpy().tobytes() for p in model.parameters()]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rounding_seed", [None, 2**64 - 1])
def test_a_record_is_one_op_a_block_in_the_order_of_its_terms(monkeypatch, dtype, rounding_seed):
    calls = []

    def spy(*args, **kwargs):
        calls.append(args)
        perturb_(*args, **kwargs)

    monkeypatch.setattr(journal, "perturb_", spy)
    blocks, expected = toy(dtype), toy(dtype)
    record = a_record(rounding_seed=rounding_seed)
    apply(record, blocks.groups)

    assert len(calls) == 2
    for group, block_terms in zip(expected.groups, record.terms, strict=True):
        for name, parameter in group:  # by hand: one tensor at a time
            perturb_(
                [parameter],
                [parameter_key(name)],
                [int(seed) for seed in block_terms.seeds],
                block_terms.coeffs.tolist(),
                rounding="nearest" if rounding_seed is None else "stochastic",
                rounding_seed=rounding_seed,
            )
    assert bits(blocks.model) == bits(expected.model)
    assert bits(blocks.model) != bits(toy(dtype).model)


def test_a_record_of_another_cut_changes_nothing():
    blocks = toy(single=True)
    with pytest.raises(ValueError, match="terms for 2 blocks, the model has 1"):
        apply(a_record(), blocks.groups)
    assert bits(blocks.model) == bits(toy().model)


def test_a_record_without_terms_keeps_every_bit():
    blocks = toy(torch.bfloat16)
    with torch.no_grad():
        blocks.model.head.bias.fill_(-0.0)
    before = bits(blocks.model)
    apply(Record(0, (terms(0), terms(0)), rounding_seed=1), blocks.groups)
    assert bits(blocks.model) == before


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_coefficient_must_be_finite(bad):
    coeffs = np.array([0.0, bad], dtype=np.float32)
    with pytest.raises(ValueError, match=r"coeffs\[1\] is -?(nan|inf)"):
        Terms(np.zeros(2, np.uint64), coeffs)


def test_terms_must_fit_together():
    with pytest.raises(ValueError, match="1 entries for 2 seeds"):
        Terms(np.zeros(2, np.uint64), np.zeros(1, np.float32))
    with pytest.raises(TypeError, match="seeds is a int64 array"):
        Terms(np.zeros(2, np.int64), np.zeros(2, np.float32))
    with pytest.raises(TypeError, match="coeffs is a float64 array"):
        Terms(np.zeros(2, np.uint64), np.zeros(2))


def test_digest_known_answer():
    # weights saved by one release are checked by the next
    named = [("b", torch.arange(6.0).reshape(2, 3)), ("a", torch.ones(2, dtype=torch.bfloat16))]
    assert digest(named) == "0667113e34d4323318c974eae94849a4"


@pytest.mark.parametrize("dtype", DTYPES)
def test_digest_sees_every_bit(dtype):
    tensor = torch.zeros(5, 3, dtype=dtype)
    original = digest([("w", tensor)])
    for bit in range(8 * tensor.element_size()):
        changed = tensor.clone()
        data = changed.view(torch.uint8).reshape(-1)
        data[2 * tensor.element_size() + bit // 8] ^= 1 << bit % 8
        assert digest([("w", changed)]) != original, bit


def test_digest_sees_names_shapes_and_dtypes_but_no_layout():
    x = torch.arange(6.0).reshape(2, 3)
    original = digest([("w", x)])
    assert digest([("v", x)]) != original
    assert digest([("w", x.reshape(3, 2))]) != original
    assert digest([("w", torch.zeros(2, dtype=torch.float16))]) != digest(
        [("w", torch.zeros(2, dtype=torch.bfloat16))]
    )
    assert digest([("w", x.t().contiguous().t())]) == original
    y = torch.ones(())
    assert digest([("w", x), ("s", y)]) == digest([("s", y), ("w", x)])
    with pytest.raises(ValueError, match="'w' is there twice"):
        digest([("w", x), ("w", y)])


@pytest.mark.parametrize("dtype", DTYPES)
def test_restore_is_exact_after_any_steps(dtype):
    replica = Replica(toy(dtype))
    replica.catch_up([a_record(rounding_seed=3)])
    before, known = bits(replica.blocks.model), replica.digest()
    with replica.local_steps():
        for round in range(50):
            apply(a_record(round, rounding_seed=round), replica.blocks.groups)
        assert bits(replica.blocks.model) != before
        assert replica.digest() == digest(replica.blocks.model.named_parameters()) != known
    assert bits(replica.blocks.model) == before
    assert replica.digest() == known


def test_restore_after_an_exception_nan_and_infinity():
    replica = Replica(toy())
    before = bits(replica.blocks.model)

    def fail() -> None:
        with replica.local_steps(), torch.no_grad():
            replica.blocks.model.head.weight.fill_(math.nan)
            replica.blocks.model.head.bias.fill_(math.inf)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert bits(replica.blocks.model) == before


def test_digest_with_a_snapshot_still_sees_one_bit():
    replica = Replica(toy())
    replica.snapshot()
    known = replica.digest()
    with torch.no_grad():
        replica.blocks.model.head.bias.zero_()
        replica.snapshot()  # of the same round: keeps the first one
        assert replica.digest() != known
        replica.restore()
        assert replica.digest() == known
        replica.blocks.model.layers[0].weight.view(torch.int32)[3, 2] ^= 1
    assert replica.digest() == digest(replica.blocks.model.named_parameters()) != known


def test_digest_with_a_snapshot_tells_minus_zero_from_zero():
    replica = Replica(toy())
    with torch.no_grad():
        replica.blocks.model.head.bias.zero_()
        replica.snapshot()
        known = replica.digest()
        replica.blocks.model.head.bias.neg_()
    assert replica.digest() != known


def test_replica_covers_frozen_weights():
    a, b = toy().model, toy().model
    for model in (a, b):
        model.layers[0].weight.requires_grad_(False)
    with torch.no_grad():
        b.layers[0].weight[0, 0] += 1
    replicas = [Replica(Blocks.single(model)) for model in (a, b)]
    assert replicas[0].digest() == digest(a.named_parameters())
    assert replicas[0].digest() != replicas[1].digest()
    whole = Replica(toy()).trainable_bytes
    assert replicas[0].trainable_bytes == whole - 4 * a.layers[0].weight.numel()


def test_catch_up_skips_what_is_known_and_refuses_a_gap():
    records = [a_record(round) for round in range(4)]
    straight, late = Replica(toy()), Replica(toy())
    straight.catch_up(records)
    late.catch_up(records[:2])
    with pytest.raises(ValueError, match="is at round 2 and cannot apply the record of round 3"):
        late.catch_up(records[3:])
    late.catch_up(records)
    assert late.round == straight.round == 4
    assert late.digest() == straight.digest()


def test_ctrl_c_never_leaves_half_a_record(monkeypatch):
    expected, replica = Replica(toy()), Replica(toy())
    expected.catch_up([a_record(0)])

    def interrupted(*args, **kwargs):
        perturb_(*args, **kwargs)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(journal, "perturb_", interrupted)
    with pytest.raises(KeyboardInterrupt):
        replica.catch_up([a_record(0), a_record(1)])
    assert replica.round == 1
    assert replica.digest() == expected.digest()


def test_restore_needs_a_snapshot_of_this_round():
    replica = Replica(toy())
    with pytest.raises(RuntimeError, match="no snapshot of round 0"):
        replica.restore()
    replica.snapshot()
    replica.catch_up([a_record()])
    with pytest.raises(RuntimeError, match="no snapshot of round 1"):
        replica.restore()


def test_a_copy_keeps_tied_storages_and_is_its_own():
    model = toy().model
    model.twin = nn.Parameter(model.head.weight.data)  # two Parameters over one storage
    replica = Replica(Blocks.single(model))
    twin = replica.copy()
    assert twin.digest() == replica.digest()
    record = Record(0, (terms(2),))
    replica.catch_up([record])
    assert twin.digest() != replica.digest()
    twin.catch_up([record])
    assert twin.digest() == replica.digest()
    assert twin.blocks.model.twin.data_ptr() == twin.blocks.model.head.weight.data_ptr()
