"""The shape of a model, from its config.json and the headers of its files alone.

Sizes of weights are exact. The KV cache is what attention without windows keeps in 16 bits: of
sliding windows, which keep less, and of indexers, which keep more, it knows nothing.
"""

import re
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from ..formats.packed import PackedLayer
from ..formats.safetensors import TensorEntry
from .speed import ModelShape

_TOP_K = (
    *("num_experts_per_tok", "num_experts_per_token", "experts_per_token", "top_k_experts"),
    *("moe_topk", "moe_top_k", "moe_k", "num_selected_experts"),
)
_NUM_LAYERS = ("num_hidden_layers", "num_layers", "n_layers", "n_layer")
_HEADS = ("num_attention_heads", "num_heads", "n_head")
_ONE_IN = ("full_attention_interval", "attn_layer_period", "layer_group_size")
_TEXT_CONFIGS = ("text_config", "language_config", "llm_config")
_KV_ITEM_BYTES = 2
_MAX_COUNT = 1 << 20  # of anything that a config counts

_EXPERTS = re.compile(
    r"(?P<prefix>(?:.*?\.)?(?:experts\.)?(?:switch_mlp|switch_glu|(?<!\.experts\.)experts))"
    r"\.(?:(?P<expert>[0-9]{1,6})\.)?.+",
    re.DOTALL,
)
_LAYER = re.compile(r"(?:^|\.)layers\.([0-9]{1,6})\.")
_LEFT_OUT = frozenset(
    {
        *("vision_tower", "vision_model", "vision", "visual", "embed_vision", "aligner"),
        *("audio_tower", "embed_audio", "multi_modal_projector", "mm_projector"),
        "patch_merge_mlp",
    }
)


def experts_per_token(config: Mapping[str, Any]) -> int | None:
    """Return the top-k that a config names, under whatever name; None: it is of no MoE."""
    return _count(config, *_TOP_K)


def shape_of(
    name: str,
    config: Mapping[str, Any],
    tensors: Mapping[str, TensorEntry],
    packed: Collection[PackedLayer] = (),
) -> ModelShape | None:
    """Return the shape of a model, or None when it has no experts that could be streamed.

    `packed` are the layers whose experts are in the packed store. Vision and audio towers, and
    layers that predict further tokens, do not count: mlx-lm leaves them out. Where layers differ,
    `expert_bytes` is the mean, rounded up, and `num_experts` of the layer that has most.
    """
    top_k = experts_per_token(config)
    kept = {key: entry for key, entry in tensors.items() if _is_loaded(key, config)}
    layers = list(_expert_layers(kept))
    counts = [count for _, count, _ in layers] + [layer.num_experts for layer in packed]
    num_experts = max(counts, default=0)
    if top_k is None or num_experts < 2:
        return None
    stored = sum(nbytes for _, _, nbytes in layers)
    in_packs = sum(
        layer.num_experts * sum(tensor.nbytes for tensor in layer.tensors) for layer in packed
    )
    resident = sum(entry.nbytes for entry in kept.values()) - stored
    reads = max((pieces for pieces, _, _ in layers), default=1)
    per_expert = -(-(stored + in_packs) // (num_experts * len(counts)))
    kv_bytes = _kv_bytes_per_token(config)
    shape = (resident, per_expert, num_experts, len(counts), min(top_k, num_experts))
    return ModelShape(name, *shape, kv_bytes, reads)


def stores_experts_one_by_one(tensors: Collection[str]) -> bool:
    """Return whether these tensors hold single experts, which must be packed to be streamed."""
    return any((found := _EXPERTS.fullmatch(name)) and found["expert"] for name in tensors)


def _expert_layers(tensors: Mapping[str, TensorEntry]) -> Iterator[tuple[int, int, int]]:
    """Yield the tensors that an expert is made of, experts, and bytes of each layer with experts.

    The experts of a layer are stacked along the first axis, or stored one by one.
    """
    stacks: defaultdict[str, list[TensorEntry]] = defaultdict(list)
    singles: defaultdict[str, dict[str, list[TensorEntry]]] = defaultdict(lambda: defaultdict(list))
    for name, entry in tensors.items():
        if (found := _EXPERTS.fullmatch(name)) is None:
            continue
        if found["expert"] is not None:
            singles[found["prefix"]][found["expert"]].append(entry)
        elif entry.shape:
            stacks[found["prefix"]].append(entry)
    for entries in stacks.values():
        num_experts = max(entries, key=lambda entry: entry.nbytes).shape[0]
        members = [entry for entry in entries if entry.shape[0] == num_experts]
        yield len(members), num_experts, sum(entry.nbytes for entry in members)
    for experts in singles.values():
        entries = [entry for members in experts.values() for entry in members]
        pieces = max(map(len, experts.values()))
        yield pieces, len(experts), sum(entry.nbytes for entry in entries)


def _is_loaded(name: str, config: Mapping[str, Any]) -> bool:
    """Return whether mlx-lm loads a tensor of that name into its language model."""
    path = name.split(".")
    if _LEFT_OUT.intersection(path[:2]) or any(part.startswith("mtp") for part in path[:3]):
        return False
    predicting = _count(config, "num_nextn_predict_layers")
    if predicting is None or (found := _LAYER.search(name)) is None:
        return True
    return int(found[1]) < (_count(config, *_NUM_LAYERS) or _MAX_COUNT)


def _kv_bytes_per_token(config: Mapping[str, Any]) -> int:
    """Return the KV cache of one token in all layers; 0 where the config does not say."""
    layers = _num_attention_layers(config)
    if latent := _count(config, "kv_lora_rank"):
        return _KV_ITEM_BYTES * layers * (latent + (_count(config, "qk_rope_head_dim") or 0))
    heads = _count(config, *_HEADS) or 0
    kv_heads = _count(config, "num_key_value_heads") or heads
    width = _count(config, "hidden_size", "model_dim") or 0
    head_dim = _count(config, "head_dim") or width // max(1, heads)
    return 2 * _KV_ITEM_BYTES * layers * kv_heads * head_dim


def _num_attention_layers(config: Mapping[str, Any]) -> int:
    """Return the layers whose cache grows with every token: not those of state-space models."""
    for part in _parts(config):
        types, pattern = part.get("layer_types"), part.get("hybrid_override_pattern")
        if isinstance(types, list):
            words = [kind for kind in types if isinstance(kind, str)]
            return sum("attention" in word and "linear" not in word for word in words)
        if isinstance(pattern, list | str):
            return pattern.count("*")
    layers = _count(config, *_NUM_LAYERS) or 0
    return layers // (_count(config, *_ONE_IN) or 1)


def _count(config: Mapping[str, Any], *names: str) -> int | None:
    """Return the first positive number that a config gives under one of the names.

    Of a list, which has one for each layer, the largest. What no model could have is no number.
    """
    for part in _parts(config):
        for name in names:
            value = part.get(name)
            values = value if isinstance(value, list) else [value]
            sound = [n for n in values if type(n) is int and 0 < n <= _MAX_COUNT]
            if sound and len(sound) == len(values):
                return max(sound)
    return None


def _parts(config: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return a config and those inside it that describe the language model."""
    inner = [config.get(name) for name in _TEXT_CONFIGS]
    return [config, *(part for part in inner if isinstance(part, dict))]
