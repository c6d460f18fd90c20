"""Writes a checkpoint of random 4-bit weights in the shape of Qwen3-30B-A3B, cut to some layers.

For measuring memory and reading at real sizes; what the model says is noise. The tokenizer is
that of the bundled model. One layer is held in memory at a time.
"""

import json
import shutil
from pathlib import Path
from typing import Annotated, Any

import mlx.core as mx
import numpy as np
import typer

from mlx_flash.engine.find import bundled_model

GROUP_SIZE = 64
TOKENIZER_FILES = ("tokenizer*", "chat_template*", "special_tokens_map.json", "generation_config*")


def config(layers: int, experts: int, top_k: int, hidden: int, width: int) -> dict[str, Any]:
    """Return config.json: Qwen3-30B-A3B where the arguments do not say otherwise."""
    return {
        "model_type": "qwen3_moe",
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "intermediate_size": 3 * hidden,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
        "head_dim": 128,
        "num_experts": experts,
        "num_experts_per_tok": top_k,
        "moe_intermediate_size": width,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "norm_topk_prob": True,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1_000_000.0,
        "max_position_embeddings": 40960,
        "tie_word_embeddings": False,
        "vocab_size": 151936,
        "quantization": {"group_size": GROUP_SIZE, "bits": 4},
    }


def quantized(rng: np.random.Generator, name: str, *shape: int) -> dict[str, mx.array]:
    """Return random 4-bit weights `[..., out, in]` with a variance of one over the width."""
    *stack, outputs, inputs = shape
    words = rng.integers(0, 2**32, (*stack, outputs, inputs // 8), np.uint32)
    spread = 4.6 * inputs**0.5  # of uniform 4-bit codes, times what keeps activations level
    scales = mx.array(
        rng.uniform(0.9, 1.1, (*stack, outputs, inputs // GROUP_SIZE)) / spread, mx.float32
    )
    return {
        f"{name}.weight": mx.array(words),
        f"{name}.scales": scales.astype(mx.bfloat16),
        f"{name}.biases": (-7.5 * scales).astype(mx.bfloat16),
    }


def layer_arrays(
    rng: np.random.Generator, number: int, shape: dict[str, Any]
) -> dict[str, mx.array]:
    """Return the tensors of one decoder layer."""
    prefix, hidden = f"model.layers.{number}", shape["hidden_size"]
    heads, kv_heads, dim = (
        shape[key] for key in ("num_attention_heads", "num_key_value_heads", "head_dim")
    )
    experts, width = shape["num_experts"], shape["moe_intermediate_size"]
    norms = {"input_layernorm": hidden, "post_attention_layernorm": hidden}
    norms |= {"self_attn.q_norm": dim, "self_attn.k_norm": dim}
    return {
        **{f"{prefix}.{n}.weight": mx.ones((size,), mx.bfloat16) for n, size in norms.items()},
        **quantized(rng, f"{prefix}.self_attn.q_proj", heads * dim, hidden),
        **quantized(rng, f"{prefix}.self_attn.k_proj", kv_heads * dim, hidden),
        **quantized(rng, f"{prefix}.self_attn.v_proj", kv_heads * dim, hidden),
        **quantized(rng, f"{prefix}.self_attn.o_proj", hidden, heads * dim),
        **quantized(rng, f"{prefix}.mlp.gate", experts, hidden),
        **quantized(rng, f"{prefix}.mlp.switch_mlp.gate_proj", experts, width, hidden),
        **quantized(rng, f"{prefix}.mlp.switch_mlp.up_proj", experts, width, hidden),
        **quantized(rng, f"{prefix}.mlp.switch_mlp.down_proj", experts, hidden, width),
    }


def main(
    out: Annotated[Path, typer.Argument(help="The folder to write.")],
    layers: Annotated[int, typer.Option(min=1)] = 12,
    experts: Annotated[int, typer.Option(min=1)] = 128,
    top_k: Annotated[int, typer.Option(min=1)] = 8,
    hidden: Annotated[int, typer.Option(help="A multiple of 64.")] = 2048,
    width: Annotated[int, typer.Option(help="Width of an expert, a multiple of 64.")] = 768,
    seed: int = 0,
) -> None:
    """Write the checkpoint, one shard per layer."""
    rng = np.random.default_rng(seed)
    out.mkdir(parents=True, exist_ok=True)
    shape = config(layers, experts, top_k, hidden, width)
    vocab = shape["vocab_size"]
    ends = {
        **quantized(rng, "model.embed_tokens", vocab, hidden),
        **quantized(rng, "lm_head", vocab, hidden),
        "model.norm.weight": mx.ones((hidden,), mx.bfloat16),
    }
    weight_map = {}
    for number in range(layers + 1):
        arrays = ends if number == layers else layer_arrays(rng, number, shape)
        name = f"model-{number + 1:05d}-of-{layers + 1:05d}.safetensors"
        mx.save_safetensors(str(out / name), arrays, metadata={"format": "mlx"})
        weight_map.update(dict.fromkeys(arrays, name))
        mx.clear_cache()
    (out / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    for pattern in TOKENIZER_FILES:
        for file in bundled_model().glob(pattern):
            shutil.copy(file, out)
    (out / "config.json").write_text(json.dumps(shape, indent=2))


if __name__ == "__main__":
    typer.run(main)
