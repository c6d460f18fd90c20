"""Scaled dot-product attention in float32: one pass over the keys, a block of them at a time.

The softmax is kept as it grows (running maximum and sum, as in FlashAttention), over blocks that
start at fixed positions: the result of a query depends on no other query.
"""

import math
from enum import auto
from functools import cache

import numpy as np
import numpy.typing as npt
from numba import types

from .dot import dot_tile
from .jit import step_address
from .memory import load_float, load_int, store_float
from .phases import Counted, sources
from .pool import Phase, Pool, Program, start_of
from .weighted import STEP, add_weighted_rows

_BLOCK = 128  # keys at a time: their scores stay in the first-level cache
_TILE = 4  # keys, and heads, that are multiplied together
_ALONE = 1 << 17  # multiplications that one thread does sooner than another wakes


class Attention(Counted):
    """The task of `attend`: one chunk is one query position of all heads that share keys.

    Strides are bytes. `QUERIES` are `[B, H, L, W]`, scaled, contiguous, padded with zeros to a
    width W of 64s. `MASK` is 0 or the address of float32 `[.., N]` rows that are added.
    """

    QUERIES = auto()
    KEYS = auto()
    VALUES = auto()
    OUT = auto()
    NUM_HEADS = auto()
    NUM_KV_HEADS = auto()
    NUM_QUERIES = auto()
    NUM_KEYS = auto()
    KEY_WIDTH = auto()
    VALUE_WIDTH = auto()
    KEY_BATCH_STRIDE = auto()
    KEY_HEAD_STRIDE = auto()
    KEY_STRIDE = auto()
    VALUE_BATCH_STRIDE = auto()
    VALUE_HEAD_STRIDE = auto()
    VALUE_STRIDE = auto()
    CAUSAL = auto()
    MASK = auto()
    MASK_BATCH_STRIDE = auto()
    MASK_HEAD_STRIDE = auto()
    MASK_QUERY_STRIDE = auto()


@cache
def attend() -> int:
    """Return the address of the compiled step."""
    code, tile = sources(), _TILE
    lowest = types.float32(-math.inf)

    def step(task, chunk):  # type: ignore[no-untyped-def]
        if not code:
            return
        num_queries = load_int(task + 8 * Attention.NUM_QUERIES)
        kv_heads = load_int(task + 8 * Attention.NUM_KV_HEADS)
        heads = load_int(task + 8 * Attention.NUM_HEADS) // kv_heads
        query = chunk % num_queries
        kv_head = chunk // num_queries % kv_heads
        batch = chunk // num_queries // kv_heads
        num_keys = load_int(task + 8 * Attention.NUM_KEYS)
        end = num_keys
        if load_int(task + 8 * Attention.CAUSAL) > 0:
            end = num_keys - num_queries + query + 1
        key_width = load_int(task + 8 * Attention.KEY_WIDTH)
        value_width = load_int(task + 8 * Attention.VALUE_WIDTH)
        key_stride = load_int(task + 8 * Attention.KEY_STRIDE)
        value_stride = load_int(task + 8 * Attention.VALUE_STRIDE)
        keys = load_int(task + 8 * Attention.KEYS)
        keys += batch * load_int(task + 8 * Attention.KEY_BATCH_STRIDE)
        keys += kv_head * load_int(task + 8 * Attention.KEY_HEAD_STRIDE)
        values = load_int(task + 8 * Attention.VALUES)
        values += batch * load_int(task + 8 * Attention.VALUE_BATCH_STRIDE)
        values += kv_head * load_int(task + 8 * Attention.VALUE_HEAD_STRIDE)
        first = (batch * kv_heads + kv_head) * heads
        row_bytes = (key_width + STEP - 1) // STEP * STEP * 4
        queries = load_int(task + 8 * Attention.QUERIES)
        out = load_int(task + 8 * Attention.OUT)
        mask = load_int(task + 8 * Attention.MASK)
        mask += batch * load_int(task + 8 * Attention.MASK_BATCH_STRIDE)
        mask += query * load_int(task + 8 * Attention.MASK_QUERY_STRIDE)
        mask_stride = load_int(task + 8 * Attention.MASK_HEAD_STRIDE)
        has_mask = load_int(task + 8 * Attention.MASK) > 0
        scores = np.empty((heads, _BLOCK), np.float32)
        table = np.empty((2, heads), np.int64)
        state = np.empty((2, heads), np.float32)  # running maximum, running sum
        for head in range(heads):
            row = (first + head) * num_queries + query
            table[0, head] = queries + row * row_bytes
            table[1, head] = scores.ctypes.data + 4 * _BLOCK * head
            state[0, head], state[1, head] = lowest, types.float32(0.0)
            for d in range(value_width):
                store_float(out + 4 * (row * value_width + d), types.float32(0.0))
        blocks, rest = key_width // 64, key_width % 64 // 16
        inputs, outputs = table.ctypes.data, table.ctypes.data + 8 * heads
        for start in range(0, end, _BLOCK):
            count = min(_BLOCK, end - start)
            block = keys + start * key_stride
            for head in range(0, heads, tile):
                # numbers of keys and of heads that are not multiples of a tile go one by one
                whole = count - count % tile if head + tile <= heads else 0
                for key in range(0, whole, tile):
                    dot_tile(
                        "f32--0",
                        tile,
                        tile,
                        block + key * key_stride,
                        key_stride,
                        0,
                        0,
                        0,
                        blocks,
                        rest,
                        inputs + 8 * head,
                        outputs + 8 * head,
                        key,
                    )
                for key in range(whole, count):
                    for one in range(head, min(heads, head + tile)):
                        dot_tile(
                            "f32--0",
                            1,
                            1,
                            block + key * key_stride,
                            key_stride,
                            0,
                            0,
                            0,
                            blocks,
                            rest,
                            inputs + 8 * one,
                            outputs + 8 * one,
                            key,
                        )
            for head in range(heads):
                top = state[0, head]
                for key in range(count):
                    if has_mask:
                        place = mask + (kv_head * heads + head) * mask_stride
                        scores[head, key] += load_float(place + 4 * (start + key))
                    top = max(top, scores[head, key])
                if top == lowest:
                    continue  # nothing to look at so far
                keep = types.float32(math.exp(state[0, head] - top))
                total = types.float32(0.0)
                for key in range(count):
                    weight = types.float32(math.exp(scores[head, key] - top))
                    scores[head, key] = weight
                    total += weight
                state[0, head], state[1, head] = top, state[1, head] * keep + total
                row = out + 4 * ((first + head) * num_queries + query) * value_width
                for d in range(0, value_width, STEP):
                    add_weighted_rows(
                        values + start * value_stride + 4 * d,
                        value_stride,
                        scores.ctypes.data + 4 * _BLOCK * head,
                        count,
                        keep,
                        row + 4 * d,
                    )
        for head in range(heads):
            row = out + 4 * ((first + head) * num_queries + query) * value_width
            for d in range(value_width):
                share = load_float(row + 4 * d) / state[1, head]
                store_float(row + 4 * d, share)

    return step_address(step)


