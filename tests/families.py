"""Small models of every supported family, and the check that a cut changes no bit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import torch
import transformers as hf
from torch import Tensor, nn

from fedspzo.blocks.cut import Blocks
from fedspzo.blocks.evaluation_mode import evaluating
from fedspzo_kernels import parameter_key, perturb_

VOCAB, WIDTH, LAYERS = 48, 16, 4

BERT_LIKE = {
    "vocab_size": VOCAB,
    "hidden_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 24,
}

LLAMA_LIKE = {**BERT_LIKE, "num_key_value_heads": 1}

DEBERTA = {"relative_attention": True, "pos_att_type": ["p2c", "c2p"]}

FAMILIES: dict[str, Callable[[], nn.Module]] = {
    "roberta": lambda: hf.RobertaForMaskedLM(hf.RobertaConfig(**BERT_LIKE)),
    "bert": lambda: hf.BertForMaskedLM(hf.BertConfig(**BERT_LIKE)),
    "bert-head": lambda: hf.BertForSequenceClassification(hf.BertConfig(**BERT_LIKE)),
    "distilbert": lambda: hf.DistilBertForMaskedLM(
        hf.DistilBertConfig(vocab_size=VOCAB, dim=WIDTH, n_layers=LAYERS, n_heads=2, hidden_dim=24)
    ),
    "opt": lambda: hf.OPTForCausalLM(
        hf.OPTConfig(**LLAMA_LIKE, ffn_dim=24, word_embed_proj_dim=WIDTH)
    ),
    "opt-projected": lambda: hf.OPTForCausalLM(
        hf.OPTConfig(**LLAMA_LIKE, ffn_dim=24, word_embed_proj_dim=8, do_layer_norm_before=False)
    ),
    "llama": lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**LLAMA_LIKE)),
    "mistral": lambda: hf.MistralForCausalLM(hf.MistralConfig(**LLAMA_LIKE)),
    "qwen2": lambda: hf.Qwen2ForCausalLM(hf.Qwen2Config(**LLAMA_LIKE, tie_word_embeddings=True)),
    "gpt2": lambda: hf.GPT2LMHeadModel(
        hf.GPT2Config(vocab_size=VOCAB, n_embd=WIDTH, n_layer=LAYERS, n_head=2, n_positions=24)
    ),
    "gpt-neox": lambda: hf.GPTNeoXForCausalLM(hf.GPTNeoXConfig(**BERT_LIKE)),
    "deberta": lambda: hf.DebertaForMaskedLM(hf.DebertaConfig(**BERT_LIKE, **DEBERTA)),
    "deberta-v2": lambda: hf.DebertaV2ForSequenceClassification(
        hf.DebertaV2Config(
            **BERT_LIKE,
            **DEBERTA,
            position_buckets=4,
            norm_rel_ebd="layer_norm",
            conv_kernel_size=3,
        )
    ),
    "modernbert": lambda: hf.ModernBertForMaskedLM(
        hf.ModernBertConfig(
            **BERT_LIKE,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
            cls_token_id=1,
            sep_token_id=2,
        )
    ),
    "t5-encoder": lambda: hf.T5EncoderModel(
        hf.T5Config(
            vocab_size=VOCAB, d_model=WIDTH, d_kv=8, d_ff=24, num_layers=LAYERS, num_heads=2
        )
    ),
}


def loss_of(model: nn.Module) -> Callable[[], Tensor]:
    ids = torch.randint(3, VOCAB, (2, 10))
    mask = torch.ones_like(ids)
    mask[0, 7:] = 0
    labels = {"labels": torch.tensor([0, 1])} if hasattr(model, "num_labels") else {}
    if type(model).__name__.endswith(("MaskedLM", "CausalLM", "LMHeadModel")):
        labels = {"labels": ids}
    elif not type(model).__name__.endswith("SequenceClassification"):
        labels = {}

    def loss() -> Tensor:
        output = model(input_ids=ids, attention_mask=mask, **labels)
        return output.loss if labels else output.last_hidden_state.sigmoid().mean()

    return loss


def names(blocks: Blocks, number: int) -> set[str]:
    return {name for name, _ in blocks.groups[number - 1]}


def assert_split_is_exact(blocks: Blocks, loss: Callable[[], Tensor]) -> None:
    """From every cut the replayed loss is the full one, bit for bit, also with a block moved."""
    ran: set[nn.Module] = set()
    layers_of = Counter(module for layer in blocks.layers for module in layer.modules())
    layer_of = {
        module: number
        for number, layer in enumerate(blocks.layers)
        for module in layer.modules()
        if module not in blocks.layers and layers_of[module] == 1  # OpenAI GPT shares activations
    }
    hooks = [module.register_forward_hook(lambda m, *_: ran.add(m)) for module in layer_of]
    with torch.no_grad(), evaluating(blocks.model):
        full = loss()
        with blocks.replay() as replay:
            replay.capture()
            assert torch.equal(loss(), full)
            replay.check()
            assert bool(ran) == bool(layer_of)
            used = set(ran)
            for number, cut in enumerate(blocks.starts, 1):
                group = blocks.groups[number]
                keys = [parameter_key(name) for name, _ in group]
                start = [p.clone() for _, p in group]
                ran.clear()
                replay.replay(number)
                assert torch.equal(loss(), full)
                replay.check()
                perturb_([p for _, p in group], keys, [7], [0.1])
                replay.replay(number)
                moved = loss()
                replay.check()
                assert ran == {m for m in used if layer_of[m] >= cut}, "a replayed layer ran"
                replay.run()
                assert torch.equal(loss(), moved)
                assert not torch.equal(moved, full)
                for (_, p), value in zip(group, start, strict=True):
                    p.copy_(value)
        assert torch.equal(loss(), full)
    for hook in hooks:
        hook.remove()
