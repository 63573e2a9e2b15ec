"""Small random models of transformers' classes with a head."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import torch
import transformers as hf
from torch import Tensor, nn
from transformers.models.auto import modeling_auto
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

VOCAB, WIDTH, INNER, LAYERS, HEADS, IMAGE, PATCH = 64, 32, 64, 8, 2, 8, 4

# the names that configurations have for each size
SIZES = [
    (VOCAB, "vocab_size audio_vocab_size"),
    (
        WIDTH,
        "hidden_size d_model n_embd dim embed_dim word_embed_proj_dim embedding_size emb_dim"
        " encoder_hidden_size decoder_hidden_size projection_dim model_dim output_dim"
        " rnn_hidden_size attention_hidden_size hidden_dim out_hidden_size text_embed_dim lru_width"
        " conv_dim d_embed",
    ),
    (
        INNER,
        "intermediate_size ffn_dim n_inner hidden_dim_ffn encoder_ffn_dim decoder_ffn_dim d_ff"
        " dim_feedforward mlp_dim d_inner feed_forward_size ffn_hidden_size mlp_hidden_size"
        " shared_expert_intermediate_size moe_intermediate_size shared_intermediate_size"
        " prefix_hidden_size expert_intermediate_size intermediate_size_mlp"
        " moe_shared_expert_intermediate_size dense_intermediate_size",
    ),
    (
        LAYERS,
        "num_hidden_layers n_layer n_layers num_layers encoder_layers decoder_layers depth"
        " num_decoder_layers num_encoder_layers",
    ),
    (
        HEADS,
        "num_attention_heads n_head n_heads num_heads encoder_attention_heads attn_heads"
        " decoder_attention_heads num_key_value_heads num_kv_heads linear_num_key_heads"
        " linear_num_value_heads mamba_n_heads decoder_num_attention_heads",
    ),
    (
        WIDTH // HEADS,
        "head_dim d_kv attention_head_dim kv_channels qk_nope_head_dim v_head_dim kv_lora_rank"
        " q_lora_rank mamba_d_head linear_key_head_dim linear_value_head_dim global_head_dim"
        " mamba_head_dim swa_head_dim",
    ),
    (
        8,
        "qk_rope_head_dim mamba_d_state state_size ssm_state_size hidden_size_per_layer_input"
        " attention_chunk_size",
    ),
    (
        4,
        "num_experts n_routed_experts num_local_experts moe_num_experts num_routed_experts"
        " n_experts",
    ),
    (
        2,
        "num_experts_per_tok moe_topk top_k moe_top_k num_selected_experts moe_k n_group"
        " topk_group",
    ),
    (512, "max_position_embeddings n_positions max_sequence_length"),
    (IMAGE, "image_size"),
    (PATCH, "patch_size"),
]
SMALL = {name: size for size, names in SIZES for name in names.split()}

TOKENS = {
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
    "image_token_id": VOCAB - 1,
    "image_token_index": VOCAB - 1,
    "video_token_id": VOCAB - 2,
    "audio_token_id": VOCAB - 3,
}

MROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]}}

# what some families need besides; None: nothing under this name
OWN: dict[str, dict[str, Any]] = {
    "funnel": {"block_sizes": [2, 2], "num_decoder_layers": 8, "num_hidden_layers": None},
    "whisper": {"max_source_positions": 50},
    "zamba": {"attention_hidden_size": 2 * WIDTH},
    "falcon": {"head_dim": None},
    "gpt_neo": {"attention_types": [[["global", "local"], LAYERS // 2]]},
    "gptj": {"rotary_dim": 8},
    "codegen": {"rotary_dim": 8, "n_head": 4, "num_attention_heads": None},
    "deepseek_v2": {"head_dim": 8, "num_experts_per_tok": 2},
    "deepseek_v3": {"head_dim": 8},
    "youtu": {"head_dim": 8},
    "axk1": {"head_dim": 8},
    "longcat_flash": {"head_dim": 8},
    "bamba": {"mamba_n_heads": 4, "mamba_d_head": 16, "attn_layer_indices": [2, 6]},
    "granitemoehybrid": {
        "mamba_n_heads": 4,
        "mamba_d_head": 16,
        "layer_types": ["mamba", "attention"] * (LAYERS // 2),
    },
    "zamba2": {
        "attention_hidden_size": 2 * WIDTH,
        "layers_block_type": ["mamba", "hybrid"] * (LAYERS // 2),
    },
    "qwen2_vl_text": MROPE,
    "qwen2_5_vl_text": MROPE,
    "falcon_h1": {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_ssm": 64},
    "xlnet": {"max_position_embeddings": None},
    "prophetnet": {"num_hidden_layers": None},
    "nemotron": {"num_key_value_heads": 1},
    "ministral": {"head_dim": 16},
    "hunyuan_v1_dense": {"head_dim": 16},
    "hunyuan_v1_moe": {"head_dim": 16},
    "xmod": {"default_language": "en_XX"},
    "esm": {"vocab_size": VOCAB},
    "qwen2_5_vl_vision": {"fullatt_block_indexes": [1, 3]},
    "lilt": {"channel_shrink_ratio": 1, "hidden_size": 24, "intermediate_size": 48},
    "resnet": {"embedding_size": 8, "hidden_sizes": [8, 16, 24, 32], "depths": [2, 2, 2, 2]},
}


def small_config(cls: type[hf.PreTrainedConfig]) -> hf.PreTrainedConfig:
    """Return a configuration whose sizes are small, wherever its class has them."""
    default = cls()
    known = {**vars(default), **{name: getattr(default, name, None) for name in SMALL}}
    chosen: dict[str, Any] = {
        name: SMALL[name]
        for name, value in known.items()
        if name in SMALL and isinstance(value, int) and not isinstance(value, bool)
    }
    seq2seq = {"decoder_start_token_id"} if default.is_encoder_decoder else set()
    chosen |= {n: token for n, token in TOKENS.items() if hasattr(default, n) or n in seq2seq}
    for name in cls.sub_configs:
        inner = getattr(default, name, None)
        if isinstance(inner, hf.PreTrainedConfig):
            chosen[name] = small_config(type(inner)).to_dict()
    chosen |= OWN.get(cls.model_type, {})
    names = [name for name, value in chosen.items() if value is not None]
    return cls(**{n: chosen[n] for n in names if cls.attribute_map.get(n) not in names})


def build(family: str, name: str, most: float | None = None) -> nn.Module:
    """Return a small random model.

    Args:
        family: the family's name, as transformers' configurations have it.
        name: the class's name.
        most: largest number of weights. Default: no bound.

    Raises:
        ValueError: it has more weights, as our small sizes are not all of its sizes.
    """
    cls, config = getattr(hf, name), small_config(CONFIG_MAPPING[family])
    if most is not None:
        with torch.device("meta"):
            count = sum(p.numel() for p in cls(config).parameters())
        if count > most:
            raise ValueError(f"{count / 1e6:.0f} M weights")
    torch.manual_seed(0)
    model: nn.Module = cls(config)
    return model.eval()


KINDS = {
    "CausalLM": "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES",
    "MaskedLM": "MODEL_FOR_MASKED_LM_MAPPING_NAMES",
    "SequenceClassification": "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES",
    "Seq2SeqLM": "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES",
    "SpeechSeq2Seq": "MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES",
    "ImageTextToText": "MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES",
    "ImageClassification": "MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES",
    "AudioClassification": "MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING_NAMES",
}
"""The kinds of heads, and transformers' lists of the classes that have them."""


