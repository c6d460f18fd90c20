"""The seam to mlx-lm's models: how they are loaded, what they are made of, how parts are replaced.

This module and `tokens.py` alone touch names of mlx-lm beyond its public API.
`tests/test_adapter.py` holds the contract that each of these names must keep.
"""

import contextlib
import inspect
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FunctionType
from typing import Any

import mlx.core as mx
from mlx.nn.layers.activations import ReLU2
from mlx.nn.layers.base import Module
from mlx.nn.layers.embedding import Embedding
from mlx.nn.layers.linear import Linear
from mlx.nn.layers.quantized import QuantizedEmbedding, QuantizedLinear
from mlx.utils import tree_flatten
from mlx_lm.models.activations import SwigluOAI
from mlx_lm.models.base import scaled_dot_product_attention
from mlx_lm.models.cache import can_trim_prompt_cache, make_prompt_cache
from mlx_lm.models.switch_layers import (
    QuantizedSwitchLinear,
    SwiGLU,
    SwitchGLU,
    SwitchLinear,
    SwitchMLP,
)
from mlx_lm.utils import (
    _get_classes,
    load_config,
    load_model,
    quantize_model,
    save_config,
)

from ..errors import UnsupportedModelError
from ..kernels.activations import Activation
from ..kernels.reference import Quantization

Attention = Callable[..., mx.array]
"""A function with the arguments of `scaled_dot_product_attention`."""

_ATTENTION = "scaled_dot_product_attention"

ANYTHING = (Exception, SystemExit)
"""What loading may raise: much code of others runs there, on files that nobody has checked."""


@dataclass(frozen=True)
class LazyModel:
    """A model none of whose weights has been read.

    `in_place` says which parameters are tensors of the checkpoint just as they are stored, under
    the same name; the others were renamed or computed while loading. `config` is as mlx-lm
    understood it.
    """

    model: Module
    in_place: frozenset[str]
    config: dict[str, Any]


def load_lazily(folder: Path, elsewhere: Mapping[str, mx.array] | None = None) -> LazyModel:
    """Return the mlx-lm model in `folder` without reading its weights.

    `elsewhere` are tensors that are not in the shards that mlx-lm reads.

    Raises:
        UnsupportedModelError: mlx-lm has no such model type, or its loader refuses the folder.
    """
    loaded: dict[str, mx.array] = {}

    def classes(config: dict[str, Any]) -> tuple[Any, Any]:
        model_class, args_class = _get_classes(config)

        def build(args: Any) -> Any:
            model = model_class(args)
            model.sanitize = _recording(model, loaded, elsewhere or {})
            return model

        return build, args_class

    model: Module
    try:
        model, config = load_model(
            folder,
            lazy=True,
            get_model_classes=classes,
            trust_remote_code=False,
        )
    except ANYTHING as error:
        raise UnsupportedModelError(f"mlx-lm cannot load {folder}: {one_line(error)}") from error
    delattr(model, "sanitize")  # the recording one; the class has its own
    in_place = {name for name, array in parameters(model).items() if loaded.get(name) is array}
    return LazyModel(model, frozenset(in_place), config)


def quantize_lazily(lazy: LazyModel, bits: int, group_size: int, mode: str) -> LazyModel:
    """Return the model with weights that will be quantized when they are read, as mlx-lm does it.

    Raises:
        UnsupportedModelError: mlx-lm refuses, for a width that the group size does not divide.
    """
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # it prints a line for people
            model, config = quantize_model(lazy.model, lazy.config, group_size, bits, mode)
    except ANYTHING as error:
        raise UnsupportedModelError(
            f"mlx-lm cannot quantize the model: {one_line(error)}"
        ) from error
    return LazyModel(model, frozenset(), config)


def write_config(config: dict[str, Any], path: Path) -> None:
    """Write a model's config as mlx-lm reads it."""
    save_config(dict(config), path, keep_vision_config=True)


def check_supported(folder: Path) -> None:
    """Check, before anything is loaded, that mlx-lm has the model type that the config names.

    Raises:
        UnsupportedModelError: it has not.
    """
    try:
        _get_classes(load_config(folder))
    except ANYTHING as error:
        raise UnsupportedModelError(f"mlx-lm cannot load {folder}: {one_line(error)}") from error


