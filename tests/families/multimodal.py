"""Families whose checkpoints nest the language model, as vision-language models do.

Only the language model is built: mlx-lm drops the other towers.
"""

from typing import Any

from .attention import ATTENTION_FAMILIES, DIMS
from .family import Family
from .latent import LATENT_FAMILIES
from .sliding import SLIDING_FAMILIES

_TEXT = {f.name: f for f in (*ATTENTION_FAMILIES, *SLIDING_FAMILIES, *LATENT_FAMILIES)}


def _wrap(name: str, text: str, **extra: Any) -> Family:
    """`name`, a family that wraps the language model of the family `text`."""
    inner = _TEXT[text]
    config = {"model_type": name, "text_config": inner.config} | extra
    return Family(name, config, inner.num_experts, inner.moe_layers)


QWEN3_5 = DIMS | {
    "model_type": "qwen3_5_moe_text",
    "num_hidden_layers": 4,
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 32,
    "linear_value_head_dim": 32,
    "linear_conv_kernel_dim": 4,
    "head_dim": 16,
    "full_attention_interval": 2,
    "num_experts": 8,
    "num_experts_per_tok": 3,
    "shared_expert_intermediate_size": 64,
    "moe_intermediate_size": 128,
    "rope_parameters": {
        "type": "default",
        "mrope_section": [2, 1, 1],
        "rope_theta": 10000.0,
        "partial_rotary_factor": 0.5,
    },
}

MULTIMODAL_FAMILIES = (
    _wrap("gemma4", "gemma4_text", vocab_size=128),
    _wrap("kimi_k25", "deepseek_v3"),
    Family(
        "kimi_k3",
        {
            "model_type": "kimi_k3",
            "text_config": DIMS
            | {
                "model_type": "kimi_linear",
                "hidden_size": 128,
                "num_key_value_heads": 4,
                "linear_attn_config": {
                    "kda_layers": [1, 3],
                    "full_attn_layers": [2],
                    "num_heads": 4,
                    "head_dim": 32,
                    "short_conv_kernel_size": 4,
                    "gate_lower_bound": -5.0,
                },
                "activation_situ_beta": 2.0,
                "activation_situ_linear_beta": 4.0,
                "attn_res_block_size": 2,
                "q_lora_rank": 32,
                "kv_lora_rank": 32,
                "qk_nope_head_dim": 32,
                "qk_rope_head_dim": 16,
                "v_head_dim": 32,
                "mla_use_output_gate": True,
                "num_experts": 8,
                "num_experts_per_token": 3,
                "num_shared_experts": 1,
                "moe_intermediate_size": 192,
                "routed_scaling_factor": 1.5,
                "first_k_dense_replace": 1,
                "routed_expert_hidden_size": 64,
                "latent_moe_use_norm": True,
            },
        },
        num_experts=8,
        moe_layers=2,
    ),
    _wrap("kimi_vl", "deepseek_v3"),
    Family(
        "llama4",
        {
            "model_type": "llama4",
            "text_config": DIMS
            | {
                "model_type": "llama4_text",
                "num_hidden_layers": 4,
                "attention_bias": False,
                "attention_chunk_size": 16,
                "head_dim": 16,
                "interleave_moe_layer_step": 2,
                "intermediate_size_mlp": 64,
                "num_experts_per_tok": 1,
                "num_local_experts": 8,
                "rope_scaling": None,
                "use_qk_norm": True,
            },
        },
        num_experts=8,
        moe_layers=2,
    ),
    Family(
        "minimax_m3_vl",
        {
            "model_type": "minimax_m3_vl",
            "text_config": DIMS
            | {
                "dense_intermediate_size": 192,
                "shared_intermediate_size": 64,
                "num_local_experts": 8,
                "num_experts_per_tok": 3,
                "head_dim": 16,
                "moe_layer_freq": [0, 1, 1],
                "sparse_attention_config": {
                    "sparse_num_index_heads": 2,
                    "sparse_index_dim": 16,
                    "sparse_block_size": 8,
                    "sparse_topk_blocks": 2,
                    "sparse_local_block": 1,
                    "sparse_attention_freq": [0, 1, 1],
                },
            },
        },
        num_experts=8,
        moe_layers=2,
    ),
    _wrap("mistral3", "mistral4"),
    Family(
        "qwen3_5",
        {"model_type": "qwen3_5", "text_config": QWEN3_5},
        num_experts=8,
        moe_layers=4,
    ),
    Family(
        "qwen3_5_moe",
        {"model_type": "qwen3_5_moe", "text_config": QWEN3_5},
        num_experts=8,
        moe_layers=4,
    ),
    _wrap("qwen3_vl_moe", "qwen3_moe"),
)

METAL_FAMILIES = (
    Family(
        "muse_spark",
        {
            "model_type": "muse_spark",
            "text_config": {
                "hidden_size": 128,
                "num_attention_heads": 4,
                "num_key_value_heads": 2,
                "head_dim": 32,
                "num_hidden_layers": 4,
                "vocab_size": 128,
                "rms_norm_eps": 1e-5,
                "post_norm_eps": 1e-5,
                "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
                "layer_rope_theta": [10000.0, 10000.0, 10000.0, 0.0],
                "layer_types": ["sliding_attention"] * 3 + ["full_attention"],
                "sliding_window": 16,
                "final_logit_softcapping": 30.0,
                "output_multiplier": 1.0,
                "num_local_experts": 8,
                "num_experts_per_tok": 3,
                "moe_hidden_size": 64,
                "moe_intermediate_size": 192,
            },
        },
        num_experts=8,
        moe_layers=4,
    ),
)
"""Families whose checkpoint can be written and loaded anywhere, but run on Metal only."""
