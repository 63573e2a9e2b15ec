"""Rows of an output layer as parameters of their own: untied, trained, merged and saved."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from torch import nn

from fedspzo import SPZO, split
from fedspzo.blocks.output_rows import OutputRows, can_untie_rows, merge_rows, untie_rows
from fedspzo.journal import digest

SIZE = {"vocab_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 16}
TOKENS = (5, 9)


def llama(**changes: object) -> nn.Module:
    settings = {**SIZE, "intermediate_size": 32, "tie_word_embeddings": True, **changes}
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**settings))


def opt() -> nn.Module:
    return transformers.OPTForCausalLM(
        transformers.OPTConfig(**SIZE, ffn_dim=32, word_embed_proj_dim=16)
    )


def roberta() -> nn.Module:
    return transformers.RobertaForMaskedLM(
        transformers.RobertaConfig(**SIZE, intermediate_size=32, max_position_embeddings=32)
    )


def bert() -> nn.Module:
    return transformers.BertForMaskedLM(transformers.BertConfig(**SIZE, intermediate_size=32))


def untied_llama() -> nn.Module:
    return llama(tie_word_embeddings=False)


MODELS = [llama, untied_llama, opt, roberta, bert]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def ready(make: Callable[[], nn.Module]) -> nn.Module:
    model = make().eval()
    bias = model.get_output_embeddings().bias
    if bias is not None:  # a new model's is zero, which would hide a lost one
        with torch.no_grad():
            bias.copy_(torch.randn_like(bias))
    return model


IDS = torch.randint(10, 60, (2, 7), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("make", MODELS)
def test_untying_changes_no_logit(make: Callable[[], nn.Module]) -> None:
    model = ready(make)
    before = model(IDS).logits
    untie_rows(model, TOKENS)
    torch.testing.assert_close(model(IDS).logits, before)


@pytest.mark.parametrize("make", MODELS)
def test_the_rows_are_in_the_last_block_and_the_embeddings_in_the_first(
    make: Callable[[], nn.Module],
) -> None:
    model = ready(make)
    head = untie_rows(model, TOKENS)
    first, last = split(model).groups
    assert any(parameter is head.rows for _, parameter in last)
    assert any(parameter is model.get_input_embeddings().weight for _, parameter in first)
    assert all(parameter.shape[0] != 64 or parameter.dim() == 1 for _, parameter in last)


def test_split_puts_rows_apart_itself() -> None:
    blocks = split(llama(), rows=TOKENS)
    assert [name for name, _ in blocks.groups[-1]] == ["model.norm.weight", "lm_head.rows"]


@pytest.mark.parametrize("make", MODELS)
def test_a_changed_row_changes_its_own_logit_alone(make: Callable[[], nn.Module]) -> None:
    model = ready(make)
    head = untie_rows(model, TOKENS)
    before = model(IDS).logits
    with torch.no_grad():
        head.rows[1] += 1.0
    changed = (model(IDS).logits != before).any(0).any(0)
    assert changed.nonzero().flatten().tolist() == [TOKENS[1]]


@pytest.mark.parametrize("make", MODELS)
def test_a_merged_model_saves_and_loads_with_the_trained_rows(
    make: Callable[[], nn.Module], tmp_path: Path
) -> None:
    model = ready(make)
    head = untie_rows(model, TOKENS)
    with torch.no_grad():
        head.rows.mul_(1.5)
        if head.bias is not None:
            head.bias.add_(1.0)
    trained, weights = model(IDS).logits, digest(model.named_parameters())
    merge_rows(model)
    assert isinstance(model.get_output_embeddings(), nn.Linear)
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path).eval()
    torch.testing.assert_close(loaded(IDS).logits, trained)
    untie_rows(loaded, TOKENS)
    torch.testing.assert_close(loaded(IDS).logits, trained)
    assert digest(loaded.named_parameters()) == weights


TEXT_TO_TEXT = {"vocab_size": 64, "d_model": 16, "decoder_start_token_id": 0}
T5 = {**TEXT_TO_TEXT, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2}
BART = TEXT_TO_TEXT | {
    f"{part}_{what}": count
    for part in ("encoder", "decoder")
    for what, count in (("layers", 2), ("attention_heads", 2), ("ffn_dim", 24))
}


def test_an_encoder_decoder_whose_output_layer_alone_is_tied_is_taken(tmp_path: Path) -> None:
    model = transformers.T5ForConditionalGeneration(transformers.T5Config(**T5)).eval()
    head = untie_rows(model, TOKENS)
    with torch.no_grad():
        head.rows.mul_(1.5)
    trained = model(input_ids=IDS, decoder_input_ids=IDS).logits
    merge_rows(model)
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path).eval()
    torch.testing.assert_close(loaded(input_ids=IDS, decoder_input_ids=IDS).logits, trained)


@pytest.mark.parametrize(("name", "settings"), [("Bart", BART), ("UMT5", T5)])
def test_an_encoder_decoder_that_ties_more_is_refused(name: str, settings: dict) -> None:
    """Its config cannot say that the output layer alone is untied."""
    config = getattr(transformers, f"{name}Config")(**settings)
    model = getattr(transformers, f"{name}ForConditionalGeneration")(config)
    with pytest.raises(TypeError, match=rf"rows: {name}For.* ties more than its output layer"):
        untie_rows(model, TOKENS)
    assert not can_untie_rows(model)


def test_a_model_that_looks_at_its_output_layers_weight_is_taken() -> None:
    config = transformers.MambaConfig(vocab_size=64, hidden_size=16, num_hidden_layers=2)
    model = transformers.MambaForCausalLM(config).eval()
    before = model(IDS).logits
    untie_rows(model, TOKENS)
    torch.testing.assert_close(model(IDS).logits, before)


@pytest.mark.parametrize("make", [llama, untied_llama])
def test_weights_may_be_tied_again(make: Callable[[], nn.Module]) -> None:
    model = make().eval()
    before = model(IDS).logits
    untie_rows(model, TOKENS)
    model.tie_weights()
    torch.testing.assert_close(model(IDS).logits, before)


def test_merging_a_model_without_rows_does_nothing() -> None:
    model = llama()
    before = model.get_output_embeddings().weight
    merge_rows(model)
    assert model.get_output_embeddings().weight is before


def test_a_step_moves_the_rows_and_not_the_layer_they_came_from() -> None:
    model = untied_llama()
    head = untie_rows(model, TOKENS)
    rows, base = head.rows.clone(), head.base.weight.clone()
    optimizer = SPZO(split(model), lr=1e-2)
    optimizer.step(lambda: model(IDS, labels=torch.full_like(IDS, TOKENS[0])).loss)
    assert not torch.equal(head.rows, rows)
    assert torch.equal(head.base.weight, base)


@pytest.mark.parametrize(
    ("tokens", "says"),
    [((), "rows is \\[\\]"), ((1, 1), "different token numbers"), ((64,), "from 0 to 63")],
)
def test_bad_tokens_are_named(tokens: tuple[int, ...], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        untie_rows(llama(), tokens)


def test_a_model_without_a_linear_output_layer_is_named() -> None:
    with pytest.raises(TypeError, match=r"rows: LlamaModel has NoneType as its output layer"):
        untie_rows(llama().model, TOKENS)
    model = llama()
    untie_rows(model, TOKENS)
    assert isinstance(model.get_output_embeddings(), OutputRows)
    with pytest.raises(TypeError, match="has OutputRows as its output layer"):
        untie_rows(model, TOKENS)
