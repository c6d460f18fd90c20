"""Families with multi-head latent attention, with or without a sparse indexer."""

from .attention import DIMS
from .family import Family

LATENT = DIMS | {
    "num_key_value_heads": 4,
    "moe_intermediate_size": 128,
    "n_shared_experts": 1,
    "n_routed_experts": 8,
    "routed_scaling_factor": 1.5,
    "kv_lora_rank": 32,
    "q_lora_rank": 32,
    "qk_rope_head_dim": 16,
    "qk_nope_head_dim": 32,
    "v_head_dim": 32,
    "norm_topk_prob": True,
    "scoring_func": "sigmoid",
    "topk_method": "noaux_tc",
    "n_group": 2,
    "topk_group": 1,
    "num_experts_per_tok": 3,
    "moe_layer_freq": 1,
    "first_k_dense_replace": 1,
    "attention_bias": False,
}
"""The DeepSeek V3 block, whose names the other latent families took over."""

LONGCAT = {
    "attention_method": "MLA",
    "zero_expert_type": "identity",
    "hidden_size": 64,
    "ffn_hidden_size": 128,
    "moe_topk": 4,
    "expert_ffn_hidden_size": 128,
    "n_routed_experts": 8,
    "zero_expert_num": 4,
    "num_layers": 2,
    "vocab_size": 128,
    "max_position_embeddings": 256,
    "num_attention_heads": 4,
    "kv_lora_rank": 32,
    "q_lora_rank": 32,
    "qk_rope_head_dim": 16,
    "qk_nope_head_dim": 32,
    "v_head_dim": 32,
    "routed_scaling_factor": 1.5,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "mla_scale_q_lora": True,
    "mla_scale_kv_lora": True,
    "attention_bias": False,
}

INDEXER = {"index_head_dim": 32, "index_n_heads": 2, "index_topk": 16}

LATENT_FAMILIES = (
    Family(
        "deepseek_v2",
        LATENT
        | {
            "model_type": "deepseek_v2",
            "topk_method": "group_limited_greedy",
            "rope_scaling": {
                "type": "yarn",
                "factor": 2.0,
                "original_max_position_embeddings": 128,
                "beta_fast": 32,
                "beta_slow": 1,
                "mscale": 1.0,
                "mscale_all_dim": 1.0,
            },
        },
        num_experts=8,
        moe_layers=2,
    ),
    Family("deepseek_v3", LATENT | {"model_type": "deepseek_v3"}, num_experts=8, moe_layers=2),
    Family(
        "deepseek_v32",
        LATENT | INDEXER | {"model_type": "deepseek_v32"},
        num_experts=8,
        moe_layers=2,
    ),
    Family(
        "deepseek_v41",
        {
            "model_type": "deepseek_v41",
            "vocab_size": 128,
            "hidden_size": 64,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "head_dim": 32,
            "q_lora_rank": 32,
            "qk_rope_head_dim": 16,
            "o_groups": 2,
            "o_lora_rank": 32,
            "moe_intermediate_size": 128,
            "n_routed_experts": 8,
            "num_experts_per_tok": 3,
            "sliding_window": 16,
            "compress_ratios": [0, 2, 2],
            "kv_source_layer_ids": [1],
            "index_source_layer_ids": [1],
            "index_n_heads": 2,
            "index_head_dim": 32,
            "index_topk": 8,
            "hc_mult": 2,
            "hc_sinkhorn_iters": 3,
            "max_position_embeddings": 256,
        },
        num_experts=8,
        moe_layers=3,
    ),
    Family("glm4_moe_lite", LATENT | {"model_type": "glm4_moe_lite"}, num_experts=8, moe_layers=2),
    Family(
        "glm_moe_dsa",
        LATENT
        | INDEXER
        | {
            "model_type": "glm_moe_dsa",
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        },
        num_experts=8,
        moe_layers=2,
    ),
    Family("longcat_flash", LONGCAT | {"model_type": "longcat_flash"}, num_experts=8, moe_layers=2),
    Family(
        "longcat_flash_ngram",
        LONGCAT
        | {
            "model_type": "longcat_flash_ngram",
            "ngram_vocab_size_ratio": 2,
            "emb_neighbor_num": 3,
            "emb_split_num": 4,
        },
        num_experts=8,
        moe_layers=2,
    ),
    Family(
        "mistral4",
        LATENT
        | {
            "model_type": "mistral4",
            "rope_parameters": {
                "rope_type": "yarn",
                "type": "yarn",
                "rope_theta": 10000.0,
                "factor": 2.0,
                "original_max_position_embeddings": 128,
                "llama_4_scaling_beta": 0.1,
                "mscale": 1.0,
                "mscale_all_dim": 1.0,
                "beta_fast": 32.0,
                "beta_slow": 1.0,
            },
        },
        num_experts=8,
        moe_layers=2,
    ),
)
