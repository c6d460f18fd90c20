"""Write a random checkpoint of a family, laid out as `mlx_lm.convert` lays one out."""

import contextlib
import copy
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten, tree_unflatten
from mlx_lm.utils import _get_classes, quantize_model, save_config

from .family import Family


def write_checkpoint(
    family: Family,
    folder: Path,
    *,
    quantization: Mapping[str, Any] | None = None,
    dtype: str = "float32",
    shards: int = 1,
    seed: int = 0,
) -> Path:
    """Write a random checkpoint in the family's own MLX format into `folder`; return `folder`.

    The files are config.json, model.safetensors (or `shards` files named
    model-0000i-of-0000n.safetensors) and model.safetensors.index.json. `quantization` holds
    the arguments of `mlx_lm.utils.quantize_model`: `group_size`, `bits`, `mode` and
    `global_scale`. The family's own `quant_predicate` decides what stays as it is, and its
    `cast_predicate` what stays float32 under another `dtype`. The same `seed` gives the same
    values; MLX's own random state plays no part in them.
    """
    config = copy.deepcopy(family.config)
    model_class, args_class = _get_classes(config)
    model = model_class(args_class.from_dict(copy.deepcopy(config)))
    keeps_dtype = getattr(model, "cast_predicate", lambda _: True)
    rng = np.random.default_rng(seed)
    weights = []
    for name, initial in dict(tree_flatten(model.parameters())).items():
        value = mx.array(_random_values(name, np.array(initial), rng))
        weights.append((name, value.astype(getattr(mx, dtype)) if keeps_dtype(name) else value))
    model.update(tree_unflatten(weights))
    if quantization is not None:
        arguments = {"group_size": None, "bits": None} | dict(quantization)
        with contextlib.redirect_stdout(io.StringIO()):
            model, config = quantize_model(model, config, **arguments)
    folder.mkdir(parents=True, exist_ok=True)
    save_config(config, folder / "config.json")
    _save_shards(dict(tree_flatten(model.parameters())), folder, shards)
    return folder


def _random_values(
    name: str, initial: np.ndarray[Any, Any], rng: np.random.Generator
) -> np.ndarray[Any, Any]:
    """Values for one parameter under which activations neither vanish nor grow.

    Matrices get a variance of one over their input width. Vectors (norms, biases, router
    corrections, sinks) keep the value the model starts with, 0 or 1, plus a little noise.
    """
    shape = initial.shape
    if name.endswith("A_log"):
        values: np.ndarray[Any, Any] = np.log(rng.uniform(1.0, 16.0, shape))
    elif initial.ndim < 2 or name.endswith(".bias"):
        values = initial + 0.05 * rng.standard_normal(shape)
    else:
        fan_in = shape[-1] if shape[-1] > 1 else shape[-2]
        values = rng.standard_normal(shape) / np.sqrt(fan_in)
    return values.astype(np.float32)


def _save_shards(weights: dict[str, mx.array], folder: Path, shards: int) -> None:
    """Save `weights` as `shards` files of about as many tensors each, and their index."""
    names = list(weights)
    weight_map = {}
    for shard in range(shards):
        stem = f"model-{shard + 1:05d}-of-{shards:05d}" if shards > 1 else "model"
        members = names[shard * len(names) // shards : (shard + 1) * len(names) // shards]
        part = {name: weights[name] for name in members}
        mx.save_safetensors(str(folder / f"{stem}.safetensors"), part, metadata={"format": "mlx"})
        weight_map.update(dict.fromkeys(members, f"{stem}.safetensors"))
    index = {
        "metadata": {"total_size": sum(w.nbytes for w in weights.values())},
        "weight_map": dict(sorted(weight_map.items())),
    }
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=4))
