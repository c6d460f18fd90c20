"""Writes a trained checkpoint as an MLX folder: 4-bit experts, 6-bit rest, 8-bit router.

The result is what `mlx_lm.load` opens; the integers are those of `mx.quantize` (see quantize.py).
"""

import argparse
import json
import logging
import shutil
from collections.abc import Iterable
from pathlib import Path

import torch
from quantize import EXPERT_BITS, GROUP_SIZE, bits_of, pack, quantize
from safetensors.torch import save_file
from torch import Tensor

logger = logging.getLogger("export")
NUM_SHARD_BYTES = 15_900_000
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


def mlx_name(name: str) -> str:
    """Return the tensor's name in mlx-lm's `qwen3_moe`."""
    for projection in ("gate_proj", "up_proj", "down_proj"):
        name = name.replace(f"mlp.{projection}", f"mlp.switch_mlp.{projection}.weight")
    return f"model.{name}"


def converted(weights: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, object]]:
    """Return the tensors to store and the `quantization` part of config.json."""
    stored: dict[str, Tensor] = {}
    scheme: dict[str, object] = {"group_size": GROUP_SIZE, "bits": EXPERT_BITS, "mode": "affine"}
    for name, weight in weights.items():
        weight = weight.detach().to("cpu", torch.bfloat16)
        bits = bits_of(name, weight.ndim)
        target = mlx_name(name)
        if bits is None:
            stored[target] = weight.contiguous()
            continue
        integers, scales, biases = quantize(weight, bits)
        module = target.removesuffix(".weight")
        stored[target] = pack(integers, bits).contiguous()
        stored[f"{module}.scales"] = scales.contiguous()
        stored[f"{module}.biases"] = biases.contiguous()
        if bits != EXPERT_BITS:
            scheme[module] = {"group_size": GROUP_SIZE, "bits": bits}
    return stored, scheme


def write_shards(tensors: dict[str, Tensor], out: Path) -> None:
    """Write the tensors in order into shards of at most 15.9 MB, and their index."""
    shards: list[dict[str, Tensor]] = [{}]
    size = 0
    for name, tensor in tensors.items():
        if size + tensor.nbytes > NUM_SHARD_BYTES:
            shards.append({})
            size = 0
        shards[-1][name] = tensor
        size += tensor.nbytes
    places: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        save_file(shard, str(out / file), metadata={"format": "mlx"})
        (out / file).chmod(0o644)
        places |= dict.fromkeys(shard, file)
    total = sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))}
    (out / "model.safetensors.index.json").write_text(json.dumps(index, indent=1) + "\n")


def export(checkpoint: Path, tokens: Path, out: Path) -> None:
    """Write the whole folder: shards, configuration, tokenizer."""
    out.mkdir(parents=True, exist_ok=True)
    figures = json.loads((checkpoint / "figures.json").read_text())
    weights = torch.load(checkpoint / "model.pt", map_location="cpu", weights_only=True)
    tensors, scheme = converted(weights)
    write_shards(tensors, out)
    ids = {token["content"]: token["id"] for token in _added_tokens(tokens)}
    ending = {"eos_token_id": ids["<|end|>"], "pad_token_id": ids["<|endoftext|>"]}
    config = figures["config"] | ending | {"torch_dtype": "bfloat16"}
    config |= {"quantization": scheme, "quantization_config": scheme}
    (out / "config.json").write_text(json.dumps(config, indent=1, sort_keys=True) + "\n")
    generation = ending | {"eos_token_id": [ids["<|end|>"], ids["<|endoftext|>"]]}
    (out / "generation_config.json").write_text(json.dumps(generation, indent=1) + "\n")
    for file in TOKENIZER_FILES:
        if tokens != out:
            shutil.copyfile(tokens / file, out / file)


def _added_tokens(tokens: Path) -> list[dict[str, object]]:
    document = json.loads((tokens / "tokenizer.json").read_text(encoding="utf-8"))
    return list(document["added_tokens"])


def main(argv: Iterable[str] | None = None) -> None:
    """Export one checkpoint."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", type=Path, default=Path(".train/checkpoint"))
    parser.add_argument("--tokens", type=Path, default=Path(".train/tokens"))
    parser.add_argument("--out", type=Path, default=Path("src/mlx_flash/assets/model"))
    options = parser.parse_args(None if argv is None else list(argv))
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    export(options.checkpoint, options.tokens, options.out)
    for path in sorted(options.out.iterdir()):
        logger.info("%10d %s", path.stat().st_size, path.name)


if __name__ == "__main__":
    main()