def one_line(error: BaseException) -> str:
    """Return the message of an error as one line."""
    return " ".join(str(error).split())


def _recording(model: Any, loaded: dict[str, mx.array], elsewhere: Mapping[str, mx.array]) -> Any:
    """Return the model's `sanitize`, given what is `elsewhere` too, that notes in `loaded` all."""
    sanitize = model.sanitize if hasattr(model, "sanitize") else dict

    def record(weights: dict[str, mx.array]) -> dict[str, mx.array]:
        weights.update(elsewhere)
        loaded.update(weights)
        result: dict[str, mx.array] = sanitize(weights)
        return result

    return record


def find_switches(model: Module) -> list[tuple[str, Module]]:
    """Return the path and module of each `SwitchGLU` and `SwitchMLP`, in the order of layers."""
    found = [
        (path, module)
        for path, module in model.named_modules()
        if isinstance(module, (SwitchGLU, SwitchMLP))
    ]
    return sorted(found, key=lambda item: _natural(item[0]))


def _natural(path: str) -> list[tuple[int, int, str]]:
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in path.split(".")]


def projections(switch: Module) -> dict[str, Module]:
    """Return the matrices of a switch module by their path in it, such as `gate_proj`."""
    return {
        path: module
        for path, module in switch.named_modules()
        if isinstance(module, (SwitchLinear, QuantizedSwitchLinear))
    }


def parameters(module: Module) -> dict[str, mx.array]:
    """Return every parameter of a module by its path in it.

    Of a projection these are its stacked tensors, experts first: weight, scales, bias ...
    """
    flat: dict[str, mx.array] = dict(tree_flatten(module.parameters()))
    return flat


def quantization_of(projection: Module) -> Quantization | None:
    """Return how the weight of a projection or a dense module is packed, None when it is not."""
    if not isinstance(projection, (QuantizedSwitchLinear, QuantizedLinear, QuantizedEmbedding)):
        return None
    return Quantization(projection.group_size, projection.bits, projection.mode)


def dense_modules(model: Module) -> list[tuple[str, Module]]:
    """Return the path and module of each linear layer and embedding; no subclasses of them."""
    kinds = (Linear, QuantizedLinear, Embedding, QuantizedEmbedding)
    return [(path, module) for path, module in model.named_modules() if type(module) in kinds]


def is_embedding(module: Module) -> bool:
    """Return whether a module is an embedding."""
    return isinstance(module, (Embedding, QuantizedEmbedding))


def is_head(path: str, module: Module) -> bool:
    """Return whether a dense module turns a model's last hidden states into logits.

    An embedding does where the two are tied, and computes logits alone.
    """
    return is_embedding(module) or not {"lm_head", "embed_out"}.isdisjoint(path.split("."))


def activation_of(switch: Module) -> Activation | None:
    """Return what stands between a switch's projections; None when we have no name for it.

    Some classes are known by name, so that a model's file is not imported for another model.
    """
    module = switch.activation
    if type(module) is SwiGLU:
        return Activation("swiglu")
    if type(module) is SwigluOAI:
        return Activation("swiglu_oai", module._alpha, module._limit)
    if type(module) is ReLU2:
        return Activation("relu2")
    name = f"{type(module).__module__}.{type(module).__name__}"
    if name == "mlx_lm.models.gemma4_text.GeGLU":
        return Activation("geglu")
    if name == "mlx_lm.models.step3p5.ClampedSwiGLU":
        return Activation("clamped_silu", limit=module.limit)
    if name == "mlx_lm.models.deepseek_v41.DeepseekV41SwiGLU":
        clamped = module.limit > 0
        return Activation("clamped_swiglu", limit=module.limit) if clamped else Activation("swiglu")
    return None


def replace_attention(model: Module, attention: Attention) -> int:
    """Let the attentions of this model call `attention`; return how many modules do.

    mlx-lm's attention modules call `base.scaled_dot_product_attention` by its name in their file.
    Each module that does gets a class of its own, whose call sees `attention` under that name:
    other models of the type are as they were.
    """
    changed = 0
    twins: dict[type, type] = {}
    for _, module in model.named_modules():
        kind = type(module)
        call = kind.__call__
        if not isinstance(call, FunctionType) or _ATTENTION not in call.__code__.co_names:
            continue
        if call.__globals__.get(_ATTENTION) is not scaled_dot_product_attention:
            continue
        if kind not in twins:
            names = {**call.__globals__, _ATTENTION: attention}
            bound = FunctionType(call.__code__, names, None, call.__defaults__, call.__closure__)
            bound.__kwdefaults__ = call.__kwdefaults__
            twins[kind] = type(kind.__name__, (kind,), {"__call__": bound})
        module.__class__ = twins[kind]
        changed += 1
    return changed


