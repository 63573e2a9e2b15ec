"""Where a model is cut, and whose parameters are whose."""

from __future__ import annotations

from collections import OrderedDict

import peft
import pytest
import torch
import transformers as hf
from families import (
    BERT_LIKE,
    FAMILIES,
    LAYERS,
    VOCAB,
    WIDTH,
    assert_split_is_exact,
    names,
)
from torch import Tensor, nn

from fedspzo.blocks.cut import Blocks, split


@pytest.fixture(autouse=True)
def _deterministic():
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_auto_looks_at_what_trains():
    model = FAMILIES["llama"]()
    model.lm_head.requires_grad_(False)
    assert names(split(model), 2) > {"model.norm.weight"}  # the norm alone is no block
    settings = {"target_modules": ["q_proj", "v_proj"], "r": 2}
    adapted = peft.get_peft_model(FAMILIES["llama"](), peft.LoraConfig(**settings))
    assert len(split(adapted).groups) == 2
    saved = peft.LoraConfig(**settings, modules_to_save=["lm_head"])
    with_head = split(peft.get_peft_model(FAMILIES["llama"](), saved))
    assert names(with_head, 2) == {"base_model.model.lm_head.modules_to_save.default.weight"}
    # adapters in the first layers only: the head is block 2
    early = peft.LoraConfig(**settings, layers_to_transform=[0, 1], modules_to_save=["lm_head"])
    blocks = split(peft.get_peft_model(FAMILIES["llama"](), early))
    assert names(blocks, 2) == {"base_model.model.lm_head.modules_to_save.default.weight"}


def test_a_heads_output_layer_is_the_last_block_and_what_is_before_it_is_not():
    for family, inner in {"bert-head": "bert.pooler.dense", "deberta-v2": "pooler.dense"}.items():
        blocks = split(FAMILIES[family]())
        assert names(blocks, 2) == {"classifier.weight", "classifier.bias"}
        assert {f"{inner}.weight", f"{inner}.bias"} <= names(blocks, 1)
        assert {f"{inner}.weight", "classifier.weight"} <= names(split(blocks.model, "head"), 2)
    roberta = hf.RobertaForSequenceClassification(hf.RobertaConfig(**BERT_LIKE))
    assert names(split(roberta), 2) == {"classifier.out_proj.weight", "classifier.out_proj.bias"}
    # the norm before an output layer is its block's, and so are both matrices of its adapter
    assert names(split(FAMILIES["llama"]()), 2) == {"model.norm.weight", "lm_head.weight"}
    adapters = peft.LoraConfig(target_modules=["dense", "out_proj"], r=2)
    last = names(split(peft.get_peft_model(roberta, adapters)), 2)
    assert {name.partition(".lora_")[0] for name in last} == {
        "base_model.model.classifier.out_proj"
    }
    assert len(last) == 2


def test_a_frozen_body_leaves_the_whole_head_in_one_block():
    model = FAMILIES["bert-head"]()
    model.bert.embeddings.requires_grad_(False)
    model.bert.encoder.requires_grad_(False)
    (only,) = split(model).groups
    assert {"bert.pooler.dense.weight", "classifier.weight"} <= {name for name, _ in only}


def test_an_untraced_heads_output_layer_is_the_one_registered_last():
    model = nn.Sequential(
        OrderedDict(
            layers=nn.Sequential(*(nn.Linear(4, 4) for _ in range(3))),
            hidden=nn.Linear(4, 5),
            output=nn.Linear(5, 2),
        )
    )
    assert names(split(model), 2) == {"output.weight", "output.bias"}


def test_ownership_follows_execution_not_registration():
    # OPT registers its final norm before the layers and uses it after them
    opt = split(FAMILIES["opt"]())
    assert "model.decoder.final_layer_norm.weight" in names(opt, 2)
    assert "model.decoder.embed_positions.weight" in names(opt, 1)
    # DeBERTa registers its relative embeddings and their norm after the layers, which use them
    deberta = split(FAMILIES["deberta-v2"](), 2)
    assert "deberta.encoder.rel_embeddings.weight" in names(deberta, 1)
    assert "deberta.encoder.LayerNorm.weight" in names(deberta, 1)
    assert {"pooler.dense.weight", "classifier.weight"} <= names(deberta, 2)
    # its convolution runs after layer 0: block 2's only if block 1 is layer 0 alone
    assert "deberta.encoder.conv.conv.weight" in names(deberta, 1)
    assert "deberta.encoder.conv.conv.weight" in names(split(FAMILIES["deberta-v2"](), 1), 2)


