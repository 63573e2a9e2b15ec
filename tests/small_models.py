"""Small random models of transformers' classes with a head."""

from __future__ import annotations

from typing import Any

import torch
import transformers as hf
from torch import nn
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

# what some families need besides
OWN: dict[str, dict[str, Any]] = {
    "zamba": {"attention_hidden_size": 2 * WIDTH},
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
    chosen |= {name: token for name, token in TOKENS.items() if hasattr(default, name)}
    for name in cls.sub_configs:
        inner = getattr(default, name, None)
        if isinstance(inner, hf.PreTrainedConfig):
            chosen[name] = small_config(type(inner)).to_dict()
    chosen = {name: v for name, v in chosen.items() if cls.attribute_map.get(name) not in chosen}
    return cls(**{**chosen, **OWN.get(cls.model_type, {})})


def build(family: str, name: str) -> nn.Module:
    """Return a small random model.

    Args:
        family: the family's name, as transformers' configurations have it.
        name: the class's name.
    """
    torch.manual_seed(0)
    model: nn.Module = getattr(hf, name)(small_config(CONFIG_MAPPING[family]))
    return model.eval()
