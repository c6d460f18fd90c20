"""Measures what a lazily loaded model will need in memory, from shapes alone."""

import contextlib
from collections.abc import Iterator, Sequence

import mlx.core as mx
from mlx.nn.layers.base import Module

from ..formats.checkpoint import Checkpoint
from ..planner.memory import ModelNeed, staging_bytes
from ..streaming import adapter
from ..streaming.dense import cast_all_but_swapped
from ..streaming.install import SwitchSite
from ..streaming.layer_stream import HELD_RESULT_BYTES
from ..streaming.swap import SwappedModules
from ..streaming.switch import ShapeOnlySwitch
from .backend import computes_on_cpu
from .quantized_kv import bytes_per_float

PREFILL_STEPS = (2048, 1024, 512, 256, 128, 64, 32)
"""How many prompt tokens may be computed at once; mlx-lm takes the first when nobody says."""


def steps_for(prompt_tokens: int) -> list[int]:
    """Return the prefill steps, largest first, that make sense for a prompt of that length."""
    return [min(step, prompt_tokens) for step in PREFILL_STEPS]


_STAGING_SHARE, _STAGING_BYTES = 0.1, 8 * 10**6
_FREED_BUFFERS_SHARE, _FREED_BUFFERS_BYTES = 0.02, 2 * 10**9


def measure_need(
    model: Module,
    sites: Sequence[SwitchSite],
    checkpoint: Checkpoint,
    context_tokens: int,
    prefill_steps: Sequence[int],
    swapped: SwappedModules | None,
    kv_tokens: int | None = None,
    kv_bits: int | None = None,
) -> list[tuple[int, ModelNeed]]:
    """Return prefill steps with what the model needs to compute so many tokens at once.

    The first is the largest of `prefill_steps` (descending) whose staging is small beside the
    weights; smaller ones follow. Reads no weight: a forward pass is built for its shapes, and
    never evaluated. `swapped` is what of the model runs on the CPU kernels. `kv_tokens` are
    those of all texts together, when there is more than one.
    """
    no_products = swapped.shapes_only() if swapped else contextlib.nullcontext()
    with _shapes_only(model, sites) as stand_ins, no_products:
        use_float32_on_cpu(model, swapped)
        kv_bytes = adapter.cache_bytes(model, kv_tokens or context_tokens)
        kv_floats = 0
        if kv_bits is not None:
            kv_floats = kv_bytes // max(1, len(sites))  # of one layer, while it computes
            width = 4 if computes_on_cpu() else 2
            kv_bytes = int(kv_bytes / width * bytes_per_float(kv_bits, width))
        resident = sum(array.nbytes for array in adapter.parameters(model).values())
    as_float32 = computes_on_cpu() and swapped is None
    experts = sum(_resident_expert_bytes(site, as_float32) for site in sites)
    top_k = max((stand_in.top_k for stand_in in stand_ins), default=0)
    widths = [_width(site, stand_in) for site, stand_in in zip(sites, stand_ins, strict=True)]
    heads = checkpoint.num_attention_heads if computes_on_cpu() else 0
    if swapped is not None:
        heads = swapped.scored_heads(heads)
    held = len(sites) * HELD_RESULT_BYTES
    layouts = tuple(site.layout for site in sites)
    needs = []
    for step in dict.fromkeys(min(step, context_tokens) for step in prefill_steps):
        elements = step * max(widths, default=0)
        if swapped is not None:
            elements = max(elements, swapped.scratch_elements(step))
        staging = staging_bytes(step, context_tokens, elements, heads)
        working = kv_bytes + kv_floats + staging + held + freed_buffers_bytes(resident + experts)
        small = staging <= max(_STAGING_BYTES, _STAGING_SHARE * (resident + experts))
        needs.append((step, small, ModelNeed(resident, experts, working, layouts, top_k, kv_bytes)))
    first = next((number for number, (_, small, _) in enumerate(needs) if small), len(needs) - 1)
    return [(step, need) for step, _, need in needs[first:]]


def freed_buffers_bytes(weight_bytes: int) -> int:
    """Return how much freed memory MLX may keep; without a cap it doubles the footprint."""
    return min(_FREED_BUFFERS_BYTES, int(_FREED_BUFFERS_SHARE * weight_bytes))


def use_float32_on_cpu(model: Module, swapped: SwappedModules | None) -> None:
    """Make activations float32 on the CPU, where MLX's half-precision products are far slower.

    What is `swapped` keeps its types.
    """
    if computes_on_cpu() and swapped is not None:
        cast_all_but_swapped(model, mx.float32)
    elif computes_on_cpu():
        model.set_dtype(mx.float32)


@contextlib.contextmanager
def _shapes_only(model: Module, sites: Sequence[SwitchSite]) -> Iterator[list[ShapeOnlySwitch]]:
    """Put stand-ins without experts into the model while the block runs; yield them."""
    stand_ins = [ShapeOnlySwitch(site.switch, adapter.projections(site.switch)) for site in sites]
    for site, stand_in in zip(sites, stand_ins, strict=True):
        adapter.replace_module(model, site.path, stand_in)
    try:
        yield stand_ins
    finally:
        for site in sites:
            adapter.replace_module(model, site.path, site.switch)


def _resident_expert_bytes(site: SwitchSite, as_float32: bool) -> int:
    """Return what a site's experts take when the model runs resident, floats cast or not."""
    arrays = [
        array
        for projection in adapter.projections(site.switch).values()
        for array in adapter.parameters(projection).values()
    ]
    return sum(
        array.size * 4 if as_float32 and mx.issubdtype(array.dtype, mx.floating) else array.nbytes
        for array in arrays
    )


def _width(site: SwitchSite, stand_in: ShapeOnlySwitch) -> int:
    """Return the elements that one token takes while a site's experts are computed."""
    outputs = sum(
        int(adapter.parameters(projection)["weight"].shape[1])
        for projection in adapter.projections(site.switch).values()
    )
    return stand_in.top_k * (2 * outputs + 2 * stand_in.width)
