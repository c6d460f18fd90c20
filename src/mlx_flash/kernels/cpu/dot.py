"""The one inner product that every kernel computes with: weight rows times activation rows.

The order of summation of one result is fixed: per lane over the terms of a block, per lane over
the blocks, then over the lanes. It does not depend on how many rows are computed together, on
which thread computes them, or on where they lie.
"""

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from . import lanes as v
from .formats import SCALE_BYTES, RowFormat, row_format, to_float32
from .lanes import Builder, Value

_AHEAD_BYTES = 2048  # how far ahead weights are prefetched: measured over 0.5 to 16 KiB


@intrinsic(prefer_literal=True)
def dot_tile(
    typing_context: Any,
    format_name: Any,
    num_rows: Any,
    num_inputs: Any,
    weight: Any,
    weight_stride: Any,
    scale: Any,
    scale_stride: Any,
    bias: Any,
    num_blocks: Any,
    tail_lanes: Any,
    inputs: Any,
    outputs: Any,
    column: Any,
) -> Any:
    """Compute `num_rows` x `num_inputs` results, both constants.

    Rows are at the addresses `weight`, `scale` and `bias` (of the quantization), strides in bytes.
    `inputs` and `outputs` are addresses of tables of addresses: of inputs in the order of the
    format, and of results in float32, from element `column` on. A row is `num_blocks` blocks and
    `tail_lanes` lanes of one more.
    """
    row_fmt = row_format(format_name.literal_value)
    rows, columns = num_rows.literal_value, num_inputs.literal_value
    signature = types.void(format_name, num_rows, num_inputs, *[types.int64] * 10)

    def generate(context: Any, builder: Builder, signature: Any, args: Any) -> Value:
        _Tile(builder, row_fmt, rows, columns, *args[3:]).generate()
        return context.get_dummy_value()

    return signature, generate


