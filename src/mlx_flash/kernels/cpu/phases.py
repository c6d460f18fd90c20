"""The compiled steps of a product: `void(task, chunk)`, each chunk by whichever thread is free.

A task is an array of int64, laid out by the `IntEnum` beside its step. Chunks of one phase are
independent; what a phase reads, earlier phases have written.
"""

import math
import zlib
from enum import IntEnum, auto
from functools import cache
from pathlib import Path
from typing import Any

from numba import types

from ..activations import ACTIVATIONS
from .dot import dot_tile
from .jit import inlined, step_address
from .memory import (
    load_bfloat16,
    load_float,
    load_float16,
    load_int,
    load_int32,
    store_float,
)
from .processor import has_many_registers

ROWS = 2
"""A matrix has a multiple of so many rows."""

# Rows that are computed together for four inputs: the sums of two would fill all registers of AVX2.
# For fewer inputs rows go one by one: in one stream memory comes half again as fast as in four.
_TILE_ROWS = 2 if has_many_registers() else 1
_INPUTS_IN_CACHE = 32  # input rows that pass over a chunk's weights before the next ones do

BIAS_KINDS = {"f32": 1, "f16": 2, "bf16": 3}
"""The type of a layer's bias as `product` is told it; 0 is no bias."""


class Counted(IntEnum):
    """Members are 0, 1, 2 ..."""

    @staticmethod
    def _generate_next_value_(name: str, start: int, count: int, last_values: list[Any]) -> int:
        return count


class Product(Counted):
    """The task of `product`: rows of one matrix per group, times the inputs of that group.

    A group is a slot of the matrix's stack and a range of the table of inputs. Inputs are as
    `prepare` leaves them. Strides are bytes; `BIAS_KIND` is of `BIAS_KINDS`.
    """

    WEIGHT = auto()
    WEIGHT_STRIDE = auto()
    WEIGHT_SLOT_STRIDE = auto()
    SCALE = auto()
    SCALE_STRIDE = auto()
    SCALE_SLOT_STRIDE = auto()
    OFFSET = auto()
    NUM_BLOCKS = auto()
    TAIL_LANES = auto()
    NUM_ROWS = auto()
    CHUNK_ROWS = auto()
    CHUNKS_PER_GROUP = auto()
    GROUPS = auto()
    INPUTS = auto()
    OUTPUTS = auto()
    BIAS = auto()
    BIAS_SLOT_STRIDE = auto()
    BIAS_KIND = auto()


class Preparation(Counted):
    """The task of `prepare`: rows of float32 into the order of a format, and sums per group."""

    SOURCE = auto()
    SOURCE_STRIDE = auto()
    TARGET = auto()
    TARGET_STRIDE = auto()
    WIDTH = auto()
    BLOCK = auto()
    ORDER = auto()
    GROUP = auto()


class Gating(Counted):
    """The task of an activation: `first[i] <- activation(first[i], second[i])`, row by row.

    `first` is the gate, or the only input; `PARAMETERS` are two float32.
    """

    FIRST = auto()
    SECOND = auto()
    STRIDE = auto()
    WIDTH = auto()
    PARAMETERS = auto()


