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

ALL_DTYPES = DTYPES | {
    "BOOL": mx.bool_,
    "U64": mx.uint64,
    "I64": mx.int64,
    "F64": mx.float64,
    "C64": mx.complex64,
}
"""And of each that any other parameter may be stored in."""

SlotMemory = tuple[dict[str, memoryview], dict[str, mx.array]]
"""Each tensor's slots: as bytes, and as the stack that is computed on."""

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
        self.capacity = capacity
        memory = _new_memory(layout, capacity) if slab is None else _lay_out(layout, capacity, slab)
        self._bytes, self.arrays = memory

    @property
    def num_bytes(self) -> int:
        """Memory that the slots take, alignment included."""
        return self._layout.slab_bytes(self.capacity)

    def memory_for(self, capacity: int) -> SlotMemory | None:
        """Return new memory for `capacity` slots, None where they have room where they are.

        On the CPU of a Linux machine slots are given back where they are; elsewhere, and when there
        are to be more than ever, they move to new memory, both of which is taken for a moment.
        """
        in_place = sys.platform == "linux" and mx.default_device() == mx.Device(mx.cpu)
        if in_place and capacity <= self._num_slots:
            return None
        return _new_memory(self._layout, capacity)

    def resize(self, capacity: int, moves: Mapping[int, int], memory: SlotMemory | None) -> bool:
        """Change the slots; `moves` has the new slot of each old one that is kept.

        `memory` is what `memory_for` returned. Nothing may be writing or reading the slots. Returns
        whether they lie elsewhere now.
        """
        self.capacity = capacity
        if memory is None:
            self._copy(self._bytes, self._bytes, {o: n for o, n in moves.items() if o != n})
            if self._give_back(capacity):
                return False
            moves = {slot: slot for slot in moves.values()}
            memory = _new_memory(self._layout, capacity)
        self._copy(self._bytes, memory[0], moves)
        self._bytes, self.arrays = memory
        return True

    @property
    def _num_slots(self) -> int:
        """For how many slots there is room."""
        return int(next(iter(self.arrays.values())).shape[0])

    def _give_back(self, capacity: int) -> bool:
        """Give back what lies above `capacity`; return whether the system took all of it."""
        num_slots = self._num_slots
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


def _new_memory(layout: ExpertLayout, capacity: int) -> SlotMemory:
    """Return memory of its own for `capacity` slots."""
    huge_pages = capacity <= layout.num_experts // 2
    return _lay_out(layout, capacity, new_slab(layout.slab_bytes(capacity), huge_pages))


def _lay_out(layout: ExpertLayout, capacity: int, slab: mx.array) -> SlotMemory:
    """Give each tensor its stack in a slab."""
    start = -address_of(slab) % SLOT_ALIGNMENT
    step = _WORD_BYTES if mx.default_device() == mx.Device(mx.cpu) else _GPU_STEP
    views: dict[str, memoryview] = {}
    arrays: dict[str, mx.array] = {}
    for tensor in layout.tensors:
        dtype = dtype_named(tensor.dtype, f"{layout.prefix}.{tensor.name}")
        first = start + (tensor.phase if tensor.phase % step == 0 else 0)
        nbytes = -(-capacity * tensor.nbytes // _WORD_BYTES) * _WORD_BYTES
        words = slab[first // _WORD_BYTES : (first + nbytes) // _WORD_BYTES]
        stack = _stack(words, tensor, capacity, dtype)
        mx.eval(words, stack)
        assert address_of(stack) == address_of(words), "MLX copied slots instead of sharing them"
        views[tensor.name] = memoryview(words).cast("B")  # type: ignore[arg-type]
        arrays[tensor.name] = stack
        start += tensor.slots_bytes(capacity)
    return views, arrays


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


def type_name(dtype: mx.Dtype, known: Mapping[str, mx.Dtype] = DTYPES) -> str:
    """Return the safetensors name of an MLX type, of those in `known`.

    Raises:
        UnsupportedModelError: no expert may be stored in that type.
    """
    for name, candidate in known.items():
        if candidate == dtype:
            return name
    raise UnsupportedModelError(f"experts of type {dtype} cannot be streamed.")
