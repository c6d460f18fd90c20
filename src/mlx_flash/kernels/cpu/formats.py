"""How the weights of a matrix row are stored, and how a block of them becomes float32 lanes.

A row is cut into blocks of `num_terms` vectors of 16 weights. Lane l of term t is the weight
`element(t, l)` of the block: an order in which decoding is cheap. Activations are put in the same
order before a product, so that nothing is moved while weights stream by. All bits of MLX's formats
are little-endian bit streams along the row.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt
from llvmlite import ir

from . import lanes as v
from .lanes import Builder, Value

SCALE_BYTES = {"": 0, "f32": 4, "f16": 2, "bf16": 2, "e8m0": 1, "e4m3": 1}


@dataclass(frozen=True)
class RowFormat:
    """A storage format; its `name` is `weights-scales-group`, such as `q4-bf16-64`.

    The weights that the lanes hold are `factor` times too small. With `offset` they are
    1 + q / offset, and a group's weights are scale * q + bias.
    """

    name: str
    scale: str
    group: int
    num_terms: int
    block_bytes: int
    factor: float
    offset: int = 0

    @property
    def block(self) -> int:
        """Weights in a block."""
        return v.LANES * self.num_terms

    @property
    def scales_per_block(self) -> int:
        """Groups that a block spans; 1 when a group is as long as a block, or longer."""
        return max(1, self.block // self.group) if self.scale else 1

    @property
    def order(self) -> npt.NDArray[np.int32]:
        """The element of a block that each (term, lane) holds, flat."""
        pairs = [self.element(t, lane) for t in range(self.num_terms) for lane in range(v.LANES)]
        return np.array(pairs, np.int32)

    @property
    def tail_step(self) -> int:
        """A row may end after any multiple of this many weights of a block."""
        return self.num_terms

    def element(self, term: int, lane: int) -> int:
        """Return which weight of a block lane `lane` of `term` holds."""
        return self.num_terms * lane + term

    def decode(self, builder: Builder, address: Value, limit: Value | None) -> Iterator[Value]:
        """Yield the vectors of the block at `address`, of which only `limit` lanes exist."""
        raise NotImplementedError


class IntegerFormat(RowFormat):
    """MLX's affine weights: unsigned integers of 2, 3, 4, 5, 6 or 8 bits.

    An integer's bits go into the top of the mantissa of 1.0, which takes a shift and one ternary
    operation, where a conversion would take a third.
    """

    @property
    def bits(self) -> int:
        """Bits of a weight."""
        return self.offset.bit_length() - 1

    def decode(self, builder: Builder, address: Value, limit: Value | None) -> Iterator[Value]:
        """Yield 1 + q / 2^bits."""
        words = self.num_terms * self.bits // 32  # of each lane
        if limit is not None:
            limit = builder.mul(limit, ir.Constant(v.I32, words))
        raw = v.load(builder, address, v.lanes(v.I32, v.LANES * words), limit)
        word = [v.pick(builder, raw, range(n, v.LANES * words, words)) for n in range(words)]
        top = 23 - self.bits  # of a mantissa of 23 bits
        mask = v.all_lanes(raw.type if words == 1 else word[0].type, (self.offset - 1) << top)
        one = v.all_lanes(word[0].type, 0x3F800000)
        for term in range(self.num_terms):
            number, start = divmod(self.bits * term, 32)
            moved = v.shift(builder, word[number], top - start)
            if start + self.bits > 32:
                rest = v.shift(builder, word[number + 1], top - start + 32)
                moved = builder.or_(moved, rest)
            bits = builder.or_(builder.and_(moved, mask), one)
            yield builder.bitcast(bits, v.lanes(v.F32))


class SmallFloatFormat(RowFormat):
    """Floats of 4 bits (e2m1) or 8 bits (e4m3), by way of float16, which has room for them.

    Sign and the rest move to their places in a float16 whose exponent counts from elsewhere: the
    value is the right one times a power of two, subnormals included.
    """

    def decode(self, builder: Builder, address: Value, limit: Value | None) -> Iterator[Value]:
        """Yield the weights times 1 / factor."""
        word = v.load(builder, address, v.lanes(v.I16), limit)
        bits = 16 // self.num_terms
        magnitude, right = (0x0E00, 3) if bits == 4 else (0x3F80, 1)
        sign = v.all_lanes(word.type, 0x8000)
        for term in range(self.num_terms):
            left = v.shift(builder, word, 16 - bits * (term + 1))
            rest = builder.and_(v.shift(builder, left, -right), v.all_lanes(word.type, magnitude))
            half = builder.or_(builder.and_(left, sign), rest)
            yield v.widen_halves(builder, half)


class PlainFormat(RowFormat):
    """Unquantized weights in f32, f16 or bf16, in their own order."""

    @property
    def tail_step(self) -> int:
        """Any multiple of the lanes."""
        return v.LANES

    def element(self, term: int, lane: int) -> int:
        """Return which weight of a block lane `lane` of `term` holds."""
        return v.LANES * term + lane

    def decode(self, builder: Builder, address: Value, limit: Value | None) -> Iterator[Value]:
        """Yield the weights."""
        for term in range(self.num_terms):
            start = v.i64(term * self.block_bytes // self.num_terms)
            left = None
            if limit is not None:
                whole = builder.mul(limit, ir.Constant(v.I32, v.LANES))
                left = builder.sub(whole, ir.Constant(v.I32, v.LANES * term))
            yield to_float32(
                builder, self.name.split("-")[0], builder.add(address, start), limit=left
            )


def to_float32(
    builder: Builder, kind: str, address: Value, count: int = v.LANES, limit: Value | None = None
) -> Value:
    """Load `count` numbers of type `kind` as float32; those from `limit` on are zero."""
    wide = v.lanes(v.F32, count)
    if kind == "f32":
        return v.load(builder, address, wide, limit)
    if kind == "f16":
        half = v.load(builder, address, v.lanes(v.I16, count), limit)
        return v.widen_halves(builder, half)
    integers = v.lanes(v.I32, count)
    if kind == "bf16":
        half = v.load(builder, address, v.lanes(v.I16, count), limit)
        return builder.bitcast(v.shift(builder, builder.zext(half, integers), 16), wide)
    byte = v.load(builder, address, v.lanes(v.I8, count), limit)
    if kind == "e8m0":  # a bare exponent; 0 is 2^-127, which float32 writes as a subnormal
        bits = v.shift(builder, builder.zext(byte, integers), 23)
        is_zero = builder.icmp_unsigned("==", bits, v.all_lanes(integers, 0))
        bits = builder.select(is_zero, v.all_lanes(integers, 0x00400000), bits)
        return builder.bitcast(bits, wide)
    assert kind == "e4m3", kind
    word = builder.zext(byte, v.lanes(v.I16, count))
    sign = v.shift(builder, builder.and_(word, v.all_lanes(word.type, 0x80)), 8)
    rest = v.shift(builder, builder.and_(word, v.all_lanes(word.type, 0x7F)), 7)
    half = v.widen_halves(builder, builder.or_(sign, rest))
    return builder.fmul(half, v.all_lanes(wide, 256.0))


_TERMS = {2: 16, 3: 32, 4: 8, 5: 32, 6: 16, 8: 4}


@cache
def row_format(name: str) -> RowFormat:
    """Return the format of a name, `weights-scales-group`.

    Weights are q2 to q8, fp4, fp8, f32, f16 or bf16. Scales are f32, f16, bf16, e8m0, e4m3, or
    empty for plain weights.
    """
    weights, scale, group = name.split("-")
    if weights in ("f32", "f16", "bf16"):
        return PlainFormat(name, "", 0, 4, 64 * (4 if weights == "f32" else 2), 1.0)
    if weights == "fp4":
        return SmallFloatFormat(name, scale, int(group), 4, 32, 2.0**14)
    if weights == "fp8":
        return SmallFloatFormat(name, scale, int(group), 2, 32, 2.0**8)
    bits = int(weights[1:])
    terms = _TERMS[bits]
    return IntegerFormat(
        name, scale, int(group), terms, 2 * terms * bits, float(1 << bits), offset=1 << bits
    )
