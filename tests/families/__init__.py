"""A tiny random checkpoint of every mlx-lm family that computes experts in a switch module.

`FAMILIES` lists them, `write_checkpoint` writes one. MLX's CPU back end multiplies unquantized
experts in float32 only: call `model.set_dtype(mx.float32)` after loading another dtype.

mlx-lm's MODEL_REMAPPING sends further model types to these modules: joyai_llm_flash and kimi_k2
to deepseek_v3, minimax_m2 to minimax, phi-msft to phixtral, gemma4_unified to gemma4,
deepseek_v41_text to deepseek_v41 and llava to mistral3.
"""

from .attention import ATTENTION_FAMILIES
from .checkpoint import write_checkpoint
from .family import Family
from .hybrid import HYBRID_FAMILIES
from .latent import LATENT_FAMILIES
from .multimodal import METAL_FAMILIES, MULTIMODAL_FAMILIES
from .sliding import SLIDING_FAMILIES

__all__ = ["FAMILIES", "METAL_FAMILIES", "UNSUPPORTED", "Family", "write_checkpoint"]

FAMILIES: tuple[Family, ...] = (
    *ATTENTION_FAMILIES,
    *SLIDING_FAMILIES,
    *LATENT_FAMILIES,
    *HYBRID_FAMILIES,
    *MULTIMODAL_FAMILIES,
)

UNSUPPORTED: dict[str, str] = {
    "dbrx": "its experts are a list of dense MLPs, one module each, not a switch module",
    "muse_spark": (
        "its layers call mlx_lm.kernels, which have no CPU version: "
        "RuntimeError: [metal_kernel] No Metal back-end. (see METAL_FAMILIES)"
    ),
    "prism_hadamard_qwen35": (
        "a pack holds only Linear and Embedding modules, so none has experts: ValueError: "
        "Unknown or unsupported packed module: model.layers.0.mlp.switch_mlp.gate_proj"
    ),
}
"""Families that have experts, or wrap a family that has, and are not in FAMILIES, with why."""
