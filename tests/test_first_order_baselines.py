"""FedAvg and LoRA against their published rules, and what a backward pass keeps in memory."""

from __future__ import annotations

from functools import partial

import peft
import pytest
import torch
import transformers as hf
from federated_toys import toy
from published_rules import (
    DATA,
    FEDERATION,
    LR,
    OPTIMIZER,
    SEED,
    SIZES,
    TASK,
    agrees,
    average,
    batch,
    loss_on,
    start,
)
from torch import Tensor, nn

from fedspzo.baselines import FedAvg, Method, lora, memory
from fedspzo.blocks.cut import Blocks
from fedspzo.federated import FederationConfig, OptimizerConfig, run
from fedspzo.journal import records as journal

pytestmark = pytest.mark.usefixtures("one_thread")


def test_fedavg_averages_the_weights_of_clients_that_took_adamw_steps():
    blocks = toy()
    result = run(
        blocks, TASK, DATA, FEDERATION, OPTIMIZER, strategy=partial(FedAvg, weight_decay=0.1)
    )
    weights = start()
    for number in range(2):
        locals_ = []
        for client in range(3):
            own = {name: w.clone().requires_grad_() for name, w in weights.items()}
            adamw = torch.optim.AdamW(own.values(), lr=LR, weight_decay=0.1)
            for k in range(2):
                adamw.zero_grad()
                loss_on(batch(client, number, k))(own).backward()
                adamw.step()
            locals_.append({name: w.detach() for name, w in own.items()})
        weights = average(locals_, [n / sum(SIZES) for n in SIZES])
    assert agrees(blocks.model, weights)
    final, trainable = result.final, 4 * sum(w.numel() for w in weights.values())
    assert final.forwards == 2 * 3 * 2 * 3
    assert final.bytes_up == final.bytes_down == final.fedavg_bytes == 2 * 3 * trainable
    assert final.digest == journal.digest(blocks.model.named_parameters())
    assert all(p.grad is None for p in blocks.model.parameters())


class TextTask:
    """Next-token loss of rows of token ids."""

    def collate(self, examples: list[Tensor]) -> Tensor:
        return torch.stack(examples)

    def loss(self, model: nn.Module, ids: Tensor) -> Tensor:
        return model(input_ids=ids, labels=ids).loss


def test_lora_trains_and_sends_adapters_alone():
    torch.manual_seed(0)
    size = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1}
    model = hf.LlamaForCausalLM(hf.LlamaConfig(vocab_size=32, **size, **heads))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    rows = list(torch.randint(32, (12, 6)))
    federation = FederationConfig(clients=2, rounds=3, local_steps=2, seed=SEED)
    settings = OptimizerConfig(lr=1e-2)
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"])
    method = Method(partial(lora.adapt, config=config), FedAvg)
    result = method(Blocks.single(model), TextTask(), [rows[:6], rows[6:]], federation, settings)
    after = dict(model.named_parameters())
    adapters = {name: p for name, p in after.items() if "lora_" in name}
    own = {n.replace("base_layer.", ""): p for n, p in after.items() if n not in adapters}
    assert own.keys() == before.keys()
    assert all(torch.equal(p, before[name]) for name, p in own.items())
    assert all(p.detach().abs().sum() > 0 for p in adapters.values())  # B began at zero
    sent = 4 * sum(p.numel() for p in adapters.values())
    assert result.final.bytes_up == 3 * 2 * sent
    assert result.final.loss < result.rounds[1].loss


def test_saved_bytes_are_what_autograd_keeps():
    model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 3))
    x, y = torch.randn(5, 8), torch.zeros(5, dtype=torch.long)
    saved = memory.saved_bytes(Blocks.single(model), TASK, (x, y))
    # each linear layer keeps its input, tanh its output (the next one's input), cross entropy its
    # log-probabilities, the labels and a scalar: the total weight
    assert saved == 4 * (5 * 8 + 5 * 16 + 5 * 3) + 8 * 5 + 4
