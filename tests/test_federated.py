"""A federation's run: its weights, the bytes that cross, its results."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from federated_toys import CLASSES, ToyTask, toy, toy_data
from small_federation import (
    FEDERATION,
    OPTIMIZER,
    SIZES,
    digests,
    train,
)

from fedspzo.federated import (
    Client,
    DigestError,
    FederationConfig,
    OptimizerConfig,
    Plan,
    Report,
    RoundResult,
    run,
)
from fedspzo.federated.optimizers import spzo
from fedspzo.federated.protocol.updates import EVERYBODY, client_seed
from fedspzo.journal.records import digest
from fedspzo.journal.replica import Replica

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.slow
@pytest.mark.parametrize("seeds", ["per-client", "shared"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_journal_alone_rebuilds_the_weights(seeds, dtype):
    result = train(replace(FEDERATION, seeds=seeds), dtype=dtype)
    replica = Replica(toy(dtype))
    assert replica.digest() == result.rounds[0].digest
    for done, entry in zip(result.rounds[1:], result.records, strict=True):
        replica.catch_up([entry])
        assert replica.digest() == done.digest
    assert len(set(digests(result))) == FEDERATION.rounds + 1  # every round moved them


def test_the_given_model_is_the_result():
    blocks = toy()
    result = run(blocks, ToyTask(), toy_data(SIZES), FEDERATION, OPTIMIZER)
    assert digest(blocks.model.named_parameters()) == result.final.digest


@pytest.mark.slow
@pytest.mark.parametrize(
    ("optimizer", "dtype", "seeds"),
    [
        (OPTIMIZER, torch.float32, "per-client"),
        (OPTIMIZER, torch.float32, "shared"),
        (OPTIMIZER, torch.bfloat16, "shared"),
        (OPTIMIZER, torch.float16, "shared"),
        (replace(OPTIMIZER, estimator="balanced"), torch.float32, "shared"),
        (replace(OPTIMIZER, estimator="coupled"), torch.float32, "shared"),
        (OptimizerConfig(estimator="mezo", perturbations=3, lr=1e-2), torch.float32, "shared"),
    ],
)
def test_one_client_with_one_local_step_is_central_training(optimizer, dtype, seeds):
    optimizer = replace(optimizer, evaluation="layerwise")
    federation = FederationConfig(clients=1, rounds=6, batch_size=4, seeds=seeds, seed=5)
    result = train(federation, optimizer, dtype=dtype, sizes=[12])

    blocks, task = toy(dtype, single=optimizer.estimator == "mezo"), ToyTask()
    batches = Client(0, Replica(blocks), toy_data([12])[0], task)
    seed = client_seed(5, EVERYBODY if seeds == "shared" else 0)
    central = spzo(blocks, optimizer, seed=seed)
    for step, done in enumerate(result.rounds[1:]):
        batch = batches.batch(5, step, 0, 4)
        central.step(lambda batch=batch: task.loss(blocks.model, batch))
        assert digest(blocks.model.named_parameters()) == done.digest, step


@pytest.mark.slow
def test_the_same_seed_gives_the_same_bits_whatever_the_threads_and_copies():
    expected = digests(train())
    assert digests(train(replicas=4)) == expected
    torch.set_num_threads(2)
    assert digests(train(replicas=3)) == expected
    assert digests(train(replace(FEDERATION, seed=12)))[1:] != expected[1:]


@pytest.mark.slow
def test_training_lowers_the_loss():
    def evaluate(model: torch.nn.Module) -> dict[str, float]:
        with torch.no_grad():
            x, y = ToyTask().collate(toy_data([*SIZES, 200])[-1])
            logits = model(x)
            accuracy = (logits.argmax(1) == y).float().mean().item()
            return {
                "loss": torch.nn.functional.cross_entropy(logits, y).item(),
                "accuracy": accuracy,
            }

    result = train(
        FederationConfig(clients=4, rounds=60, batch_size=30),
        OptimizerConfig(lr=2e-2, perturbations=(1, 4)),
        evaluate=evaluate,
        evaluate_every=25,
    )
    measured = {r.round: r for r in result.rounds if r.eval_loss is not None}
    assert list(measured) == [0, 25, 50, 60]
    assert measured[0].eval_loss > math.log(CLASSES) - 0.2
    assert measured[60].eval_loss < 0.75 * measured[0].eval_loss
    assert measured[60].accuracy > measured[0].accuracy + 0.2


def test_three_blocks_with_one_left_alone():
    """Every participant's weights move alike, and the middle block's not at all."""
    optimizer = OptimizerConfig(lr=(1e-2, 1e-2, 4e-2), perturbations=(1, 0, 3))
    blocks, start = toy(at=(1, "head")), toy(at=(1, "head"))
    result = run(blocks, ToyTask(), toy_data(SIZES), FEDERATION, optimizer, replicas=4)
    assert digest(blocks.model.named_parameters()) == result.final.digest
    assert len(set(digests(result))) == FEDERATION.rounds + 1
    for number, (group, before) in enumerate(zip(blocks.groups, start.groups, strict=True)):
        pairs = zip(group, before, strict=True)
        kept = all(torch.equal(mine, theirs) for (_, mine), (_, theirs) in pairs)
        assert kept == (number == 1)
    steps = FEDERATION.participants * FEDERATION.local_steps
    assert [len(t.seeds) for t in result.records[0].terms] == [steps, 0, 3 * steps]


def test_a_model_that_does_not_follow_is_found_in_its_round(monkeypatch):
    """Every model is compared each round, also that of a client that sits out."""
    idle = next(c for c in range(4) if all(c not in r.clients for r in train().rounds[2:3]))
    copies: list[Replica] = []
    make, follow = Replica.copy, Replica.catch_up

    def remember(self):
        copies.append(make(self))
        return copies[-1]

    def lose_a_bit(self, records):
        follow(self, records)
        if self.round == 2 and self is copies[idle]:
            with torch.no_grad():
                self.blocks.model.head.bias.view(torch.int32)[0] ^= 1

    monkeypatch.setattr(Replica, "copy", remember)
    monkeypatch.setattr(Replica, "catch_up", lose_a_bit)
    seen: list[RoundResult] = []
    with pytest.raises(DigestError, match=f"client {idle} has weights .* in round 2"):
        train(on_round=seen.append, replicas=4)
    assert [r.round for r in seen] == [0, 1]


def test_bytes_are_those_of_the_encoded_messages(monkeypatch):
    sizes: dict[type, list[int]] = {Plan: [], Report: []}
    for kind, lengths in sizes.items():

        def decode(data, lengths=lengths, original=kind.decode):
            lengths.append(len(data))
            return original(data)

        monkeypatch.setattr(kind, "decode", decode)
    result = train()
    assert result.final.bytes_down == sum(sizes[Plan])
    assert result.final.bytes_up == sum(sizes[Report])
    participations = FEDERATION.participants * FEDERATION.rounds
    assert len(sizes[Plan]) == len(sizes[Report]) == participations
    weights = sum(4 * p.numel() for p in toy().model.parameters())
    assert result.final.fedavg_bytes == weights * participations
    # 2 steps of 1 + 4 directions, 4 bytes each, beside a fixed 55
    assert result.final.bytes_up == participations * (55 + 2 * 5 * 4)


def test_shared_seeds_make_a_record_as_short_as_one_clients():
    own, shared = (
        train(replace(FEDERATION, participation=1.0, seeds=seeds))
        for seeds in ("per-client", "shared")
    )
    one = [2 * 1, 2 * 4]  # local steps x directions, block by block
    assert [len(t.seeds) for t in own.records[0].terms] == [4 * n for n in one]
    assert [len(t.seeds) for t in shared.records[0].terms] == one
    assert shared.final.bytes_down < own.final.bytes_down
    assert shared.final.bytes_up == own.final.bytes_up


def test_results_arrive_as_they_come():
    seen: list[RoundResult] = []
    result = train(on_round=seen.append)
    assert tuple(seen) == result.rounds
    assert [r.round for r in seen] == [0, 1, 2, 3, 4]
    assert seen[0].loss is None
    assert all(r.loss > 0 for r in seen[1:])
    assert all(len(r.clients) == 2 for r in seen[1:])
    assert len({r.clients for r in seen[1:]}) > 1
    for name in ("forwards", "bytes_up", "bytes_down", "fedavg_bytes", "seconds"):
        values = [getattr(r, name) for r in seen]
        assert values == sorted(set(values)), name


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: train(sizes=[3, 3]), "examples are of 2 clients, federation.clients is 4"),
        (lambda: train(sizes=[3, 3, 0, 3]), "client 2 has no examples"),
        (lambda: train(replicas=5), "replicas is 5"),
        (lambda: train(evaluate_every=0), "evaluate_every is 0"),
        (
            lambda: run(
                toy(),
                ToyTask(),
                toy_data(SIZES),
                FEDERATION,
                OptimizerConfig(estimator="mezo"),
            ),
            "estimator is 'mezo', but the model is cut into 2 blocks",
        ),
    ],
)
def test_arguments_that_do_not_fit_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