def test_a_tied_embedding_is_block_1s():
    for family in ("gpt2", "qwen2", "bert", "roberta"):
        blocks = split(FAMILIES[family]())
        embedding = blocks.model.get_input_embeddings().weight
        assert blocks.model.get_output_embeddings().weight.data_ptr() == embedding.data_ptr()
        assert any(p is embedding for _, p in blocks.groups[0])


def test_two_parameters_over_one_storage_are_taken_once():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4))
    model[2].weight = nn.Parameter(model[0].weight.detach())
    assert model[2].weight is not model[0].weight
    blocks = split(model)
    assert names(blocks, 1) == {"0.weight", "0.bias", "1.weight", "1.bias"}
    assert names(blocks, 2) == {"2.bias"}


@pytest.mark.parametrize(("layers", "kept"), [(2, 1), (8, 7), (12, 11), (24, 21), (32, 28)])
def test_auto_is_the_last_eighth_at_least_one(layers, kept):
    model = nn.ModuleList([nn.Linear(2, 2) for _ in range(layers)])
    assert split(nn.Sequential(*model)).starts == (kept,)


def test_at_takes_indices_names_the_head_and_sequences():
    model = FAMILIES["llama"]()
    for at in (1, -3, "model.layers.1", "layers.1", [1], ("layers.1",)):
        blocks = split(model, at)
        assert blocks.layers == (model.model.layers[0],)
        assert blocks.starts == (1,)
    head = split(model, "head")
    assert head.layers == tuple(model.model.layers)
    assert names(head, 2) == {"model.norm.weight", "lm_head.weight"}
    for cuts in ((1, 3, "head"), [-3, "layers.3", "head"], ("layers.1", -1, "head")):
        blocks = split(model, cuts)
        assert blocks.starts == (1, 3, LAYERS)
        assert {f"model.layers.{n}.mlp.up_proj.weight" for n in (1, 2)} < names(blocks, 2)
        assert "model.layers.3.mlp.up_proj.weight" in names(blocks, 3)
        assert blocks.groups[3] == head.groups[1]
        assert [group["block"] for group in blocks.param_groups()] == [1, 2, 3, 4]
    adapted = peft.get_peft_model(model, peft.LoraConfig(target_modules="all-linear", r=2))
    assert len(split(adapted, "model.layers.1").layers) == 1


@pytest.mark.parametrize(
    ("at", "error", "says"),
    [
        (4, ValueError, r"at is 4.* 4 layers.*1 to 3.*-3 to -1"),
        (0, ValueError, r"at is 0.*1 to 3"),
        (-4, ValueError, r"at is -4.*-3 to -1"),
        (True, TypeError, r"at is True; pass 'auto'"),
        (1.5, TypeError, r"at is 1.5; pass 'auto'"),
        ("layers.9", ValueError, r"'layers.9', which names no module.*nn.ModuleList"),
        ("model.layers.0", ValueError, r"'model.layers.0', the first.*later"),
        ("model.norm", ValueError, r"'model.norm', which is not an entry"),
        ("mlp", ValueError, r"'mlp', which fits several modules"),
        ((1, True), TypeError, r"at is \(1, True\); pass 'auto'"),
        (None, TypeError, r"at is None; pass 'auto'"),
        ((1, torch.ones(2)), TypeError, r"at is \(1, tensor.*; pass 'auto'"),
        ((), ValueError, r"at is \(\); name each block's first layer"),
        ((2, 1), ValueError, r"at is \(2, 1\); .* in order"),
        (("head", 1), ValueError, r"at is \('head', 1\); .* in order"),
        ((2, -2), ValueError, r"at is \(2, -2\); .* in order"),
        ((1, 4), ValueError, r"at is \(1, 4\).* 4 layers.*1 to 3"),
        ((1, "auto"), ValueError, r"'auto' stands for all cuts"),
        ((1, "layers.9"), ValueError, r"'layers.9', which names no module"),
    ],
)
def test_a_bad_cut_is_told_with_the_remedy(at, error, says):
    with pytest.raises(error, match=says):
        split(FAMILIES["llama"](), at)


def t5(**settings: int) -> hf.T5ForConditionalGeneration:
    sizes = {"d_model": WIDTH, "d_kv": 8, "d_ff": 24, "num_layers": 3, "num_heads": 2}
    config = hf.T5Config(vocab_size=VOCAB, decoder_start_token_id=0, **{**sizes, **settings})
    return hf.T5ForConditionalGeneration(config)


