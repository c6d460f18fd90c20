"""Families whose layers all attend to the whole context.

`DIMS` is what the configurations of all files start from. Expert widths differ from the model
width, so that a swapped axis shows.
"""

from .family import Family

DIMS = {
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
}
"""The names that most families share; a configuration may hold more than its family reads."""

ATTENTION_FAMILIES = (
    Family(
        "Klear",
        DIMS
        | {
            "model_type": "Klear",
            "attention_bias": False,
            "mlp_only_layers": [0],
            "num_experts": 8,
            "num_experts_per_tok": 3,
            "decoder_sparse_step": 1,
            "n_shared_experts": 1,
            "moe_intermediate_size": 128,
            "norm_topk_prob": True,
        },
        num_experts=8,
        moe_layers=2,
    ),
    Family(
        "bailing_moe",
        DIMS
        | {
            "model_type": "bailing_moe",
            "moe_intermediate_size": 128,
            "num_experts": 8,
            "num_shared_experts": 1,
            "norm_topk_prob": True,
            "num_experts_per_tok": 3,
            "first_k_dense_replace": 1,
            "use_bias": True,
            "use_qk_norm": True,
            "moe_router_enable_expert_bias": True,
            "score_function": "sigmoid",
            "n_group": 4,
            "topk_group": 2,
        },
        num_experts=8,
        moe_layers=2,
    ),
    Family(
        "deepseek",
        DIMS
        | {
            "model_type": "deepseek",
            "moe_intermediate_size": 128,
            "n_shared_experts": 1,
            "n_routed_experts": 8,
            "num_experts_per_tok": 3,
            "first_k_dense_replace": 1,
        },
        num_experts=8,
        moe_layers=2,
    ),
    Family(
        "dots1",
        DIMS
        | {
            "model_type": "dots1",
            "first_k_dense_replace": 1,
            "moe_intermediate_size": 128,
            "n_routed_experts": 8,
            "n_shared_experts": 1,
            "norm_topk_prob": True,
            "num_experts_per_tok": 3,
            "routed_scaling_factor": 1.5,
            "scoring_func": "noaux_tc",
        },
        num_experts=8,
        moe_layers=2,
    ),
    Family(
        "ernie4_5_moe",
        DIMS
        | {
            "model_type": "ernie4_5_moe",
            "use_bias": True,
            "tie_word_embeddings": True,
            "moe_num_experts": 8,
            "moe_layer_start_index": 1,
            "moe_intermediate_size": 128,
            "moe_k": 3,
            "moe_num_shared_experts": 1,
        },
        num_experts=8,
        moe_layers=2,
    ),
    Family(
        "glm4_moe",
        DIMS
        | {
            "model_type": "glm4_moe",
            "moe_intermediate_size": 128,
            "norm_topk_prob": True,
            "n_group": 2,
            "head_dim": 16,
            "topk_group": 1,
            "n_shared_experts": 1,
            "n_routed_experts": 8,
            "routed_scaling_factor": 1.5,
            "num_experts_per_tok": 3,
            "first_k_dense_replace": 1,
            "rope_scaling": None,
            "use_qk_norm": True,
            "tie_word_embeddings": False,
            "attention_bias": True,
            "partial_rotary_factor": 0.5,
        },
        num_experts=8,
        moe_layers=2,
    ),
    Family(
        "granitemoe",
        DIMS
        | {
            "model_type": "granitemoe",
            "logits_scaling": 2.0,
            "attention_multiplier": 0.25,
            "embedding_multiplier": 4.0,
            "residual_multiplier": 0.5,
            "attention_bias": False,
            "num_local_experts": 8,
            "num_experts_per_tok": 3,
        },
        num_experts=8,
        moe_layers=3,
    ),
    Family(
        "hunyuan",
        DIMS
        | {
            "model_type": "hunyuan",
            "num_hidden_layers": 4,
            "attention_bias": False,
            "moe_topk": 3,
            "num_experts": 8,
            "num_shared_expert": 1,
            "use_mixed_mlp_moe": True,
            "use_qk_norm": True,
            "use_cla": True,
            "cla_share_factor": 2,
            "moe_intermediate_size": [128, 64, 128, 64],
            "rope_scaling": {"type": "dynamic", "factor": 1.0, "alpha": 1000.0},
        },
        num_experts=8,
        moe_layers=4,
    ),
    Family(
        "minimax",
        DIMS
        | {
            "model_type": "minimax_m2",
            "num_experts_per_tok": 3,
            "num_local_experts": 8,
            "shared_intermediate_size": 0,
            "rotary_dim": 8,
            "head_dim": 16,
        },
        num_experts=8,
        moe_layers=3,
    ),
    Family(
        "mixtral",
        DIMS | {"model_type": "mixtral", "num_local_experts": 8, "num_experts_per_tok": 2},
        num_experts=8,
        moe_layers=3,
    ),
    Family(
        "olmoe",
        DIMS
        | {
            "model_type": "olmoe",
            "num_experts": 8,
            "num_experts_per_tok": 3,
            "norm_topk_prob": True,
            "mlp_bias": True,
            "tie_word_embeddings": False,
        },
        num_experts=8,
        moe_layers=3,
    ),
    Family(
        "phimoe",
        DIMS | {"model_type": "phimoe", "num_local_experts": 8, "num_experts_per_tok": 2},
        num_experts=8,
        moe_layers=3,
    ),
    Family(
        "phixtral",
        {
            "model_type": "phi-msft",
            "num_vocab": 128,
            "model_dim": 64,
            "num_heads": 4,
            "num_layers": 2,
            "rotary_dim": 8,
            "num_experts_per_tok": 2,
            "num_local_experts": 6,
        },
        num_experts=6,
        moe_layers=2,
    ),
    Family(
        "qwen2_moe",
        DIMS
        | {
            "model_type": "qwen2_moe",
            "num_experts_per_tok": 3,
            "num_experts": 8,
            "moe_intermediate_size": 128,
            "shared_expert_intermediate_size": 64,
        },
        num_experts=8,
        moe_layers=3,
    ),
    Family(
        "qwen3_moe",
        DIMS
        | {
            "model_type": "qwen3_moe",
            "num_experts": 8,
            "num_experts_per_tok": 3,
            "decoder_sparse_step": 1,
            "mlp_only_layers": [1],
            "moe_intermediate_size": 128,
            "head_dim": 16,
            "tie_word_embeddings": False,
            "norm_topk_prob": True,
        },
        num_experts=8,
        moe_layers=2,
    ),
    Family(
        "solar_open",
        DIMS
        | {
            "model_type": "solar_open",
            "moe_intermediate_size": 128,
            "head_dim": 16,
            "n_shared_experts": 1,
            "n_routed_experts": 8,
            "routed_scaling_factor": 1.0,
            "num_experts_per_tok": 3,
            "first_k_dense_replace": 0,
            "norm_topk_prob": True,
            "tie_word_embeddings": False,
            "partial_rotary_factor": 1.0,
        },
        num_experts=8,
        moe_layers=3,
    ),
)
