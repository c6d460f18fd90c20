"""Memory at an address, for compiled code: numbers read and written, counters shared by threads."""

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from .lanes import F32, I16, I32, I64, Builder, Value, lanes, widen_halves


def _load(builder: Builder, address: Value, kind: Any) -> Value:
    loaded = builder.load(builder.inttoptr(address, kind.as_pointer()))
    loaded.align = 1
    return loaded


@intrinsic
def load_int(typing_context: Any, address: Any) -> Any:
    """Return the int64 at an address."""
    return types.int64(types.int64), lambda _c, builder, _s, args: _load(builder, args[0], I64)


@intrinsic
def load_int32(typing_context: Any, address: Any) -> Any:
    """Return the int32 at an address, as int64."""

    def generate(context: Any, builder: Builder, signature: Any, args: Any) -> Value:
        return builder.sext(_load(builder, args[0], I32), I64)

    return types.int64(types.int64), generate


@intrinsic
def load_float(typing_context: Any, address: Any) -> Any:
    """Return the float32 at an address."""
    return types.float32(types.int64), lambda _c, builder, _s, args: _load(builder, args[0], F32)


@intrinsic
def load_float16(typing_context: Any, address: Any) -> Any:
    """Return the float16 at an address, as float32."""

    def generate(context: Any, builder: Builder, signature: Any, args: Any) -> Value:
        one = lanes(I16, 1)
        pointer = builder.inttoptr(args[0], one.as_pointer())
        bits = builder.load(pointer)
        bits.align = 1
        return builder.extract_element(widen_halves(builder, bits), ir.Constant(I32, 0))

    return types.float32(types.int64), generate


@intrinsic
def load_bfloat16(typing_context: Any, address: Any) -> Any:
    """Return the bfloat16 at an address, as float32."""

    def generate(context: Any, builder: Builder, signature: Any, args: Any) -> Value:
        wide = builder.zext(_load(builder, args[0], I16), I32)
        return builder.bitcast(builder.shl(wide, ir.Constant(I32, 16)), F32)

    return types.float32(types.int64), generate


@intrinsic
def store_float(typing_context: Any, address: Any, value: Any) -> Any:
    """Write a float32 at an address."""

    def generate(context: Any, builder: Builder, signature: Any, args: Any) -> Value:
        builder.store(args[1], builder.inttoptr(args[0], F32.as_pointer()))
        return context.get_dummy_value()

    return types.void(types.int64, types.float32), generate


@intrinsic
def fetch_add(typing_context: Any, address: Any, amount: Any) -> Any:
    """Add to the int64 at an address in one step; return what it was."""

    def generate(context: Any, builder: Builder, signature: Any, args: Any) -> Value:
        pointer = builder.inttoptr(args[0], I64.as_pointer())
        return builder.atomic_rmw("add", pointer, args[1], "seq_cst")

    return types.int64(types.int64, types.int64), generate


@intrinsic
def shared_load(typing_context: Any, address: Any) -> Any:
    """Return the int64 at an address that other threads write."""

    def generate(context: Any, builder: Builder, signature: Any, args: Any) -> Value:
        pointer = builder.inttoptr(args[0], I64.as_pointer())
        return builder.load_atomic(pointer, "seq_cst", 8)

    return types.int64(types.int64), generate


@intrinsic
def shared_store(typing_context: Any, address: Any, value: Any) -> Any:
    """Write the int64 at an address that other threads read."""

    def generate(context: Any, builder: Builder, signature: Any, args: Any) -> Value:
        builder.store_atomic(args[1], builder.inttoptr(args[0], I64.as_pointer()), "seq_cst", 8)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), generate


@intrinsic
def call(typing_context: Any, function: Any, task: Any, chunk: Any) -> Any:
    """Call the compiled `void(int64, int64)` at an address."""

    def generate(context: Any, builder: Builder, signature: Any, args: Any) -> Value:
        kind = ir.FunctionType(ir.VoidType(), [I64, I64])
        builder.call(builder.inttoptr(args[0], kind.as_pointer()), args[1:])
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), generate
