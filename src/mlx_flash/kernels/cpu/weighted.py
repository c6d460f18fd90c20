"""The sum of rows by weight, the second half of attention: `out <- keep * out + w[n] * row[n]`."""

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from . import lanes as v
from .lanes import Builder, Value

STEP = 64
"""Floats of a row that are held in registers together."""


@intrinsic
def add_weighted_rows(
    typing_context: Any,
    rows: Any,
    stride: Any,
    weights: Any,
    count: Any,
    keep: Any,
    out: Any,
) -> Any:
    """Add `count` rows at `rows`, `stride` bytes apart, to 64 floats at `out`, kept by a factor.

    In the order of the rows, so that the result depends on nothing else.
    """
    signature = types.void(*[types.int64] * 4, types.float32, types.int64)

    def generate(context: Any, builder: Builder, signature: Any, args: Any) -> Value:
        rows, stride, weights, count, keep, out = args
        places = [builder.add(out, v.i64(4 * start)) for start in range(0, STEP, v.LANES)]
        factor = _everywhere(builder, keep)
        sums = []
        for place in places:
            kept = builder.fmul(v.load(builder, place, v.lanes(v.F32)), factor)
            sums.append(cgutils.alloca_once_value(builder, kept))
        with cgutils.for_range(builder, count, intp=v.I64) as loop:
            row = builder.add(rows, builder.mul(loop.index, stride))
            address = builder.add(weights, builder.mul(loop.index, v.i64(4)))
            number = builder.load(builder.inttoptr(address, v.F32.as_pointer()))
            weight = _everywhere(builder, number)
            for index, total in enumerate(sums):
                place = builder.add(row, v.i64(4 * v.LANES * index))
                values = v.load(builder, place, v.lanes(v.F32))
                builder.store(v.multiply_add(builder, values, weight, builder.load(total)), total)
        for place, total in zip(places, sums, strict=True):
            stored = builder.store(
                builder.load(total), builder.inttoptr(place, v.lanes(v.F32).as_pointer())
            )
            stored.align = 4
        return context.get_dummy_value()

    return signature, generate


def _everywhere(builder: Builder, number: Value) -> Value:
    """Return a vector with a number in every lane."""
    undefined = ir.Constant(v.lanes(v.F32), ir.Undefined)
    first = builder.insert_element(undefined, number, ir.Constant(v.I32, 0))
    return v.pick(builder, first, [0] * v.LANES)
