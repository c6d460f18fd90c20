"""Scaled dot-product attention in float32: one pass over the keys, a block of them at a time.

The softmax is kept as it grows (running maximum and sum, as in FlashAttention), over blocks that
start at fixed positions, counted from the first key that a query may look at: its result depends on
no other query, nor on the padding that a batch puts before its keys.
"""

import math
from enum import auto
from functools import cache

import numpy as np
import numpy.typing as npt
from numba import types

from .dot import dot_tile
from .jit import inlined, step_address
from .memory import load_float, load_int, store_float
from .phases import Counted, sources
from .pool import Phase, Pool, Program, start_of
from .weighted import STEP, add_weighted_rows

_BLOCK = 128  # keys at a time: their scores stay in the first-level cache
_TILE = 4  # keys, and heads, that are multiplied together
_LOWEST, _ZERO = np.float32(-math.inf), np.float32(0.0)
_MASKED = np.finfo(np.float32).min
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
    code = sources()

    def step(task, chunk):  # type: ignore[no-untyped-def]
        if not code:
            return
        num_queries = load_int(task + 8 * Attention.NUM_QUERIES)
        num_kv_heads = load_int(task + 8 * Attention.NUM_KV_HEADS)
        query = chunk % num_queries
        kv_head = chunk // num_queries % num_kv_heads
        batch = chunk // num_queries // num_kv_heads
        _attend_query(task, batch, kv_head, query)

    return step_address(step)


@inlined
def _attend_query(task, batch, kv_head, query):  # type: ignore[no-untyped-def]
    """Compute one query position of all heads that share the keys of `kv_head`."""
    num_kv_heads = load_int(task + 8 * Attention.NUM_KV_HEADS)
    num_queries = load_int(task + 8 * Attention.NUM_QUERIES)
    heads = load_int(task + 8 * Attention.NUM_HEADS) // num_kv_heads
    key_width = load_int(task + 8 * Attention.KEY_WIDTH)
    key_stride = load_int(task + 8 * Attention.KEY_STRIDE)
    value_width = load_int(task + 8 * Attention.VALUE_WIDTH)
    value_stride = load_int(task + 8 * Attention.VALUE_STRIDE)
    mask_stride = load_int(task + 8 * Attention.MASK_HEAD_STRIDE)
    keys = _head_of(task, Attention.KEYS, Attention.KEY_BATCH_STRIDE, batch, kv_head)
    values = _head_of(task, Attention.VALUES, Attention.VALUE_BATCH_STRIDE, batch, kv_head)
    mask = _head_of(task, Attention.MASK, Attention.MASK_BATCH_STRIDE, batch, kv_head * heads)
    mask += query * load_int(task + 8 * Attention.MASK_QUERY_STRIDE)
    row = (batch * num_kv_heads + kv_head) * heads * num_queries + query  # of the first head
    queries = load_int(task + 8 * Attention.QUERIES) + row * _row_bytes(key_width)
    out = load_int(task + 8 * Attention.OUT) + row * 4 * value_width
    out_stride = num_queries * 4 * value_width  # from one head to the next
    scores = np.empty((heads, _BLOCK), np.float32)
    table = np.empty((2, heads), np.int64)  # addresses of queries, and of their scores
    seen = np.empty((heads, 2), np.float32)  # maximum of the scores so far, sum of their weights
    for head in range(heads):
        table[0, head] = queries + head * num_queries * _row_bytes(key_width)
        table[1, head] = scores[head].ctypes.data
        seen[head, 0], seen[head, 1] = _LOWEST, _ZERO
        _clear(out + head * out_stride, value_width)
    end = _visible_keys(task, query)
    for start in range(_first_visible_key(mask, mask_stride, heads, end), end, _BLOCK):
        count = min(_BLOCK, end - start)
        _score(table, keys + start * key_stride, key_stride, key_width, count)
        for head in range(heads):
            added = mask + head * mask_stride + 4 * start if mask > 0 else 0
            top = _highest(seen[head, 0], scores[head], count, added)
            if top == _LOWEST:
                continue  # nothing to look at so far
            keep = _weigh(seen[head], top, scores[head], count)
            place, block = out + head * out_stride, values + start * value_stride
            _add_values(block, value_stride, value_width, scores[head], count, keep, place)
    for head in range(heads):
        _divide(out + head * out_stride, value_width, seen[head, 1])