def test_either_stack_of_an_encoder_decoder_can_be_named():
    model = t5()
    ids = torch.randint(3, VOCAB, (2, 5))
    blocks = split(model, "encoder.block.2")
    assert_split_is_exact(blocks, lambda: model(input_ids=ids, labels=ids).loss)
    assert names(blocks, 1).isdisjoint(name for name in names(blocks, 2))
    assert all(not name.startswith("decoder") for name in names(blocks, 1))
    nested = split(model, ("encoder.block.1", 2, "head"))  # the name's stack is that of the others
    assert nested.layers == tuple(model.encoder.block)
    assert_split_is_exact(nested, lambda: model(input_ids=ids, labels=ids).loss)
    with pytest.raises(ValueError, match=r"'decoder.block.1', a layer of another stack"):
        split(model, ("encoder.block.1", "decoder.block.1"))


def test_a_model_without_a_stack_is_told_what_to_pass():
    with pytest.raises(ValueError, match=r"Bilinear has no list.*pass at='NAME'"):
        split(nn.Bilinear(2, 2, 2))
    # nothing comes after this one's only layer
    albert = hf.AlbertModel(hf.AlbertConfig(**BERT_LIKE, embedding_size=8), add_pooling_layer=False)
    with pytest.raises(ValueError, match=r"block 2 of the cut at='auto' has no parameter"):
        split(albert)


def test_a_frozen_block_between_others_is_told():
    model = FAMILIES["llama"]()
    model.model.layers[2:3].requires_grad_(False)
    with pytest.raises(ValueError, match=r"block 2 .*requires_grad=True.*Blocks.single"):
        split(model, (2, 3))
    assert len(Blocks.single(model).groups) == 1
    with pytest.raises(ValueError, match="requires_grad=True"):
        Blocks.single(model.requires_grad_(False))


class Plain(nn.Module):
    """A module of no library, whose gate is registered after the layers and used before them."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(8, 4)
        self.layers = nn.ModuleList([nn.Linear(4, 4) for _ in range(3)])
        self.gate = nn.Linear(4, 4)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.gate(self.embed(ids))
        for layer in self.layers:
            x = layer(x).tanh()
        return x.square().mean()


def test_other_modules_follow_registration_or_an_example():
    model = Plain()
    assert {"embed.weight"} < names(split(model), 1)
    assert "gate.weight" in names(split(model, at=-1), 2)
    assert names(split(model), 2) == {"gate.weight", "gate.bias"}  # SPZO's first step tells
    ids = torch.tensor([[1, 2]])
    blocks = split(model, example={"ids": ids})
    assert "gate.weight" in names(blocks, 1)
    assert_split_is_exact(blocks, lambda: model(ids))


def test_a_failing_example_is_told_and_registration_decides():
    with pytest.warns(UserWarning, match=r"failed.*order of registration.*example=BATCH"):
        blocks = split(Plain(), example={"ids": "text"})
    assert "embed.weight" in names(blocks, 1)


@pytest.mark.slow
def test_wrappers_are_taken_off():
    model = FAMILIES["llama"]()
    assert split(nn.DataParallel(model)).model is model
    assert split(torch.compile(model)).model is model
    assert split(nn.DataParallel(model)).groups[0][0][0] == "model.embed_tokens.weight"


def test_a_model_spread_over_devices_is_refused():
    spread = nn.DataParallel(FAMILIES["llama"]())
    spread.device_ids = [0, 1]  # as it has on a machine with two GPUs
    with pytest.raises(ValueError, match=r"devices \[0, 1\].*pass model\.module"):
        split(spread)


def test_splitting_leaves_the_model_as_it_was():
    model = FAMILIES["llama"]().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    split(model)
    assert all(module.training for module in model.modules())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all("forward" not in vars(module) for module in model.modules())
    assert not any(module._forward_hooks for module in model.modules())


def test_param_groups_hold_only_what_trains():
    model = FAMILIES["llama"]()
    adapted = peft.get_peft_model(model, peft.LoraConfig(target_modules="all-linear", r=2))
    first, second = split(adapted, at=-1).param_groups()
    assert (first["block"], second["block"]) == (1, 2)
    assert all(
        "lora" in name and p.requires_grad for g in (first, second) for name, p in g["params"]
    )
    assert all(".layers.3." in name for name, _ in second["params"])
