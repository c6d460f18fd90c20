"""The model types, as config.json names them, that mlx-lm computes with experts."""

MOE_TYPES = frozenset(
    {
        *("Klear", "afmoe", "bailing_hybrid", "bailing_moe", "bailing_moe_linear"),
        *("bailing_moe_v3", "deepseek", "deepseek_v2", "deepseek_v3", "deepseek_v32"),
        *("deepseek_v41", "deepseek_v41_text", "dots1", "ernie4_5_moe", "exaone_moe", "gemma4"),
        *("gemma4_text", "gemma4_unified", "glm4_moe", "glm4_moe_lite", "glm_moe_dsa", "gpt_oss"),
        *("granitemoe", "granitemoehybrid", "hunyuan", "jamba", "joyai_llm_flash", "kimi_k2"),
        *("kimi_k25", "kimi_k3", "kimi_linear", "kimi_vl", "laguna", "lfm2_moe", "llama4"),
        *("longcat_flash", "longcat_flash_ngram", "mellum", "mimo_v2_flash", "minimax"),
        *("minimax_m2", "minimax_m3_vl", "mistral3", "mistral4", "mixtral", "nemotron_h"),
        *("olmoe", "phi-msft", "phimoe", "phixtral", "qwen2_moe", "qwen3_5", "qwen3_5_moe"),
        *("qwen3_moe", "qwen3_next", "qwen3_vl_moe", "solar_open", "step3p5"),
    }
)
"""Some of these have models without experts as well."""
