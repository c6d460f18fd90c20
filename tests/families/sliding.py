"""Families that mix sliding-window layers with layers that attend to the whole context."""

from .attention import DIMS
from .family import Family

SLIDING = ["sliding_attention", "full_attention", "sliding_attention"]

SLIDING_FAMILIES = (
    Family(
        "afmoe",
        DIMS
        | {
            "model_type": "afmoe",
            "layer_types": SLIDING,
            "head_dim": 16,
            "moe_intermediate_size": 128,
            "num_experts": 8,
            "num_experts_per_tok": 3,
            "num_shared_experts": 1,
            "num_dense_layers": 1,
            "n_group": 2,
            "topk_group": 1,
            "sliding_window": 16,
        },
        num_experts=8,
        moe_layers=2,
    ),
    Family(
        "exaone_moe",
        DIMS
        | {
            "model_type": "exaone_moe",
            "moe_intermediate_size": 128,
            "head_dim": 16,
            "num_experts": 8,
            "num_experts_per_tok": 3,
            "num_shared_experts": 1,
            "sliding_window": 16,
            "layer_types": SLIDING,
            "is_moe_layer": [False, True, True],
        },
        num_experts=8,
        moe_layers=2,
    ),
    Family(
        "gemma4_text",
        DIMS
        | {
            "model_type": "gemma4_text",
            "head_dim": 16,
            "global_head_dim": 32,
            "vocab_size_per_layer_input": 128,
            "num_kv_shared_layers": 0,
            "hidden_size_per_layer_input": 0,
            "sliding_window": 16,
            "layer_types": SLIDING,
            "enable_moe_block": True,
            "num_experts": 8,
            "top_k_experts": 3,
            "moe_intermediate_size": 128,
        },
        num_experts=8,
        moe_layers=3,
    ),
    Family(
        "gpt_oss",
        DIMS
        | {
            "model_type": "gpt_oss",
            "num_local_experts": 8,
            "num_experts_per_tok": 3,
            "head_dim": 16,
            "sliding_window": 16,
            "layer_types": SLIDING,
        },
        num_experts=8,
        moe_layers=3,
    ),
    Family(
        "laguna",
        DIMS
        | {
            "model_type": "laguna",
            "head_dim": 16,
            "sliding_window": 16,
            "layer_types": SLIDING,
            "num_attention_heads_per_layer": [4, 2, 4],
            "num_experts": 8,
            "num_experts_per_tok": 3,
            "moe_intermediate_size": 128,
            "shared_expert_intermediate_size": 64,
            "moe_routed_scaling_factor": 1.5,
            "rope_parameters": {
                "full_attention": {"rope_type": "default", "rope_theta": 10000.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 1000.0},
            },
        },
        num_experts=8,
        moe_layers=2,
    ),
    Family(
        "mellum",
        DIMS
        | {
            "model_type": "mellum",
            "num_experts": 8,
            "num_experts_per_tok": 3,
            "moe_intermediate_size": 128,
            "head_dim": 16,
            "tie_word_embeddings": False,
            "norm_topk_prob": True,
            "sliding_window": 16,
            "layer_types": SLIDING,
            "rope_parameters": {
                "full_attention": {"rope_type": "default", "rope_theta": 10000.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 1000.0},
            },
        },
        num_experts=8,
        moe_layers=3,
    ),
    Family(
        "mimo_v2_flash",
        DIMS
        | {
            "model_type": "mimo_v2_flash",
            "num_experts_per_tok": 3,
            "hybrid_layer_pattern": [0, 1, 1],
            "moe_layer_freq": [0, 1, 1],
            "add_swa_attention_sink_bias": True,
            "add_full_attention_sink_bias": False,
            "sliding_window_size": 16,
            "moe_intermediate_size": 128,
            "n_shared_experts": None,
            "n_routed_experts": 8,
            "routed_scaling_factor": None,
            "topk_method": "noaux_tc",
            "scoring_func": "sigmoid",
            "norm_topk_prob": True,
            "n_group": 1,
            "topk_group": 1,
            "layernorm_epsilon": 1e-5,
            "swa_rope_theta": 1000.0,
            "swa_num_attention_heads": 4,
            "swa_num_key_value_heads": 4,
            "head_dim": 24,
            "v_head_dim": 16,
            "swa_head_dim": 24,
            "swa_v_head_dim": 16,
            "partial_rotary_factor": 0.5,
        },
        num_experts=8,
        moe_layers=2,
    ),
    Family(
        "step3p5",
        DIMS
        | {
            "model_type": "step3p5",
            "num_attention_groups": 2,
            "head_dim": 16,
            "sliding_window": 16,
            "layer_types": SLIDING,
            "attention_other_setting": {"num_attention_heads": 2, "num_attention_groups": 1},
            "moe_num_experts": 8,
            "moe_top_k": 3,
            "moe_intermediate_size": 128,
            "share_expert_dim": 64,
            "moe_layers_enum": "1,2",
            "swiglu_limits": [0.0, 0.0, 2.0],
            "swiglu_limits_shared": [0.0, 0.0, 4.0],
        },
        num_experts=8,
        moe_layers=2,
    ),
)