@inlined
def _head_of(task, start, strides, batch, head):  # type: ignore[no-untyped-def]
    """Return the address of a head; `start` and `strides`, of batches and of heads, are fields."""
    place = load_int(task + 8 * start) + batch * load_int(task + 8 * strides)
    return place + head * load_int(task + 8 * (strides + 1))


@inlined
def _row_bytes(key_width):  # type: ignore[no-untyped-def]
    """Return the bytes of a padded query."""
    return (key_width + STEP - 1) // STEP * STEP * 4


@inlined
def _visible_keys(task, query):  # type: ignore[no-untyped-def]
    """Return how many of the keys a query looks at."""
    num_keys = load_int(task + 8 * Attention.NUM_KEYS)
    if load_int(task + 8 * Attention.CAUSAL) > 0:
        num_keys -= load_int(task + 8 * Attention.NUM_QUERIES) - query - 1
    return num_keys


@inlined
def _first_visible_key(mask, mask_stride, heads, end):  # type: ignore[no-untyped-def]
    """Return the first key that the mask, if not 0, lets any of the heads look at; 0 if none.

    A mask of booleans comes as the lowest number, not as minus infinity.
    """
    if mask <= 0:
        return 0
    for key in range(end):
        for head in range(heads):
            if load_float(mask + head * mask_stride + 4 * key) > _MASKED:
                return key
    return 0


@inlined
def _score(table, keys, key_stride, key_width, count):  # type: ignore[no-untyped-def]
    """Multiply `count` keys by the queries in `table[0]`; write to the addresses in `table[1]`.

    Numbers of keys and of heads that are not multiples of a tile go one by one.
    """
    heads = table.shape[1]
    for head in range(0, heads, _TILE):
        whole = count - count % _TILE if head + _TILE <= heads else 0
        for key in range(0, whole, _TILE):
            _score_tile(_TILE, table, head, keys, key_stride, key_width, key)
        for key in range(whole, count):
            for one in range(head, min(heads, head + _TILE)):
                _score_tile(1, table, one, keys, key_stride, key_width, key)


@inlined
def _score_tile(size, table, head, keys, key_stride, key_width, key):  # type: ignore[no-untyped-def]
    """Multiply `size` keys, from `key` on, by the queries of `size` heads, a constant."""
    dot_tile(
        "f32--0",
        size,
        size,
        keys + key * key_stride,
        key_stride,
        0,
        0,
        0,
        key_width // 64,
        key_width % 64 // 16,
        table.ctypes.data + 8 * head,
        table.ctypes.data + 8 * (table.shape[1] + head),
        key,
    )


@inlined
def _highest(top, scores, count, mask):  # type: ignore[no-untyped-def]
    """Return the highest of `top` and `count` scores, to which the mask, if not 0, is added."""
    for key in range(count):
        if mask > 0:
            scores[key] += load_float(mask + 4 * key)
        top = max(top, scores[key])
    return top


@inlined
def _weigh(seen, top, scores, count):  # type: ignore[no-untyped-def]
    """Turn a head's scores into weights, 1 for `top`, the highest so far; add them to `seen`.

    Return the factor that brings what was summed before to the same scale.
    """
    keep = types.float32(math.exp(seen[0] - top))
    total = _ZERO
    for key in range(count):
        scores[key] = types.float32(math.exp(scores[key] - top))
        total += scores[key]
    seen[0], seen[1] = top, seen[1] * keep + total
    return keep


@inlined
def _add_values(values, stride, width, weights, count, keep, out):  # type: ignore[no-untyped-def]
    """Add `count` values by weight to the sum at `out`, of which a share is kept."""
    for d in range(0, width, STEP):
        add_weighted_rows(values + 4 * d, stride, weights.ctypes.data, count, keep, out + 4 * d)


@inlined
def _clear(out, width):  # type: ignore[no-untyped-def]
    """Set the sum at `out` to 0."""
    for d in range(width):
        store_float(out + 4 * d, _ZERO)


@inlined
def _divide(out, width, total):  # type: ignore[no-untyped-def]
    """Divide the sum at `out` by the sum of its weights."""
    for d in range(width):
        store_float(out + 4 * d, load_float(out + 4 * d) / total)


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