def run_attention(
    pool: Pool,
    queries: npt.NDArray[np.float32],
    keys: npt.NDArray[np.float32],
    values: npt.NDArray[np.float32],
    scale: float,
    causal: bool,
    mask: npt.NDArray[np.float32] | None,
) -> npt.NDArray[np.float32]:
    """Return `softmax(scale * queries @ keys.T + mask) @ values`: `[B, H, L, V]`.

    `queries` are `[B, H, L, D]`; `keys` `[B, G, N, D]` and `values` `[B, G, N, V]` may be strided
    but in their last axis; V is a multiple of 64 and D of 16. `mask` broadcasts to `[B, H, L, N]`.
    """
    batch, heads, length, width = queries.shape
    padded = np.zeros((batch, heads, length, -(-width // STEP) * STEP), np.float32)
    np.multiply(queries, np.float32(scale), out=padded[..., :width])
    out = np.empty((batch, heads, length, values.shape[-1]), np.float32)
    task = np.zeros(len(Attention), np.int64)
    task[Attention.QUERIES] = start_of(padded)
    task[Attention.KEYS] = keys.ctypes.data
    task[Attention.VALUES] = values.ctypes.data
    task[Attention.OUT] = start_of(out)
    task[Attention.NUM_HEADS], task[Attention.NUM_KV_HEADS] = heads, keys.shape[1]
    task[Attention.NUM_QUERIES], task[Attention.NUM_KEYS] = length, keys.shape[2]
    task[Attention.KEY_WIDTH], task[Attention.VALUE_WIDTH] = width, values.shape[-1]
    task[Attention.KEY_BATCH_STRIDE : Attention.KEY_STRIDE + 1] = keys.strides[:3]
    task[Attention.VALUE_BATCH_STRIDE : Attention.VALUE_STRIDE + 1] = values.strides[:3]
    task[Attention.CAUSAL] = causal
    if mask is not None:
        if mask.shape[-1:] != keys.shape[2:3] or mask.strides[-1] != mask.itemsize:
            mask = np.ascontiguousarray(np.broadcast_to(mask, (*mask.shape[:-1], keys.shape[2])))
        full = np.broadcast_to(mask, (batch, heads, length, keys.shape[2]))
        task[Attention.MASK] = full.ctypes.data
        task[Attention.MASK_BATCH_STRIDE : Attention.MASK_QUERY_STRIDE + 1] = full.strides[:3]
    alone = batch * heads * length * keys.shape[2] * width < _ALONE
    phase = Phase(attend(), task, batch * keys.shape[1] * length)
    pool.run(Program([phase]), alone=alone)
    return out
