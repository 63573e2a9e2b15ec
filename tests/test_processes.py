"""Several processes: shared data, DistributedDataParallel, and models sharded by fully_shard."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
from forked_python import ForkedPython
from process_toys import CASES, alone, in_processes, shards, shared_data
from spzo_toys import llama

from fedspzo import SPZO, split
from fedspzo.privacy import Mechanism, Privacy

pytestmark = pytest.mark.slow

by_one = cache(alone)


@pytest.fixture(scope="module")
def sharing(python: ForkedPython, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return in_processes(python, shared_data, tmp_path_factory.mktemp("sharing"))


@pytest.fixture(scope="module")
def sharded(python: ForkedPython, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return in_processes(python, shards, tmp_path_factory.mktemp("sharded"))


def plain(losses: list[Any]) -> list[Any]:
    return [list(step) for step in losses]


@pytest.mark.parametrize("name", ["float32", "auto", "measured"])
def test_processes_with_their_own_data_take_the_steps_of_one(sharing, name):
    digest, losses = by_one(name)
    for process in sharing:
        assert process[name] == [digest, plain(losses)]


def test_ddp_with_its_own_closure_is_an_error_in_the_first_step(sharing):
    for process in sharing:
        assert "pass process_group=torch.distributed.group.WORLD" in process["ddp"]
        assert process["ddp changed nothing"]
        assert "pass process_group=" in process["inside"]


def test_ddp_with_a_reduced_loss_or_a_process_group_is_taken(sharing):
    for name in ("reduced", "joined"):
        assert [process[name] for process in sharing] == ["", ""]
        assert len({process[f"{name} digest"] for process in sharing}) == 1


def test_processes_with_a_model_each_are_told_once(sharing):
    for process in sharing:
        (told,) = process["apart"]
        assert "2 processes, but SPZO has no process_group" in told
        assert "pass process_group=torch.distributed.group.WORLD, and read it after" in told


def test_processes_that_train_one_model_are_told_nothing(sharing):
    assert [process["told one model"] for process in sharing] == [[], []]


def test_ddp_with_a_reduced_loss_agrees_on_cost_shares(sharing):
    """Else batches of other lengths give other numbers of directions, and the processes hang."""
    assert sharing[0]["own shares"] != sharing[1]["own shares"]
    assert sharing[0]["agreed"] == sharing[1]["agreed"]


def test_other_weights_or_settings_are_named(sharing):
    for process in sharing:
        assert "differ in weights of 'lm_head.weight'." in process["other weights"]
        assert "differ in weights of 'model.norm.weight'." in process["other frozen weights"]
        assert "differ in seed: [0, 1]" in process["other seeds"]


def test_a_process_outside_the_group_is_told(sharing):
    assert [process["outside"] for process in sharing] == [
        "",
        "ValueError: this process is not in its process_group; pass each process one that holds it",
    ]


def test_a_loss_that_is_not_finite_is_skipped_by_all(sharing):
    assert [process["skipped"] for process in sharing] == [1, 1]


@pytest.mark.parametrize("order", ["shard, split", "split, shard"])
@pytest.mark.parametrize("name", CASES)
def test_shards_take_the_steps_of_one_process_to_the_bit(sharded, name, order):
    digest, losses = by_one(name)
    for process in sharded:
        assert process[f"{name}: {order}"] == [digest, plain(losses)]


def test_copies_of_shards_take_the_steps_of_one_process_to_the_bit(sharded):
    digest, losses = by_one("float32")
    for process in sharded:
        assert process["replicated"] == [digest, plain(losses)]


def test_answer_rows_are_made_before_a_model_is_sharded(sharded):
    for process in sharded:
        assert process["rows"] == ""
        assert "before fully_shard" in process["rows of shards"]


def test_a_shard_is_part_of_a_model(sharded):
    held = [process["held"] for process in sharded]
    assert sum(held) == sharded[0]["all"]
    assert max(held) < 0.6 * sum(held)


def test_a_sharded_models_blocks_are_those_of_the_whole_one(sharded):
    """OPT registers its last norm before its layers, and uses it after them."""
    build, _ = CASES["uneven"]
    names = [[name for name, _ in group] for group in split(build()).groups]
    for order in ("shard, split", "split, shard"):
        assert sharded[0][f"uneven: {order}: names"] == names


def test_shards_without_a_process_group_are_an_error_in_the_first_step(sharded):
    for process in sharded:
        assert "pass process_group=" in process["no group"]


def test_sharded_parameters_need_their_model(sharded):
    assert "came without its model" in sharded[0]["bare"]


def test_a_model_that_is_still_gathered_is_taken(sharded):
    assert [process["gathered"] for process in sharded] == ["", ""]


def test_a_model_that_is_sharded_after_its_optimizer_was_built_is_refused_by_name(sharded):
    for process in sharded:
        assert "parameters 'model.embed_tokens.weight'" in process["sharded later"]
        assert "or fully_shard; finish the model first" in process["sharded later"]


def test_a_tensor_parallel_plan_is_refused_by_name(sharded):
    for process in sharded:
        assert "down_proj.weight" in process["tensor parallel"]
        assert "fully_shard" in process["tensor parallel"]


def test_a_models_own_tensor_parallel_plan_is_refused():
    model = llama()
    model._tp_size = 2
    with pytest.raises(ValueError, match="tensor parallel plan over 2 processes"):
        SPZO(split(model), lr=1e-2)


def test_partitions_of_deepspeed_are_refused_by_name():
    model = llama()
    model.lm_head.weight.ds_id = 0
    with pytest.raises(ValueError, match=r"'lm_head\.weight' is partitioned by DeepSpeed"):
        SPZO(split(model), lr=1e-2)


def test_private_steps_are_not_shared():
    privacy = Mechanism(Privacy(noise_multiplier=1.0, clip=1.0), examples=8)
    with pytest.raises(ValueError, match="process_group is given with privacy"):
        SPZO(split(llama()), lr=1e-2, privacy=privacy, process_group=object())