@cache
def product(format_name: str) -> int:
    """Return the address of the compiled step for a format; compiles it if need be."""
    code = sources()

    def step(task, chunk):  # type: ignore[no-untyped-def]
        if not code:
            return
        parts = load_int(task + 8 * Product.CHUNKS_PER_GROUP)
        group = load_int(task + 8 * Product.GROUPS) + 24 * (chunk // parts)
        slot, start, count = load_int(group), load_int(group + 8), load_int(group + 16)
        chunk_rows = load_int(task + 8 * Product.CHUNK_ROWS)
        row = chunk % parts * chunk_rows
        end = min(load_int(task + 8 * Product.NUM_ROWS), row + chunk_rows)
        inputs = load_int(task + 8 * Product.INPUTS) + 8 * start
        outputs = load_int(task + 8 * Product.OUTPUTS) + 8 * start
        _multiply(format_name, _matrix_in(task, slot), row, end, inputs, outputs, count)
        if load_int(task + 8 * Product.BIAS_KIND) > 0:
            _add_bias(task, slot, row, end, outputs, count)

    return step_address(step, format_name)


@inlined
def _matrix_in(task, slot):  # type: ignore[no-untyped-def]
    """Return what `dot_tile` needs to know of the matrix in a slot."""
    scale_start = slot * load_int(task + 8 * Product.SCALE_SLOT_STRIDE)
    return (
        load_int(task + 8 * Product.WEIGHT)
        + slot * load_int(task + 8 * Product.WEIGHT_SLOT_STRIDE),
        load_int(task + 8 * Product.WEIGHT_STRIDE),
        load_int(task + 8 * Product.SCALE) + scale_start,
        load_int(task + 8 * Product.SCALE_STRIDE),
        load_int(task + 8 * Product.OFFSET) + scale_start,
        load_int(task + 8 * Product.NUM_BLOCKS),
        load_int(task + 8 * Product.TAIL_LANES),
    )


@inlined
def _multiply(format_name, matrix, first_row, last_row, inputs, outputs, count):  # type: ignore[no-untyped-def]
    """Multiply rows of a matrix by `count` inputs: in tiles, then by those left over."""
    for begin in range(0, count, _INPUTS_IN_CACHE):
        end = min(count, begin + _INPUTS_IN_CACHE)
        rest = (end - begin) % 4
        for row in range(first_row, last_row, _TILE_ROWS):
            for n in range(begin, end - rest, 4):
                _multiply_tile(format_name, _TILE_ROWS, 4, matrix, row, inputs, outputs, n)
        for row in range(first_row, last_row):
            if rest == 1:
                _multiply_tile(format_name, 1, 1, matrix, row, inputs, outputs, end - 1)
            elif rest == 2:
                _multiply_tile(format_name, 1, 2, matrix, row, inputs, outputs, end - 2)
            elif rest == 3:
                _multiply_tile(format_name, 1, 3, matrix, row, inputs, outputs, end - 3)


@inlined
def _multiply_tile(format_name, rows, columns, matrix, row, inputs, outputs, n):  # type: ignore[no-untyped-def]
    """Multiply `rows` rows from `row` on by `columns` inputs from `n` on; both are constants."""
    weight, weight_stride, scale, scale_stride, offset, num_blocks, tail_lanes = matrix
    dot_tile(
        format_name,
        rows,
        columns,
        weight + row * weight_stride,
        weight_stride,
        scale + row * scale_stride,
        scale_stride,
        offset + row * scale_stride,
        num_blocks,
        tail_lanes,
        inputs + 8 * n,
        outputs + 8 * n,
        row,
    )


@inlined
def _add_bias(task, slot, first_row, last_row, outputs, count):  # type: ignore[no-untyped-def]
    """Add the layer's bias to rows of `count` results."""
    kind = load_int(task + 8 * Product.BIAS_KIND)
    bias = load_int(task + 8 * Product.BIAS)
    bias += slot * load_int(task + 8 * Product.BIAS_SLOT_STRIDE)
    for n in range(count):
        output = load_int(outputs + 8 * n)
        for row in range(first_row, last_row):
            if kind == 1:
                value = load_float(bias + 4 * row)
            elif kind == 2:
                value = load_float16(bias + 2 * row)
            else:
                value = load_bfloat16(bias + 2 * row)
            store_float(output + 4 * row, load_float(output + 4 * row) + value)


@cache
def sources() -> int:
    """Return a number made of the code that a step is compiled from, never 0.

    numba's cache looks at the file of a step alone. A step that names this number is compiled
    anew when one of the others changes.
    """
    folder = Path(__file__).parent
    names = ("processor", "lanes", "formats", "dot", "weighted", "memory")
    text = b"".join((folder / f"{name}.py").read_bytes() for name in names)
    return zlib.crc32(text) or 1


@cache
def prepare() -> int:
    """Return the address of the compiled step that puts one row per chunk in a format's order."""
    code = sources()

    def step(task, chunk):  # type: ignore[no-untyped-def]
        if not code:
            return
        source = load_int(task + 8 * Preparation.SOURCE)
        source += chunk * load_int(task + 8 * Preparation.SOURCE_STRIDE)
        target = load_int(task + 8 * Preparation.TARGET)
        target += chunk * load_int(task + 8 * Preparation.TARGET_STRIDE)
        width = load_int(task + 8 * Preparation.WIDTH)
        block = load_int(task + 8 * Preparation.BLOCK)
        order = load_int(task + 8 * Preparation.ORDER)
        group = load_int(task + 8 * Preparation.GROUP)
        whole = width - width % block
        for start in range(0, whole, block):
            for i in range(block):
                element = start + load_int32(order + 4 * i)
                store_float(target + 4 * (start + i), load_float(source + 4 * element))
        end = whole
        if whole < width:
            end += block
            for i in range(block):
                element = whole + load_int32(order + 4 * i)
                value = load_float(source + 4 * element) if element < width else 0.0
                store_float(target + 4 * (whole + i), types.float32(value))
        if group > 0:
            for number in range(width // group):
                total = types.float32(0.0)
                for i in range(number * group, (number + 1) * group):
                    total += load_float(source + 4 * i)
                store_float(target + 4 * (end + number), total)

    return step_address(step)


@cache
def activation(name: str) -> int:
    """Return the address of the compiled step of an activation, one row per chunk."""
    kind = ACTIVATIONS.index(name)
    swiglu_oai, geglu = ACTIVATIONS.index("swiglu_oai"), ACTIVATIONS.index("geglu")
    clamped, clamped_silu = (ACTIVATIONS.index(f"clamped_{kind}") for kind in ("swiglu", "silu"))
    relu2 = ACTIVATIONS.index("relu2")
    code = sources()

    def step(task, chunk):  # type: ignore[no-untyped-def]
        if not code:
            return
        start = chunk * load_int(task + 8 * Gating.STRIDE)
        first = load_int(task + 8 * Gating.FIRST) + start
        second = load_int(task + 8 * Gating.SECOND) + start
        parameters = load_int(task + 8 * Gating.PARAMETERS)
        alpha, limit = load_float(parameters), load_float(parameters + 4)
        one = types.float32(1.0)
        for i in range(load_int(task + 8 * Gating.WIDTH)):
            gate = load_float(first + 4 * i)
            up = one if kind == relu2 else load_float(second + 4 * i)
            if kind in (clamped, swiglu_oai):
                gate = min(gate, limit)
            if kind in (clamped, clamped_silu, swiglu_oai):
                up = min(max(up, -limit), limit)
            if kind == relu2:
                gate = max(gate, types.float32(0.0))
                value = gate * gate
            elif kind == swiglu_oai:
                value = (up + one) * (gate / (one + math.exp(-alpha * gate)))
            elif kind == geglu:
                cube = types.float32(0.044715) * gate * gate * gate
                inner = types.float32(0.7978845608028654) * (gate + cube)
                value = types.float32(0.5) * gate * (one + math.tanh(inner)) * up
            else:
                value = gate / (one + math.exp(-gate))
                if kind == clamped_silu:
                    value = min(value, limit)
                value *= up
            store_float(first + 4 * i, types.float32(value))

    return step_address(step, name)