class _Tile:
    """Writes the instructions of one `dot_tile`."""

    def __init__(
        self,
        builder: Builder,
        row_fmt: RowFormat,
        num_rows: int,
        num_inputs: int,
        weight: Value,
        weight_stride: Value,
        scale: Value,
        scale_stride: Value,
        bias: Value,
        num_blocks: Value,
        tail_lanes: Value,
        inputs: Value,
        outputs: Value,
        column: Value,
    ) -> None:
        self.builder, self.format = builder, row_fmt
        self.rows, self.columns = range(num_rows), range(num_inputs)
        self.num_blocks, self.tail_lanes = num_blocks, tail_lanes
        self.weights = [self._at(weight, weight_stride, row) for row in self.rows]
        self.scales = [self._at(scale, scale_stride, row) for row in self.rows]
        self.biases = [self._at(bias, scale_stride, row) for row in self.rows]
        self.inputs = [self._entry(inputs, column) for column in self.columns]
        self.outputs = [
            builder.add(self._entry(outputs, number), builder.mul(column, v.i64(4)))
            for number in self.columns
        ]
        zero = v.all_lanes(v.lanes(v.F32), 0.0)
        self.sums = [
            [cgutils.alloca_once_value(builder, zero) for _ in self.columns] for _ in self.rows
        ]

    def generate(self) -> None:
        """Write everything."""
        builder = self.builder
        with cgutils.for_range(builder, self.num_blocks, intp=v.I64) as loop:
            self._block(loop.index, None)
        with builder.if_then(builder.icmp_signed(">", self.tail_lanes, v.i64(0))):
            self._block(self.num_blocks, builder.trunc(self.tail_lanes, v.I32))
        factor = v.all_lanes(v.lanes(v.F32), self.format.factor)
        offsets = self._offsets() if self.format.offset else None
        for row in self.rows:
            for column in self.columns:
                total = builder.load(self.sums[row][column])
                if offsets is not None:
                    rest = builder.load(offsets[row][column])
                    total = v.multiply_add(builder, total, factor, rest)
                else:
                    total = builder.fmul(total, factor)
                place = builder.add(self.outputs[column], v.i64(4 * row))
                builder.store(
                    v.sum_of_lanes(builder, total), builder.inttoptr(place, v.F32.as_pointer())
                )

    def _block(self, number: Value, limit: Value | None) -> None:
        """Add one block to the sums."""
        builder, fmt = self.builder, self.format
        start = builder.mul(number, v.i64(fmt.block_bytes))
        places = [builder.add(weight, start) for weight in self.weights]
        for place in places:
            for line in range(0, fmt.block_bytes, 64):
                v.prefetch(builder, builder.add(place, v.i64(_AHEAD_BYTES + line)))
        vectors = [fmt.decode(builder, place, limit) for place in places]
        zero = v.all_lanes(v.lanes(v.F32), 0.0)
        parts = [[zero for _ in self.columns] for _ in self.rows]
        begin = builder.mul(number, v.i64(4 * fmt.block))
        for term in range(fmt.num_terms):
            here = builder.add(begin, v.i64(4 * v.LANES * term))
            xs = [v.load(builder, builder.add(x, here), v.lanes(v.F32)) for x in self.inputs]
            for row in self.rows:
                vector = next(vectors[row])
                for column in self.columns:
                    part = parts[row][column]
                    parts[row][column] = v.multiply_add(builder, vector, xs[column], part)
        for row in self.rows:
            scale = self._scale(self.scales[row], number, limit) if fmt.scale else None
            for column in self.columns:
                total = builder.load(self.sums[row][column])
                part = parts[row][column]
                if scale is None:
                    total = builder.fadd(total, part)
                else:
                    total = v.multiply_add(builder, part, scale, total)
                builder.store(total, self.sums[row][column])

    def _scale(self, scales: Value, block: Value, limit: Value | None) -> Value:
        """Return the scale of each lane of a block."""
        builder, fmt = self.builder, self.format
        count = fmt.scales_per_block
        if count > 1:
            first = builder.mul(block, v.i64(count))
        else:
            first = builder.udiv(builder.mul(block, v.i64(fmt.block)), v.i64(fmt.group))
        if limit is not None and count > 1:
            limit = builder.udiv(limit, ir.Constant(v.I32, v.LANES // count))
        else:
            limit = None
        place = builder.add(scales, builder.mul(first, v.i64(SCALE_BYTES[fmt.scale])))
        loaded = to_float32(builder, fmt.scale, place, count, limit)
        return v.pick(builder, loaded, [lane * count // v.LANES for lane in range(v.LANES)])

    def _offsets(self) -> list[list[Value]]:
        """Return, per result, the lanes of sum(group bias - offset * scale) * sum(group inputs).

        The sums of each group's inputs follow the inputs.
        """
        builder, fmt = self.builder, self.format
        zero = v.all_lanes(v.lanes(v.F32), 0.0)
        totals = [
            [cgutils.alloca_once_value(builder, zero) for _ in self.columns] for _ in self.rows
        ]
        whole = builder.mul(self.num_blocks, v.i64(fmt.block))
        has_tail = builder.icmp_signed(">", self.tail_lanes, v.i64(0))
        padded = builder.add(whole, builder.select(has_tail, v.i64(fmt.block), v.i64(0)))
        size = builder.add(whole, builder.mul(self.tail_lanes, v.i64(fmt.num_terms)))
        num_groups = builder.udiv(size, v.i64(fmt.group))
        sums = [builder.add(x, builder.mul(padded, v.i64(4))) for x in self.inputs]
        minus = v.all_lanes(v.lanes(v.F32), -float(fmt.offset))
        step = v.i64(v.LANES)
        with cgutils.for_range_slice(builder, v.i64(0), num_groups, step, v.I64) as (group, _):
            limit = builder.trunc(builder.sub(num_groups, group), v.I32)
            here = builder.mul(group, v.i64(4))
            xs = [v.load(builder, builder.add(x, here), v.lanes(v.F32)) for x in sums]
            for row in self.rows:
                there = builder.mul(group, v.i64(SCALE_BYTES[fmt.scale]))
                scale, bias = (
                    to_float32(builder, fmt.scale, builder.add(at, there), limit=limit)
                    for at in (self.scales[row], self.biases[row])
                )
                weight = v.multiply_add(builder, scale, minus, bias)
                for column in self.columns:
                    total = builder.load(totals[row][column])
                    total = v.multiply_add(builder, weight, xs[column], total)
                    builder.store(total, totals[row][column])
        return totals

    def _at(self, base: Value, stride: Value, row: int) -> Value:
        return self.builder.add(base, self.builder.mul(stride, v.i64(row)))

    def _entry(self, table: Value, number: int) -> Value:
        place = self.builder.add(table, v.i64(8 * number))
        return self.builder.load(self.builder.inttoptr(place, v.I64.as_pointer()))