def classes() -> dict[str, tuple[str, str]]:
    """Return the family and the kind of each class with a head, by the class's name."""
    found: dict[str, tuple[str, str]] = {}
    for kind, mapping in KINDS.items():
        for family, names in getattr(modeling_auto, mapping).items():
            for name in [names] if isinstance(names, str) else names:
                found.setdefault(name, (family, kind))
    return found


def batches(model: nn.Module, kind: str) -> Iterator[dict[str, Tensor]]:
    """Yield batches of two examples, one of which fits the model, if any of ours does.

    Args:
        model: a model that `build` returned.
        kind: the kind of its head.
    """
    torch.manual_seed(1)
    ids = torch.randint(3, VOCAB - 3, (2, 12))
    ids[:, -1] = TOKENS["eos_token_id"]
    text = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    labels = {"labels": ids}
    if kind.endswith("Classification"):
        labels = {"labels": torch.tensor([0, 1])}
    known = inspect.signature(model.forward).parameters
    if "pixel_values" in known and kind.startswith("Image"):
        pixels = {"pixel_values": torch.randn(2, 3, IMAGE, IMAGE)}
        if kind == "ImageClassification":
            yield {**pixels, **labels}
            return
        for count in (4, 1, 2, 5, 8, 16, 0):
            seen = ids.clone()
            seen[:, 1 : 1 + count] = TOKENS["image_token_id"]
            yield {**text, "input_ids": seen, "labels": seen, **pixels}
        flat = torch.randn(2 * 4, 3 * 2 * PATCH * PATCH)
        grid = torch.tensor([[1, 2, 2]] * 2)
        seen = ids.clone()
        seen[:, 1] = TOKENS["image_token_id"]
        kinds = (seen == TOKENS["image_token_id"]).long()
        seen = {**text, "input_ids": seen, "labels": seen, "pixel_values": flat}
        yield {**seen, "image_grid_thw": grid}
        yield {**seen, "image_grid_thw": grid, "mm_token_type_ids": kinds}
    if "input_features" in known and kind not in ("CausalLM", "Seq2SeqLM"):
        frames = 2 * getattr(model.config, "max_source_positions", 1500)
        yield {"input_features": torch.randn(2, 80, frames), **labels}
        yield {"input_features": torch.randn(2, 100, 80), **labels}
        yield {"input_features": torch.randn(2, 100, 160), **labels}
    if "input_values" in known:
        yield {"input_values": torch.randn(2, 4000), **labels}
        yield {"input_values": torch.randn(2, 1024, 128), **labels}
    if "input_ids" in known:
        yield {**text, **labels}
