"""Slot memory: one aligned slab of MLX memory per layer, seen as arrays and as bytes."""

import math
import sys
from collections.abc import Mapping
from typing import Any

import mlx.core as mx
import numpy as np

from ..errors import UnsupportedModelError
from ..formats.layout import SLOT_ALIGNMENT, ExpertLayout, ExpertTensor
from ..kernels.addresses import address_of
from .pages import give_pages_back, use_huge_pages

DTYPES: dict[str, mx.Dtype] = {
    "U8": mx.uint8,
    "I8": mx.int8,
    "U16": mx.uint16,
    "I16": mx.int16,
    "U32": mx.uint32,
    "I32": mx.int32,
    "F16": mx.float16,
    "BF16": mx.bfloat16,
    "F32": mx.float32,
}
"""The MLX type of each safetensors type that an expert may be stored in."""


_GPU_STEP = 16  # bytes: GPU kernels load 16 at a time, from multiples of that
_WORD_BYTES = 8  # a slab is made of words, because an axis of MLX holds less than 2^31 elements


class SlotPool:
    """`capacity` slots for the experts of one layer.

    `arrays[name]` is the stack `[capacity, ...]` of one expert tensor; `view(name, slot)` is the
    same memory as bytes, for a reader thread to fill. A slot must not be written while a
    computation that reads it may be in flight.
    """

    def __init__(self, layout: ExpertLayout, capacity: int, slab: mx.array | None = None) -> None:
        """Use `slab`, which `new_slab` made large enough, or one of its own.

        That is in huge pages where fewer than half of the experts have a slot: they cost time once,
        when they are first touched, and save it whenever an expert is read.

        Raises:
            UnsupportedModelError: an expert tensor has a type that MLX has not.
        """
        self._layout = layout
        self._nbytes = {tensor.name: tensor.nbytes for tensor in layout.tensors}
        self._bytes: dict[str, memoryview] = {}
        self.arrays: dict[str, mx.array] = {}
        self.capacity = capacity
        if slab is None:
            slab = new_slab(self.num_bytes, huge_pages=self._in_huge_pages)
        self._lay_out(slab)

    @property
    def num_bytes(self) -> int:
        """Memory that the slots take, alignment included."""
        return self._layout.slab_bytes(self.capacity)

    @property
    def _in_huge_pages(self) -> bool:
        return self.capacity <= self._layout.num_experts // 2

    def _lay_out(self, slab: mx.array) -> None:
        """Give each tensor its stack in a slab."""
        start = -address_of(slab) % SLOT_ALIGNMENT
        step = _WORD_BYTES if mx.default_device() == mx.Device(mx.cpu) else _GPU_STEP
        for tensor in self._layout.tensors:
            dtype = dtype_named(tensor.dtype, f"{self._layout.prefix}.{tensor.name}")
            first = start + (tensor.phase if tensor.phase % step == 0 else 0)
            nbytes = -(-self.capacity * tensor.nbytes // _WORD_BYTES) * _WORD_BYTES
            words = slab[first // _WORD_BYTES : (first + nbytes) // _WORD_BYTES]
            stack = _stack(words, tensor, self.capacity, dtype)
            mx.eval(words, stack)
            assert address_of(stack) == address_of(words), (
                "MLX copied slots instead of sharing them"
            )
            self._bytes[tensor.name] = memoryview(words).cast("B")  # type: ignore[arg-type]
            self.arrays[tensor.name] = stack
            start += tensor.slots_bytes(self.capacity)

    def resize(self, capacity: int, moves: Mapping[int, int]) -> bool:
        """Change the slots; `moves` has the new slot of each old one that is kept.

        Nothing may be writing or reading them. Returns whether they lie elsewhere now: on the CPU
        of a Linux machine slots are given back where they are, elsewhere, and when there are to be
        more than ever, they move to new memory, both of which is taken for a moment.
        """
        before, num_slots = self._bytes, next(iter(self.arrays.values())).shape[0]
        in_place = capacity <= num_slots and self._give_back(capacity, num_slots, moves)
        self.capacity = capacity
        if in_place:
            return False
        self._bytes, self.arrays = {}, {}
        self._lay_out(new_slab(self.num_bytes, huge_pages=self._in_huge_pages))
        self._copy(before, self._bytes, moves)
        return True

    def _give_back(self, capacity: int, num_slots: int, moves: Mapping[int, int]) -> bool:
        """Move what is kept below `capacity` and give back what lies above, if that is possible."""
        if sys.platform != "linux" or mx.default_device() != mx.Device(mx.cpu):
            return False
        self._copy(self._bytes, self._bytes, {o: n for o, n in moves.items() if o != n})
        return all(
            give_pages_back(
                address_of(self.arrays[name]) + capacity * nbytes, (num_slots - capacity) * nbytes
            )
            for name, nbytes in self._nbytes.items()
        )

    def _copy(
        self,
        source: Mapping[str, memoryview],
        target: Mapping[str, memoryview],
        moves: Mapping[int, int],
    ) -> None:
        for name, nbytes in self._nbytes.items():
            old, new = (np.frombuffer(side[name], np.uint8) for side in (source, target))
            for before, after in moves.items():
                new[after * nbytes : (after + 1) * nbytes] = old[
                    before * nbytes : (before + 1) * nbytes
                ]

    def view(self, name: str, slot: int) -> memoryview:
        """Return the writable bytes of one tensor of one slot."""
        nbytes = self._nbytes[name]
        return self._bytes[name][slot * nbytes : (slot + 1) * nbytes]

    def __deepcopy__(self, memo: dict[int, Any]) -> "SlotPool":
        """Return itself: a copied model shares its slots, and with them their bookkeeping."""
        return self


def new_slab(num_bytes: int, huge_pages: bool = False) -> mx.array:
    """Return zeroed memory for slots; `num_bytes` as `ExpertLayout.slab_bytes` counts them.

    `huge_pages` asks for such on the CPU: for memory that is read into again and again.
    """
    slab = mx.zeros((num_bytes // _WORD_BYTES,), dtype=mx.uint64)
    mx.eval(slab)
    if huge_pages and mx.default_device() == mx.Device(mx.cpu):
        use_huge_pages(address_of(slab), slab.nbytes)
    return slab


def _stack(words: mx.array, tensor: ExpertTensor, capacity: int, dtype: mx.Dtype) -> mx.array:
    """Return the first bytes of `words` as a stack of `capacity` tensors, sharing memory.

    Widths are split off before the type changes: an axis of MLX holds less than 2^31 elements.
    """
    shape = (capacity, *tensor.shape)
    if tensor.nbytes % _WORD_BYTES == 0:
        per_slot = tensor.nbytes // _WORD_BYTES
        return words[: capacity * per_slot].reshape(capacity, per_slot).view(dtype).reshape(shape)
    return words.view(dtype)[: math.prod(shape)].reshape(shape)


def dtype_named(name: str, tensor: str) -> mx.Dtype:
    """Return the MLX type that `tensor` is stored in, by its safetensors name.

    Raises:
        UnsupportedModelError: MLX has no such type.
    """
    if name not in DTYPES:
        raise UnsupportedModelError(f"{tensor} is stored as {name}, which MLX has not.")
    return DTYPES[name]


def type_name(dtype: mx.Dtype) -> str:
    """Return the safetensors name of an MLX type.

    Raises:
        UnsupportedModelError: no expert may be stored in that type.
    """
    for name, candidate in DTYPES.items():
        if candidate == dtype:
            return name
    raise UnsupportedModelError(f"experts of type {dtype} cannot be streamed.")
