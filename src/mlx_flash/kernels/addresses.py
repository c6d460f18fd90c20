"""Where an evaluated MLX array lies in memory."""

import ctypes

import mlx.core as mx


def address_of(array: mx.array) -> int:
    """Return the address of an array's first element; valid as long as the array lives.

    The array must be evaluated and contiguous.
    """
    return ctypes.addressof(ctypes.c_char.from_buffer(memoryview(array)))  # type: ignore[arg-type]
