"""A KV cache kept in 8 or 4 bits: half or a quarter of the memory, not quite the same answers.

mlx-lm's own cannot be computed in batches. This one is quantized as it grows, in groups along the
width of a head, and given out as floats, one layer at a time.
"""

from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx
import numpy as np
from mlx_lm.models.base import create_causal_mask
from mlx_lm.models.cache import KVCache, make_prompt_cache

from ..errors import UnsupportedModelError

GROUP_SIZE = 64

Packed = tuple[mx.array, ...]
"""Weights, scales and biases, each `[B, H, N, ..]`."""


def bytes_per_float(bits: int, float_bytes: int) -> float:
    """Return what a number of the cache takes, its share of scale and bias included."""
    return bits / 8 + 2 * float_bytes / GROUP_SIZE


class QuantizedKV:
    """What mlx-lm's `BatchKVCache` is, for one sequence or several, in `bits_kept` bits.

    Sequences end together: shorter ones have `left_padding` before them.
    """

    step = 256

    def __init__(self, bits: int) -> None:
        """Begin with one sequence and no token."""
        self.keys: Packed | None = None
        self.values: Packed | None = None
        self.offset = mx.array([0])
        self.left_padding = mx.array([0])
        self.bits_kept = bits  # attention takes a cache with `bits` for one of mlx-lm's own
        self._idx = 0
        self._dtype = mx.float32

    def __deepcopy__(self, memo: dict[int, Any]) -> "QuantizedKV":
        """Return a copy that shares memory until either is changed."""
        twin = QuantizedKV(self.bits_kept)
        twin.keys, twin.values = self.keys, self.values
        twin._change(lambda part: part[...])  # arrays of its own: they are written to in place
        twin.offset, twin.left_padding = self.offset, self.left_padding
        twin._idx, twin._dtype = self._idx, self._dtype
        return twin

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Add keys and values `[B, H, n, D]`; return all there are, as floats."""
        start, end = self._idx, self._idx + keys.shape[2]
        self._dtype = keys.dtype
        self.keys = self._added(self.keys, keys, start)
        self.values = self._added(self.values, values, start)
        self.offset = self.offset + keys.shape[2]
        self._idx = end
        return self._floats(self.keys), self._floats(self.values)

    def _added(self, packed: Packed | None, new: mx.array, start: int) -> Packed:
        parts = mx.quantize(new, group_size=GROUP_SIZE, bits=self.bits_kept)
        end = start + new.shape[2]
        if packed is None or end > packed[0].shape[2]:
            packed = tuple(
                self._grown(part, packed[n] if packed else None, start, end)
                for n, part in enumerate(parts)
            )
        for whole, part in zip(packed, parts, strict=True):
            whole[..., start:end, :] = part
        return packed

    def _grown(self, like: mx.array, old: mx.array | None, start: int, end: int) -> mx.array:
        length = -(-end // self.step) * self.step - (start if old is not None else 0)
        room = mx.zeros((*like.shape[:2], length, like.shape[3]), like.dtype)
        return room if old is None else mx.concatenate([old[..., :start, :], room], axis=2)

    def _floats(self, packed: Packed) -> mx.array:
        weights, scales, biases = (part[..., : self._idx, :] for part in packed)
        floats = mx.dequantize(weights, scales, biases, GROUP_SIZE, self.bits_kept)
        return floats.astype(self._dtype)

    def make_mask(self, length: int, return_array: bool = False, **options: Any) -> mx.array:
        """Return which keys each of `length` new queries may look at."""
        mask: mx.array = create_causal_mask(
            length, offset=self._idx, left_padding=self.left_padding, **options
        )
        return mask

    def is_trimmable(self) -> bool:
        """Return that the latest tokens can be forgotten."""
        return True

    def trim(self, num_tokens: int) -> int:
        """Forget the latest tokens; return how many."""
        forgotten = min(self._idx, num_tokens)
        self._idx -= forgotten
        self.offset = self.offset - forgotten
        return forgotten

    def empty(self) -> bool:
        """Return whether there is no token."""
        return self.keys is None

    def _change(self, change: Callable[[mx.array], mx.array]) -> None:
        if self.keys is not None and self.values is not None:
            self.keys = tuple(change(part) for part in self.keys)
            self.values = tuple(change(part) for part in self.values)

    def filter(self, batch_indices: Sequence[int]) -> None:
        """Keep these sequences only, and no more padding than they need."""
        kept = mx.array(list(batch_indices))
        self._change(lambda part: part[kept])
        self.offset, self.left_padding = self.offset[kept], self.left_padding[kept]
        spare = int(np.asarray(self.left_padding).min())
        if spare > 0:
            self._change(lambda part: part[..., spare:, :])
            self._idx -= spare
            self.left_padding = self.left_padding - spare

    def extend(self, other: "QuantizedKV") -> None:
        """Add the sequences of another cache, padded to the longer one."""
        longest = max(self._idx, other._idx)
        for cache in (self, other):
            cache._pad(longest - cache._idx)
        if self.keys and self.values and other.keys and other.values:
            self.keys = _joined(self.keys, other.keys, longest)
            self.values = _joined(self.values, other.values, longest)
        self.offset = mx.concatenate([self.offset, other.offset])
        self.left_padding = mx.concatenate([self.left_padding, other.left_padding])

    def _pad(self, left: int) -> None:
        if left:
            self._change(lambda part: mx.pad(part, [(0, 0), (0, 0), (left, 0), (0, 0)]))
            self._idx += left
            self.left_padding = self.left_padding + left

    def extract(self, idx: int) -> "QuantizedKV":
        """Return a cache of one of the sequences."""
        padding = int(np.asarray(self.left_padding)[idx])
        one = QuantizedKV(self.bits_kept)
        one._dtype, one._idx = self._dtype, self._idx - padding
        one.offset = mx.array([one._idx])
        one.keys, one.values = self.keys, self.values
        one._change(lambda part: mx.contiguous(part[idx : idx + 1, :, padding : self._idx]))
        return one

    def merge(self, caches: Sequence["QuantizedKV"]) -> "QuantizedKV":
        """Return the caches as one; they may be changed by it."""
        first, *others = caches
        for other in others:
            first.extend(other)
        return first

    def size(self) -> int:
        """Return how many tokens the longest sequence has."""
        return self._idx

    @property
    def nbytes(self) -> int:
        """Bytes of keys and values."""
        packed = (*(self.keys or ()), *(self.values or ()))
        return sum(int(part.nbytes) for part in packed)

    @property
    def state(self) -> Any:
        """What there is to evaluate."""
        return self.keys, self.values, self.offset, self.left_padding


def _joined(ours: Packed, theirs: Packed, length: int) -> Packed:
    """Return the sequences of both, cut to `length` tokens."""
    return tuple(
        mx.concatenate([a[..., :length, :], b[..., :length, :]])
        for a, b in zip(ours, theirs, strict=True)
    )


def use_quantized_kv(model: Any, bits: int) -> None:
    """Let prompt caches of a model be quantized from now on.

    Raises:
        UnsupportedModelError: its caches are of another kind than keys and values of all tokens.
    """
    plain = make_prompt_cache(model)
    if any(type(entry) is not KVCache for entry in plain):
        raise UnsupportedModelError(
            "this model's cache is no plain KV cache and cannot be quantized: leave --kv-bits out."
        )
    count = len(plain)
    object.__setattr__(model, "make_cache", lambda: [QuantizedKV(bits) for _ in range(count)])
