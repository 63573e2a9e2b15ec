from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from federated_toys import CLASSES, ToyTask, toy, toy_data

from fedspzo.federated import (
    Client,
    DigestError,
    FederationConfig,
    OptimizerConfig,
    Plan,
    Report,
    RoundResult,
    RunResult,
    Server,
    run,
)
from fedspzo.federated.client import resolve, spzo
from fedspzo.federated.coefficients import weights
from fedspzo.federated.protocol.updates import EVERYBODY, client_seed
from fedspzo.journal.records import digest
from fedspzo.journal.replica import Replica


@pytest.fixture(autouse=True)
def one_thread():
    """A toy model on several threads waits for its threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


SIZES = [5, 9, 16, 30]
OPTIMIZER = OptimizerConfig(lr=1e-2, perturbations=(1, 4))
FEDERATION = FederationConfig(clients=4, rounds=4, local_steps=2, participation=0.5, seed=11)


def train(
    federation: FederationConfig = FEDERATION,
    optimizer: OptimizerConfig = OPTIMIZER,
    *,
    dtype: torch.dtype = torch.float32,
    sizes: list[int] = SIZES,
    **options,
) -> RunResult:
    blocks = toy(dtype, single=optimizer.estimator == "mezo")
    return run(blocks, ToyTask(), toy_data(sizes), federation, optimizer, **options)


def digests(result: RunResult) -> list[str]:
    return [r.digest for r in result.rounds]


def a_federation(
    federation: FederationConfig = FEDERATION, optimizer: OptimizerConfig = OPTIMIZER
) -> tuple[Server, list[Client]]:
    """A server and clients that each have a model of their own."""
    base = Replica(toy())
    clients = [
        Client(number, base.copy(), examples, ToyTask())
        for number, examples in enumerate(toy_data(SIZES))
    ]
    return Server(base, federation, resolve(optimizer, clients, batch_size=8)), clients


def a_round(server: Server, clients: list[Client]) -> list[Report]:
    return [clients[number].handle(plan_of(server, clients[number])) for number in server.sample()]


def plan_of(server: Server, client: Client, *, train: bool = True) -> Plan:
    return server.plan(client.client, since=client.replica.round, train=train)


# --- the weights ---


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


# --- what crosses ---


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


# --- a client ---


def test_a_client_returns_exactly_and_its_seeds_are_its_own():
    server, clients = a_federation()
    first, second = (clients[i] for i in server.sample())
    before = first.replica.digest()
    reports = a_round(server, clients)
    assert {r.digest for r in reports} == {before} == {server.digest}
    assert digest(first.replica.blocks.model.named_parameters()) == before
    again = Client(first.client, second.replica, first.examples, ToyTask())
    assert again.handle(plan_of(server, first)) == reports[0]  # on another copy of the model
    stranger = Client(second.client, first.replica, first.examples, ToyTask())
    assert stranger.handle(plan_of(server, second)).gradients != reports[0].gradients


def test_batches_follow_from_seed_round_client_and_step():
    examples = list(range(100))

    class Plain(ToyTask):
        def collate(self, examples):
            return tuple(examples)

    replica = Replica(toy())
    a, b = (Client(number, replica, examples, Plain()) for number in (0, 1))
    base = a.batch(1, 2, 3, 8)
    assert len(set(base)) == 8
    assert a.batch(1, 2, 3, 8) == base
    others = [a.batch(0, 2, 3, 8), a.batch(1, 0, 3, 8), a.batch(1, 2, 0, 8), b.batch(1, 2, 3, 8)]
    assert len({base, *others}) == 5


def test_a_client_that_missed_rounds_catches_up():
    server, clients = a_federation(replace(FEDERATION, participation=0.25, rounds=8))
    for _ in range(8):
        server.aggregate(a_round(server, clients))
    late = min(clients, key=lambda c: c.replica.round)
    missed = 8 - late.replica.round
    assert missed > 1
    plan = Plan.decode(plan_of(server, late, train=False).encode())
    assert len(plan.updates) == missed
    report = late.handle(plan)
    assert late.replica.round == 8
    assert report.digest == server.digest
    assert report.gradients.steps == ()


def test_a_client_with_other_weights_says_so():
    server, clients = a_federation()
    number = server.sample()[0]
    with torch.no_grad():
        clients[number].replica.blocks.model.head.bias[0] += 1e-6
    with pytest.raises(DigestError, match=f"client {number} has weights with digest .* round 0"):
        clients[number].handle(plan_of(server, clients[number]))


def test_a_client_refuses_plans_of_others_and_from_the_past():
    server, clients = a_federation()
    a, b = server.sample()
    with pytest.raises(ValueError, match=f"plan is for client {a}, this is client {b}"):
        clients[b].handle(plan_of(server, clients[a]))
    old = plan_of(server, clients[a])
    server.aggregate(a_round(server, clients))
    clients[a].handle(plan_of(server, clients[a], train=False))
    with pytest.raises(ValueError, match=r"plan is for round 0, client .* is at round 1"):
        clients[a].handle(old)
    server.aggregate(a_round(server, clients))
    gap = server.plan(a, since=1)
    fresh = Client(a, Replica(toy()), toy_data([3])[0], ToyTask())
    with pytest.raises(ValueError, match="cannot apply the record of round 1"):
        fresh.handle(gap)


def test_an_exception_in_a_step_leaves_the_global_weights():
    server, clients = a_federation()
    client = clients[server.sample()[0]]
    calls = iter(range(100))

    class Fails(ToyTask):
        def loss(self, model, batch):
            if next(calls) == 9:
                raise ZeroDivisionError
            return super().loss(model, batch)

    client.task = Fails()
    with pytest.raises(ZeroDivisionError):
        client.handle(plan_of(server, client))
    assert client.replica.digest() == server.digest


# --- skipped steps ---


class Diverges(ToyTask):
    """Its loss is not finite for every batch that holds label 0."""

    def loss(self, model, batch):
        value = super().loss(model, batch)
        return value * math.nan if (batch[1] == 0).any() else value


@pytest.mark.parametrize("seeds", ["per-client", "shared"])
@pytest.mark.filterwarnings("ignore:step .* was skipped")
def test_skipped_steps_contribute_nothing(seeds):
    server, clients = a_federation(replace(FEDERATION, participation=1.0, seeds=seeds))
    clients[2].task = Diverges()
    reports = a_round(server, clients)
    assert reports[2].gradients.steps == ()
    assert reports[2].loss is None
    assert reports[2].digest == server.digest
    update = server.aggregate(reports).update
    if seeds == "per-client":
        assert [client for client, _ in update.entries] == [0, 1, 3]
    else:
        shares = weights(reports, server.federation.weighting)
        mean = sum(shares[i] * reports[i].gradients.values.astype(float) for i in (0, 1, 3))
        values = update.entries[0][1].values
        np.testing.assert_allclose(values[:, 0], -1e-2 * mean[:, 0], rtol=1e-6)


@pytest.mark.filterwarnings("ignore:step .* was skipped")
def test_a_round_in_which_nobody_took_a_step_moves_nothing():
    blocks = toy()
    data = [[(x, 0) for x, _ in client] for client in toy_data(SIZES)]
    result = run(blocks, Diverges(), data, FEDERATION, OPTIMIZER)
    assert len(set(digests(result))) == 1
    assert result.final.loss is None
    assert result.final.skipped == FEDERATION.participants * 4 * 2
    assert all(len(t.seeds) == 0 for entry in result.records for t in entry.terms)


# --- the server ---


def test_coefficients_are_learning_rate_weight_and_gradient():
    server, clients = a_federation(replace(FEDERATION, participation=1.0))
    reports = a_round(server, clients)
    update = server.aggregate(reports).update
    for (client, made), report in zip(update.entries, reports, strict=True):
        weight = SIZES[client] / sum(SIZES)
        g = report.gradients.values.astype(np.float64)
        np.testing.assert_allclose(made.values[:, 0], -1e-2 * weight * g[:, 0], rtol=1e-6)
        np.testing.assert_allclose(
            made.values[:, 1:], -4e-2 * weight * g[:, 1:] / 4, rtol=1e-6
        )  # by the rule, 4 / 1 times block 1's


def test_weighting():
    server, clients = a_federation(replace(FEDERATION, participation=1.0))
    reports = a_round(server, clients)
    assert weights(reports, server.federation.weighting) == {i: n / 60 for i, n in enumerate(SIZES)}
    server, _ = a_federation(replace(FEDERATION, participation=1.0, weighting="uniform"))
    assert weights(reports, server.federation.weighting) == dict.fromkeys(range(4), 0.25)


def test_shared_scalars_are_averaged():
    server, clients = a_federation(replace(FEDERATION, participation=1.0, seeds="shared"))
    reports = a_round(server, clients)
    ((client, made),) = server.aggregate(reports).update.entries
    assert client == EVERYBODY
    mean = sum(SIZES[i] / 60 * r.gradients.values.astype(float) for i, r in enumerate(reports))
    np.testing.assert_allclose(made.values[:, 0], -1e-2 * mean[:, 0], rtol=1e-6)


def test_sampling_is_fair_and_deterministic():
    federation = replace(FEDERATION, rounds=400)
    server, _ = a_federation(federation)
    counts = np.zeros(4)
    samples = []
    for number in range(400):
        server.replica.round = number
        samples.append(server.sample())
        assert samples[-1] == server.sample() == tuple(sorted(set(samples[-1])))
        counts[list(samples[-1])] += 1
    assert abs(counts - 200).max() < 6 * 10  # binomial(400, 1/2): sigma 10
    assert replace(FEDERATION, participation=0.01).participants == 1


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


# --- settings ---


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"clients": 0}, "clients is 0"),
        ({"clients": 2.0}, "clients is 2.0"),
        ({"rounds": True}, "rounds is True"),
        ({"local_steps": 65536}, "local_steps is 65536"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"participation": 0.0}, "participation is 0.0"),
        ({"participation": 1.5}, "participation is 1.5; give a share"),
        ({"participation": math.nan}, "participation is nan"),
        ({"alpha": -1.0}, "alpha is -1.0"),
        ({"seed": 2**64}, "seed is 18446744073709551616"),
        ({"seed": -1}, "seed is -1"),
        ({"partition": "random"}, "partition is 'random'; give one of 'iid', 'dirichlet'"),
        ({"seeds": "own"}, "seeds is 'own'"),
        ({"weighting": "size"}, "weighting is 'size'"),
        ({"aggregation": "best"}, "aggregation is 'best'; give one of 'mean', 'trimmed-mean'"),
        ({"aggregation": "krum"}, "aggregation is 'krum', .* set seeds = 'shared'"),
        ({"byzantine": 0.5}, "byzantine is 0.5; give a share from 0, below 0.5"),
        ({"byzantine": -0.1}, "byzantine is -0.1"),
        ({"clip": 0.5}, "clip is 0.5; give at least 1"),
        ({"clip": math.nan}, "clip is nan"),
        ({"quorum": 0}, "quorum is 0"),
        ({"quorum": 1.1}, "quorum is 1.1; give a share"),
        ({"retries": -1}, "retries is -1"),
    ],
)
def test_federation_settings_are_checked(changes, message):
    with pytest.raises(ValueError, match=message):
        replace(FEDERATION, **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lr": 0.0}, "lr is 0.0"),
        ({"lr": None}, "lr is None"),
        ({"lr": (1.0, math.inf)}, "lr is inf"),
        ({"lr": (1.0,)}, r"lr is \(1.0,\); give one number, or one for each of several blocks"),
        ({"lr": ()}, r"lr is \(\)"),
        (
            {"lr": (1.0, 2.0, 3.0)},
            r"lr is \(1.0, 2.0, 3.0\), perturbations is \(1, 4\); .* of both",
        ),
        ({"eps": -1e-3}, "eps is -0.001"),
        ({"estimator": "spsa"}, "estimator is 'spsa'; give one of anchored, balanced"),
        ({"sides": "both"}, "sides is 'both'"),
        ({"rounding": "down"}, "rounding is 'down'"),
        ({"perturbations": 4}, r"perturbations is 4; give one number a block, \[P1, P2\]"),
        ({"perturbations": (4,)}, r"perturbations is \(4,\); give one number a block"),
        ({"perturbations": (1,) * 256}, "give one number a block, .* at most 255"),
        ({"perturbations": (0, 0, 0)}, "give at least one block some"),
        ({"perturbations": (1, 2, -1)}, r"perturbations \(P3\) is -1"),
        ({"perturbations": (65535, 1)}, "give 1 to 65535 directions in all"),
        (
            {"perturbations": (1, 0), "estimator": "balanced"},
            "perturbations is 0; pass an int of at least 1",
        ),
        ({"perturbations": (256, 256), "estimator": "balanced"}, "1 to 65535 directions in all"),
        (
            {"perturbations": (1, 2, 3), "estimator": "balanced"},
            r"needs two blocks, but there are 3; .* \[P1, P2\]",
        ),
        (
            {"perturbations": (1, 1), "estimator": "balanced", "sides": "two"},
            "needs at least 2; raise P2",
        ),
        ({"sides": "one", "estimator": "coupled"}, "sides is 'one', but 'coupled'"),
        ({"estimator": "mezo"}, r"perturbations is \(1, 4\)"),
        ({"estimator": "mezo", "perturbations": 1, "lr": (1.0, 2.0)}, "but 'mezo' has one block"),
    ],
)
def test_optimizer_settings_are_checked(changes, message):
    with pytest.raises(ValueError, match=message):
        replace(OPTIMIZER, **changes)


def test_settings_are_resolved_from_the_model():
    client = Client(0, Replica(toy(torch.bfloat16)), toy_data([4])[0], ToyTask())
    before = client.replica.digest()
    made = resolve(OptimizerConfig(lr=1e-3, at=-1), [client], batch_size=2)
    assert (made.sides, made.rounding, made.at) == ("two", "stochastic", "auto")
    p1, p2 = made.perturbations
    assert p1 == 1
    assert p2 == 2
    assert made.lr == (1e-3, p2 / p1 * 1e-3)
    assert client.replica.digest() == before
    assert resolve(made, [client], batch_size=2) == made
    balanced = resolve(OptimizerConfig(lr=1e-3, estimator="balanced"), [client], batch_size=2)
    p1, p2 = balanced.perturbations
    assert (p1, p2 % 2) == (1, 0)
    assert balanced.lr == (1e-3, p2 * 1e-3)
    mezo = resolve(
        OptimizerConfig(lr=1e-3, estimator="mezo"),
        [Client(0, Replica(toy(single=True)), toy_data([4])[0], ToyTask())],
        batch_size=2,
    )
    assert (mezo.perturbations, mezo.lr) == (1, (1e-3,))


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


def test_settings_for_another_number_of_blocks_are_named():
    client = Client(0, Replica(toy(at=(1, "head"))), toy_data([4])[0], ToyTask())
    for settings, message in (
        (OPTIMIZER, r"perturbations is \(1, 4\), but there are 3 blocks"),
        (OptimizerConfig(lr=(1.0, 1.0)), r"lr is \(1.0, 1.0\), but there are 3 blocks"),
        (OptimizerConfig(estimator="balanced"), "'balanced' needs two blocks, but there are 3"),
    ):
        with pytest.raises(ValueError, match=message):
            resolve(settings, [client], batch_size=2)


def test_the_settings_of_mezo_take_one_rate():
    made = OptimizerConfig(estimator="mezo", perturbations=3, lr=(1e-3,))
    assert (made.directions, made.learning_rates) == ((3,), (1e-3,))


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


def test_settings_load_without_torch_or_numpy():
    code = (
        "import sys, fedspzo.federated.settings as s; s.FederationConfig(clients=2, rounds=1);"
        "sys.exit(any(m in sys.modules for m in ('torch', 'numpy')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