def mlx_attention(*args: Any, **kwargs: Any) -> mx.array:
    """Return what mlx-lm's `scaled_dot_product_attention` returns."""
    result: mx.array = scaled_dot_product_attention(*args, **kwargs)
    return result


def parent_of(model: Module, path: str) -> Any:
    """Return the module that holds the one at `path` of a model."""
    parent: Any = model
    for part in path.split(".")[:-1]:
        parent = parent[int(part)] if isinstance(parent, list) else parent[part]
    return parent


def routing_block(model: Module, path: str) -> Any | None:
    """Return the nearest module around a switch that is called with hidden states alone.

    It routes. None where that is the decoder layer itself, which has attention and a cache too.
    """
    while "." in path:
        path = path.rpartition(".")[0]
        parent = parent_of(model, f"{path}.")
        if not isinstance(parent, Module):
            return None
        parameters = inspect.signature(type(parent).__call__).parameters
        if "cache" in parameters:
            return None
        required = [
            p for p in parameters.values() if p.default is p.empty and p.kind != p.VAR_KEYWORD
        ]
        if len(required) == 2:  # self and the hidden states
            return parent
    return None


@contextlib.contextmanager
def wider_top_k(block: Module, top_k: int) -> Iterator[None]:
    """Let the router in `block` pick twice its `top_k` experts while the block runs.

    Routers keep the number as an attribute, of the block or of a module in it. Where none is found
    they go on picking `top_k`.
    """
    changed: list[tuple[Any, str]] = []
    for _, module in block.named_modules():
        for name in ("top_k", "num_experts_per_tok", "moe_top_k", "k"):
            if getattr(module, name, None) == top_k:
                setattr(module, name, 2 * top_k)
                changed.append((module, name))
    try:
        yield
    finally:
        for module, name in changed:
            setattr(module, name, top_k)


def replace_module(model: Module, path: str, module: Module) -> None:
    """Put `module` at `path` of a model, in the place of the one that is there."""
    parent, name = parent_of(model, path), path.rpartition(".")[2]
    if isinstance(parent, list):
        parent[int(name)] = module
    else:
        parent[name] = module


def take_parameter(model: Module, path: str) -> mx.array:
    """Remove a parameter from a model and return it: its memory is the caller's to free."""
    parent, name = parent_of(model, path), path.rpartition(".")[2]
    array: mx.array = parent.pop(int(name) if isinstance(parent, list) else name)
    return array


def new_cache(model: Module) -> list[Any]:
    """Return an empty prompt cache of a model: it grows with the tokens it is called with."""
    return list(make_prompt_cache(model))


def trim_cache(cache: list[Any], num_tokens: int) -> bool:
    """Take the last `num_tokens` tokens out of a prompt cache; False when it is of no use now.

    A sliding window that has slid, or a recurrent state, cannot go back.
    """
    if num_tokens == 0:
        return True
    if not can_trim_prompt_cache(cache):
        return False
    return all(entry.trim(num_tokens) == num_tokens for entry in cache)


def held_bytes(cache: Sequence[Any]) -> int:
    """Return the memory that a prompt cache takes."""
    return sum(int(entry.nbytes) for entry in cache)


def cache_bytes(model: Module, num_tokens: int) -> int:
    """Return the bytes of prompt cache that `num_tokens` tokens take. Computes shapes only.

    The model's switches must be `ShapeOnlySwitch`: a forward pass is built, and never evaluated.

    Raises:
        UnsupportedModelError: the config makes a model that cannot run.
    """
    try:
        cache = make_prompt_cache(model)
        model(mx.zeros((1, num_tokens), mx.int32), cache=cache)
    except ANYTHING as error:
        raise UnsupportedModelError(f"mlx-lm cannot run this model: {one_line(error)}") from error
    return held_bytes(cache)
