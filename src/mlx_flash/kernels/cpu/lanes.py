"""Vectors of 16 float32 lanes, as LLVM instructions: what the kernels are built of.

LLVM maps 16 lanes to one AVX-512 register, two of AVX2 or four of NEON, so the order in which
a kernel sums is the same on every processor. Addresses are 64-bit integers.
"""

from collections.abc import Sequence
from typing import Any

from llvmlite import ir
from numba.core import cgutils

from .processor import converts_halves

LANES = 16

F16, F32 = ir.HalfType(), ir.FloatType()
I1, I8, I16, I32, I64 = (ir.IntType(bits) for bits in (1, 8, 16, 32, 64))

Builder = Any
Value = Any

_NAMES = {"i8": "i8", "i16": "i16", "i32": "i32", "float": "f32"}


def lanes(element: Any, count: int = LANES) -> Any:
    """Return the type of a vector."""
    return ir.VectorType(element, count)


def i64(value: int) -> Value:
    """Return a 64-bit constant."""
    return ir.Constant(I64, value)


def all_lanes(kind: Any, value: float) -> Value:
    """Return the vector of type `kind` with `value` in every lane."""
    return ir.Constant(kind, [value] * kind.count)


def pick(builder: Builder, vector: Value, indices: Sequence[int]) -> Value:
    """Return the vector of `vector[i]` for i in `indices`."""
    undefined = ir.Constant(vector.type, ir.Undefined)
    mask = ir.Constant(lanes(I32, len(indices)), list(indices))
    return builder.shuffle_vector(vector, undefined, mask)


def shift(builder: Builder, vector: Value, left: int) -> Value:
    """Shift every lane left by a constant, right when it is negative. Zeros come in."""
    if left == 0:
        return vector
    amount = all_lanes(vector.type, abs(left))
    return builder.shl(vector, amount) if left > 0 else builder.lshr(vector, amount)


def load(builder: Builder, address: Value, kind: Any, limit: Value | None = None) -> Value:
    """Load a vector from any address; lanes from `limit` (i32) on are not read, and zero."""
    pointer = builder.inttoptr(address, kind.as_pointer())
    if limit is None:
        vector = builder.load(pointer)
        vector.align = 1
        return vector
    numbers = ir.Constant(lanes(I32, kind.count), list(range(kind.count)))
    one = builder.insert_element(
        ir.Constant(numbers.type, ir.Undefined), limit, ir.Constant(I32, 0)
    )
    inside = builder.icmp_signed("<", numbers, pick(builder, one, [0] * kind.count))
    masked_load = cgutils.get_or_insert_function(
        builder.module,
        ir.FunctionType(kind, [kind.as_pointer(), I32, lanes(I1, kind.count), kind]),
        f"llvm.masked.load.v{kind.count}{_NAMES[str(kind.element)]}.p0",
    )
    zeros = ir.Constant(kind, None)
    return builder.call(masked_load, [pointer, ir.Constant(I32, 1), inside, zeros])


def widen_halves(builder: Builder, bits: Value) -> Value:
    """Return the float32 of float16 numbers whose bits are 16-bit integers; no infinities."""
    wide = lanes(F32, bits.type.count)
    if converts_halves():
        return builder.fpext(builder.bitcast(bits, lanes(F16, bits.type.count)), wide)
    integers = builder.zext(bits, lanes(I32, bits.type.count))
    sign = shift(builder, builder.and_(integers, all_lanes(integers.type, 0x8000)), 16)
    rest = shift(builder, builder.and_(integers, all_lanes(integers.type, 0x7FFF)), 13)
    small = builder.bitcast(builder.or_(sign, rest), wide)  # its exponent counts from elsewhere
    return builder.fmul(small, all_lanes(wide, 2.0**112))


def multiply_add(builder: Builder, a: Value, b: Value, c: Value) -> Value:
    """Return a * b + c, in one rounding where the processor can."""
    function = cgutils.get_or_insert_function(
        builder.module, ir.FunctionType(lanes(F32), [lanes(F32)] * 3), "llvm.fmuladd.v16f32"
    )
    return builder.call(function, [a, b, c])


def sum_of_lanes(builder: Builder, vector: Value) -> Value:
    """Return the sum of all lanes: halves are added to halves."""
    count = LANES
    while count > 1:
        count //= 2
        low = pick(builder, vector, range(count))
        high = pick(builder, vector, range(count, 2 * count))
        vector = builder.fadd(low, high)
    return builder.extract_element(vector, ir.Constant(I32, 0))


def prefetch(builder: Builder, address: Value) -> None:
    """Ask for the cache line at an address, which need not exist, to be read once."""
    byte_pointer = I8.as_pointer()
    function = cgutils.get_or_insert_function(
        builder.module,
        ir.FunctionType(ir.VoidType(), [byte_pointer, I32, I32, I32]),
        "llvm.prefetch.p0",
    )
    read, no_reuse, data = (ir.Constant(I32, flag) for flag in (0, 0, 1))
    builder.call(function, [builder.inttoptr(address, byte_pointer), read, no_reuse, data])
