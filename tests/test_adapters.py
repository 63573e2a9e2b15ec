"""LoRA adapters: they begin alike for everybody, and their settings are checked."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from families import FAMILIES
from saved_toys import LORA, write

from fedspzo.app import config as configuration
from fedspzo.app.adapters import add_adapters
from fedspzo.app.model_section import LoraConfig
from fedspzo.errors import InputError
from fedspzo.journal.records import digest


@pytest.fixture(autouse=True)
def _one_thread(one_thread: None) -> None: ...


def adapted(**settings: Any) -> Any:
    torch.manual_seed(5)
    return add_adapters(FAMILIES["llama"](), LoraConfig(**settings), "causal", "net")


# --- the initial weights ---


def test_adapters_follow_from_their_seed_alone() -> None:
    one = digest(adapted(seed=3).named_parameters())
    torch.manual_seed(1)
    model = FAMILIES["llama"]()
    base = digest(model.named_parameters())
    torch.manual_seed(5)
    again = FAMILIES["llama"]()
    torch.manual_seed(77)  # neither torch's state nor its releases count
    before = torch.get_rng_state()
    assert digest(add_adapters(again, LoraConfig(seed=3), "causal", "").named_parameters()) == one
    assert torch.equal(torch.get_rng_state(), before)
    assert digest(adapted(seed=4).named_parameters()) != one
    assert digest(adapted(seed=2**64 - 1).named_parameters()) not in (one, base)


def test_the_bits_of_a_seed_do_not_change() -> None:
    factors = ((n, w) for n, w in adapted(seed=3).named_parameters() if "lora_A" in n)
    assert digest(factors) == "34c064ebfb5caab038f3804958eacf5d"


def test_adapters_begin_as_pefts_do_with_no_effect() -> None:
    ours = adapted(r=8)
    torch.manual_seed(5)
    theirs = peft.get_peft_model(
        FAMILIES["llama"](), peft.LoraConfig(r=8, lora_alpha=16, target_modules="all-linear")
    )
    shapes = {name: weight.shape for name, weight in theirs.named_parameters()}
    assert {name: weight.shape for name, weight in ours.named_parameters()} == shapes
    for name, weight in theirs.named_parameters():
        mine = ours.get_parameter(name)
        assert mine.requires_grad == weight.requires_grad == ("lora_" in name)
        if "lora_A" in name:
            spread = 1 / math.sqrt(3 * weight.shape[1])  # that of PEFT's uniform numbers
            count = weight.numel()
            assert mine.std().item() == pytest.approx(spread, rel=4 / math.sqrt(2 * count))
            assert abs(mine.mean().item()) < 4 * spread / math.sqrt(count)
        else:
            assert torch.equal(mine, weight)
    ids = torch.arange(6)[None]
    with torch.no_grad():
        assert torch.equal(ours(input_ids=ids).logits, theirs.eval()(input_ids=ids).logits)


def test_an_embeddings_adapter_begins_at_pefts_scale() -> None:
    model = adapted(r=4, target_modules=("embed_tokens",))
    factors = {n: w for n, w in model.named_parameters() if "lora_" in n}
    assert len(factors) == 2
    (random,) = (w for w in factors.values() if w.any())
    assert random.std().item() == pytest.approx(1, rel=4 / math.sqrt(2 * random.numel()))


@pytest.mark.parametrize("names", [("nowhere",), ("input_layernorm",)])
def test_layers_that_take_no_adapters_are_one_line(names: tuple[str, ...]) -> None:
    with pytest.raises(InputError, match=r"\[model\.lora\] target_modules is \('") as caught:
        adapted(target_modules=names)
    assert "\n" not in str(caught.value)


# --- the config ---


def settings_of(folder: Path, model: str) -> Any:
    path = write(folder, "prompt", model=model)
    return configuration.load(path).model


def test_the_config_of_adapters(tmp_path: Path) -> None:
    assert settings_of(tmp_path, "").lora is None
    assert settings_of(tmp_path, 'adapter = "lora"').lora == LoraConfig()
    given = 'adapter = "lora"\n[model.lora]\nr = 4\ntarget_modules = ["q_proj"]\nseed = 9'
    found = settings_of(tmp_path, given)
    assert found.lora == LoraConfig(r=4, target_modules=("q_proj",), seed=9)
    config = configuration.load(tmp_path / "run.toml")
    (tmp_path / "copy.toml").write_text(configuration.to_toml(config))
    assert configuration.load(tmp_path / "copy.toml").model == found


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("[model.lora]\nr = 4", "[model] lora is given without adapter"),
        ('adapter = "dora"', "[model] adapter is 'dora'; give one of 'lora'"),
        ('adapter = "lora"\nlora = 3', "[model] lora is 3; give a table"),
        (f"{LORA}\nrank = 4", "[model.lora] unknown key 'rank' = 4"),
        ('adapter = "lora"\n[model.lora]\nr = 0', "[model.lora] r is 0; give a whole number"),
        ('adapter = "lora"\n[model.lora]\nalpha = 1.5', "[model.lora] alpha is 1.5"),
        ('adapter = "lora"\n[model.lora]\ntarget_modules = []', "target_modules is ()"),
        ('adapter = "lora"\n[model.lora]\ntarget_modules = ".*"', "target_modules is '.*'"),
        ('adapter = "lora"\n[model.lora]\nseed = -1', "[model.lora] seed is -1"),
    ],
)
def test_settings_that_are_wrong_are_one_line(tmp_path: Path, model: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        settings_of(tmp_path, model)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_without_peft_the_error_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedspzo.app.installed.find_spec", lambda name: None)
    message = r" needs peft, which is not installed; pip install 'fedspzo\[peft\]'"
    with pytest.raises(InputError, match=r"\[model\] adapter = 'lora'" + message):
        settings_of(tmp_path, 'adapter = "lora"')
    with pytest.raises(InputError, match=message):
        adapted()
