"""Families that mix attention with convolutions, state-space or linear-attention layers.

Each configuration holds every kind of layer that its family knows.
"""

from .attention import DIMS
from .family import Family

BAILING = DIMS | {
    "moe_intermediate_size": 128,
    "num_experts": 8,
    "num_experts_per_tok": 3,
    "num_shared_experts": 1,
    "norm_topk_prob": True,
    "first_k_dense_replace": 1,
    "layer_group_size": 2,
    "group_norm_size": 2,
    "routed_scaling_factor": 1.5,
    "n_group": 4,
    "topk_group": 2,
}

BAILING_LATENT = {
    "model_type": "bailing_hybrid",
    "head_dim": 16,
    "kv_lora_rank": 32,
    "q_lora_rank": 32,
    "qk_rope_head_dim": 16,
    "qk_nope_head_dim": 32,
    "v_head_dim": 32,
    "moe_shared_expert_intermediate_size": 64,
}

MAMBA2 = {
    "model_type": "granitemoehybrid",
    "shared_intermediate_size": 64,
    "mamba_n_heads": 4,
    "mamba_d_head": 16,
    "mamba_proj_bias": False,
    "mamba_d_state": 16,
    "mamba_d_conv": 4,
    "mamba_n_groups": 1,
    "mamba_conv_bias": True,
}

HYBRID_FAMILIES = (
    Family("bailing_hybrid", BAILING | BAILING_LATENT, num_experts=8, moe_layers=2),
    Family(
        "bailing_moe_linear",
        BAILING
        | {
            "model_type": "bailing_moe_linear",
            "use_qk_norm": True,
            "moe_router_enable_expert_bias": True,
            "score_function": "sigmoid",
        },
        num_experts=8,
        moe_layers=2,
    ),
    Family(
        "bailing_moe_v3",
        BAILING | BAILING_LATENT | {"architectures": ["BailingMoeV3ForCausalLM"]},
        num_experts=8,
        moe_layers=2,
    ),
    Family(
        "granitemoehybrid",
        DIMS
        | MAMBA2
        | {
            "attention_bias": False,
            "embedding_multiplier": 4.0,
            "attention_multiplier": 0.25,
            "logits_scaling": 2.0,
            "residual_multiplier": 0.5,
            "layer_types": ["mamba", "attention", "mamba"],
            "num_local_experts": 8,
            "num_experts_per_tok": 3,
            "position_embedding_type": "nope",
        },
        num_experts=8,
        moe_layers=3,
    ),
    Family(
        "jamba",
        DIMS
        | {
            "model_type": "jamba",
            "num_hidden_layers": 4,
            "attn_layer_offset": 1,
            "attn_layer_period": 2,
            "expert_layer_offset": 1,
            "expert_layer_period": 2,
            "mamba_d_conv": 4,
            "mamba_d_state": 8,
            "mamba_expand": 2,
            "num_experts": 8,
            "num_experts_per_tok": 2,
        },
        num_experts=8,
        moe_layers=2,
    ),
    Family(
        "kimi_linear",
        DIMS
        | {
            "model_type": "kimi_linear",
            "num_key_value_heads": 4,
            "head_dim": 16,
            "linear_attn_config": {
                "kda_layers": [1, 3],
                "full_attn_layers": [2],
                "num_heads": 4,
                "head_dim": 32,
                "short_conv_kernel_size": 4,
            },
            "model_max_length": 256,
            "num_experts": 8,
            "moe_intermediate_size": 128,
            "kv_lora_rank": 32,
            "qk_nope_head_dim": 32,
            "qk_rope_head_dim": 16,
            "v_head_dim": 32,
            "mla_use_nope": True,
            "num_experts_per_token": 3,
            "num_shared_experts": 1,
            "routed_scaling_factor": 1.5,
            "first_k_dense_replace": 1,
        },
        num_experts=8,
        moe_layers=2,
    ),
    Family(
        "lfm2_moe",
        DIMS
        | {
            "model_type": "lfm2_moe",
            "moe_intermediate_size": 128,
            "num_experts": 8,
            "num_experts_per_tok": 3,
            "norm_topk_prob": True,
            "use_expert_bias": True,
            "num_dense_layers": 1,
            "norm_eps": 1e-5,
            "conv_bias": False,
            "conv_L_cache": 3,
            "layer_types": ["conv", "full_attention", "conv"],
        },
        num_experts=8,
        moe_layers=2,
    ),
    Family(
        "nemotron_h",
        DIMS
        | {
            "model_type": "nemotron_h",
            "hidden_size": 128,
            "attention_bias": False,
            "mamba_num_heads": 4,
            "mamba_head_dim": 32,
            "mamba_proj_bias": False,
            "ssm_state_size": 16,
            "conv_kernel": 4,
            "n_groups": 2,
            "mlp_bias": False,
            "layer_norm_epsilon": 1e-5,
            "use_bias": False,
            "use_conv_bias": True,
            "hybrid_override_pattern": ["M", "E", "*", "E", "-"],
            "head_dim": 32,
            "moe_intermediate_size": 192,
            "moe_shared_expert_intermediate_size": 64,
            "moe_latent_size": 64,
            "n_group": 1,
            "topk_group": 1,
            "n_routed_experts": 8,
            "n_shared_experts": 1,
            "num_experts_per_tok": 3,
            "norm_topk_prob": True,
            "routed_scaling_factor": 1.5,
        },
        num_experts=8,
        moe_layers=2,
    ),
    Family(
        "qwen3_next",
        DIMS
        | {
            "model_type": "qwen3_next",
            "num_hidden_layers": 4,
            "linear_num_value_heads": 4,
            "linear_num_key_heads": 2,
            "linear_key_head_dim": 32,
            "linear_value_head_dim": 32,
            "linear_conv_kernel_dim": 4,
            "num_experts": 8,
            "num_experts_per_tok": 3,
            "decoder_sparse_step": 1,
            "shared_expert_intermediate_size": 64,
            "mlp_only_layers": [0],
            "moe_intermediate_size": 128,
            "partial_rotary_factor": 0.5,
            "head_dim": 16,
            "norm_topk_prob": True,
            "full_attention_interval": 2,
        },
        num_experts=8,
        moe_layers=3,
    ),
)
