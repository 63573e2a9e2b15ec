"""What holds for every baseline: one call, one kind of result, the server's draws."""

from __future__ import annotations

import math

import pytest
from federated_toys import ToyTask, toy
from published_rules import DATA, FEDERATION, TASK
from torch import Tensor, nn

from fedspzo.baselines import METHODS
from fedspzo.federated import OptimizerConfig, RunResult

pytestmark = pytest.mark.usefixtures("one_thread")


every_method = pytest.mark.parametrize("name", [n for n in METHODS if n != "fedavg-lora"])


@every_method
def test_every_method_is_called_alike(name):
    seen = []
    settings = OptimizerConfig(lr=1e-3)
    result = METHODS[name](
        toy(),
        TASK,
        DATA,
        FEDERATION,
        settings,
        evaluate=lambda model: {"loss": 1.0, "accuracy": 0.5},
        evaluate_every=2,
        on_round=seen.append,
    )
    assert isinstance(result, RunResult)
    assert tuple(seen) == result.rounds
    assert [r.round for r in result.rounds] == [0, 1, 2]
    assert [r.eval_loss for r in result.rounds] == [1.0, None, 1.0]
    first, last = result.rounds[0], result.final
    assert first.forwards == first.bytes_up == 0 == first.bytes_down
    assert first.loss is None
    assert 0 < result.rounds[1].forwards < last.forwards
    assert last.bytes_up > 0
    assert last.bytes_down > 0
    assert last.loss > 0
    assert first.digest != last.digest


class NoLoss(ToyTask):
    """A task whose losses are never finite."""

    def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return super().loss(model, batch) * math.nan


@every_method
@pytest.mark.filterwarnings("ignore:step .* was skipped")
def test_a_loss_that_is_not_finite_moves_nothing(name):
    blocks = toy()
    settings = OptimizerConfig(lr=1e-3)
    result = METHODS[name](blocks, NoLoss(), DATA, FEDERATION, settings)
    final = result.final
    assert final.digest == result.rounds[0].digest
    assert final.loss is None
    assert final.skipped == (2 if name == "mezo" else 12)
    assert final.clients == ((0,) if name == "mezo" else (0, 1, 2))
