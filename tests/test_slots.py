"""Slots are aligned, separate, and what is written through their views is what MLX computes on."""

from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from mlx_flash.errors import UnsupportedModelError
from mlx_flash.formats.layout import DIRECT_ALIGNMENT, SLOT_ALIGNMENT, ExpertLayout, ExpertTensor
from mlx_flash.formats.safetensors import FileStamp
from mlx_flash.streaming.slots import SlotPool, new_slab

STAMP = FileStamp(0, 0, 0, 0)


def layout(*tensors: tuple[str, str, tuple[int, ...], int], at: int = 0) -> ExpertLayout:
    parts = [
        ExpertTensor(name, dtype, shape, nbytes, Path("x"), at, nbytes, STAMP)
        for name, dtype, shape, size in tensors
        for nbytes in [int(np.prod(shape)) * size]
    ]
    return ExpertLayout(0, "experts", 8, tuple(parts))


MIXED = layout(
    ("up.weight", "U32", (3, 5), 4), ("up.scales", "BF16", (7,), 2), ("up.bias", "F32", (1,), 4)
)


def test_bytes_written_to_a_view_are_the_values_of_its_slot(device: str) -> None:
    pool = SlotPool(MIXED, capacity=4)
    rng = np.random.default_rng(0)
    written = {}
    for slot in range(4):
        for name in ("up.weight", "up.scales", "up.bias"):
            view = pool.view(name, slot)
            view[:] = rng.integers(0, 60, view.nbytes, dtype=np.uint8).tobytes()
            written[name, slot] = bytes(view)
    for (name, slot), content in written.items():
        found = np.array(mx.array(pool.arrays[name][slot]).view(mx.uint8)).tobytes()
        assert found == content
        doubled = pool.arrays[name][slot] + pool.arrays[name][slot]  # computed on the device
        expected = mx.array(np.frombuffer(content, np.uint8)).view(pool.arrays[name].dtype) * 2
        assert mx.array_equal(doubled.reshape(-1), expected).item()


def test_slots_are_in_step_with_the_file_and_the_slab_is_as_large_as_planned(device: str) -> None:
    """So that a direct read goes straight into them: also the last one, behind others."""
    whole = layout(("up.weight", "U32", (64, 64), 4), ("up.scales", "BF16", (2048,), 2), at=8208)
    pool = SlotPool(whole, capacity=3)
    for tensor in whole.tensors:
        for slot in range(3):
            address = np.frombuffer(pool.view(tensor.name, slot), np.uint8).ctypes.data
            assert address % DIRECT_ALIGNMENT == tensor.offset % DIRECT_ALIGNMENT == 16
    blocks = sum(-(-3 * tensor.nbytes // 4096) + 1 for tensor in whole.tensors)
    assert pool.num_bytes == whole.slab_bytes(3) == SLOT_ALIGNMENT + 4096 * blocks


def test_slots_of_no_whole_blocks_start_at_one(device: str) -> None:
    pool = SlotPool(MIXED, capacity=3)
    for name in pool.arrays:
        address = np.frombuffer(pool.view(name, 0), np.uint8).ctypes.data
        assert address % DIRECT_ALIGNMENT == 0


def test_a_slab_may_be_larger_than_an_axis_of_mlx() -> None:
    """MLX counts the elements of an axis in 32 bits; a layer's slots may take more bytes."""
    wide = layout(("up.weight", "U32", (1024, 1024), 4), ("up.scales", "BF16", (3,), 2))
    pool = SlotPool(wide, capacity=520)
    assert pool.num_bytes > 2**31
    pool.view("up.weight", 519)[-4:] = (7).to_bytes(4, "little")
    assert pool.arrays["up.weight"][519, 1023, 1023].item() == 7
    assert pool.arrays["up.weight"][518].sum().item() == 0


def test_a_type_that_mlx_has_not_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="F64"):
        SlotPool(layout(("up.weight", "F64", (2,), 8)), 1)


def test_memory_for_slots_is_zero_and_keeps_what_is_written() -> None:
    """Also where the system was asked for huge pages, which takes the memory back first."""
    before = mx.default_device()
    mx.set_default_device(mx.Device(mx.cpu))
    try:
        for num_bytes in (8, 4096, 3 * 2**20 + 8, 64 * 2**20):
            slab = new_slab(num_bytes, huge_pages=True)
            content = np.frombuffer(memoryview(slab), np.uint64)
            assert not content.any()
            content[:] = np.arange(content.size)
            assert mx.array_equal(slab, mx.arange(content.size, dtype=mx.uint64)).item()
    finally:
        mx.set_default_device(before)
