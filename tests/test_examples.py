"""The optimizer in public training loops, run as their users run them: examples/*/train.py."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from forked_python import ForkedPython
from safetensors.torch import load_file

pytestmark = pytest.mark.slow

EXAMPLES = Path(__file__).parents[1] / "examples"
LLAMA = ("transformers.trainer", "transformers.models.llama.modeling_llama")
TORCHRUN = """
import runpy, sys
from torch.distributed import run
from torch.distributed.launcher import elastic_launch

_, *sys.argv = sys.argv
options = ["--nproc_per_node", "2", "--rdzv_backend", "c10d", "--rdzv_endpoint", "localhost:0"]
options += ["--start_method", "fork", sys.argv[0]]
config = run.config_from_args(run.parse_args(options))[0]
elastic_launch(config, lambda: runpy.run_path(sys.argv[0], run_name="__main__") and None)()
"""
"""What `torchrun --nproc_per_node 2 --standalone` does, with processes that it forks."""

Output = Callable[..., str]


@pytest.fixture
def output(python: ForkedPython) -> Output:
    """Run a program, and return what it prints."""

    def printed(*arguments: object, imports: tuple[str, ...] = LLAMA, **environment: str) -> str:
        done = python(*arguments, imports=imports, **environment)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return printed


def numbers(printed: str, label: str) -> list[float]:
    return [float(number) for number in re.findall(rf"{label}:? ([\d.]+)", printed)]


def test_a_plain_loop_learns_and_resumes_bit_for_bit(tmp_path, output):
    script, checkpoint = EXAMPLES / "plain_pytorch" / "train.py", str(tmp_path / "{epoch}.pt")
    whole = output(script, "--epochs", 5, "--output", checkpoint)
    before, after = numbers(whole, "before")[0], numbers(whole, "after")[0]
    assert after > before + 0.1
    losses = re.findall(r"epoch .*", whole)
    assert len(losses) == 5
    assert numbers(losses[-1], "loss")[0] < numbers(losses[0], "loss")[0] - 0.1
    # model, optimizer and scheduler from the checkpoint: what follows is printed alike
    resumed = output(script, "--epochs", 5, "--output", checkpoint, "--resume", tmp_path / "3.pt")
    assert re.findall(r"epoch .*|.*after.*", resumed) == re.findall(
        r"epoch [45].*|.*after.*", whole
    )


def test_an_accelerate_loop_learns_the_same_bits_in_two_processes(output):
    script = EXAMPLES / "accelerate" / "train.py"
    printed = output("-c", TORCHRUN, script, "--epochs", 1, ACCELERATE_USE_CPU="true")
    (before,), after = numbers(printed, "before"), numbers(printed, "after")
    assert len(after) == 2
    assert max(after) < before - 0.2
    holders = dict(re.findall(r"process (\d) holds (\w+)", printed))
    assert holders.keys() == {"0", "1"}
    assert holders["0"] == holders["1"]


def test_a_trainer_learns_and_resumes_bit_for_bit(tmp_path, output):
    script = EXAMPLES / "trainer" / "train.py"
    whole = output(script, "--epochs", 2, "--output", tmp_path / "whole")
    (before,), (after,) = numbers(whole, "before"), numbers(whole, "after")
    assert after < before - 0.3
    (tmp_path / "part").mkdir()
    (tmp_path / "whole" / "checkpoint-25").rename(tmp_path / "part" / "checkpoint-25")
    resumed = output(script, "--epochs", 2, "--output", tmp_path / "part", "--resume")
    assert numbers(resumed, "after") == [after]


def test_trls_trainer_trains_adapters(tmp_path, output):
    printed = output(EXAMPLES / "sft_trainer" / "train.py", "--epochs", 1, "--output", tmp_path)
    assert numbers(printed, "loss after")[0] < numbers(printed, "loss before")[0] - 0.5
    saved = load_file(tmp_path / "adapter_model.safetensors")
    assert any(tensor.abs().sum() > 0 for name, tensor in saved.items() if "lora_B" in name)


def test_a_lightning_module_learns_and_resumes_bit_for_bit(tmp_path, output):
    script, imports = EXAMPLES / "lightning" / "train.py", (*LLAMA, "lightning")
    whole = output(script, "--epochs", 2, "--output", tmp_path, imports=imports)
    (before,), (after,) = numbers(whole, "before"), numbers(whole, "after")
    assert after < before - 0.5
    resumed = output(script, "--epochs", 2, "--resume", tmp_path / "epoch=0.ckpt")
    assert numbers(resumed, "after") == [after]


@pytest.mark.parametrize("shard", [(), ("--shard",)], ids=["whole", "sharded"])
def test_processes_that_exchange_losses_hold_the_same_bits(shard, output):
    printed = output("-c", TORCHRUN, EXAMPLES / "data_parallel" / "train.py", "--epochs", 1, *shard)
    before, after = numbers(printed, "before"), numbers(printed, "after")
    assert max(after) < min(before) - 0.3
    # both print to one pipe: a line may end behind the other's
    holders = dict(re.findall(r"process (\d): .*?holds ([0-9a-f]{32})", printed))
    assert holders.keys() == {"0", "1"}
    assert holders["0"] == holders["1"]


def test_a_peft_loop_trains_the_adapters(tmp_path, output):
    printed = output(EXAMPLES / "peft_lora" / "train.py", "--epochs", 1, "--output", tmp_path)
    assert numbers(printed, "after")[0] < numbers(printed, "before")[0] - 0.03
    saved = load_file(tmp_path / "adapter_model.safetensors")
    assert saved
    # B begins at zero: wherever it is not, its layer was trained, in either block
    assert all(tensor.abs().sum() > 0 for tensor in saved.values())


def test_a_reward_of_generated_text_beats_the_start(output):
    printed = output(EXAMPLES / "generated_reward" / "train.py", "--epochs", 2)
    (before,), (after,) = (numbers(printed, f"exact match {when}") for when in ("before", "after"))
    assert before < 0.8
    assert after > before + 0.02
    wrong = numbers(printed, "wrong answers")
    assert wrong[-1] < wrong[0]
