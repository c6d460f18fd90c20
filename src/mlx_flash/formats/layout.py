"""The layout of one layer's experts: which span of which file fills which tensor of a slot."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from ..errors import UnsupportedModelError
from .safetensors import DTYPE_BYTES, FileStamp, TensorEntry

SLOT_ALIGNMENT = 16 * 1024
"""A page on every platform: a layer's slots start at a multiple of this."""

DIRECT_ALIGNMENT = 4096
"""Direct reads start and end at multiples of this, in the file and in memory."""


@dataclass(frozen=True)
class Piece:
    """Tensors of an expert that lie back to back in a file: one read for each expert.

    Those of expert e start at `offset + e * stride` of `path`.
    """

    tensors: tuple[str, ...]
    path: Path
    offset: int
    stride: int


@dataclass(frozen=True)
class ExpertTensor:
    """One tensor that every expert of a layer has, such as `gate_proj.scales`.

    `shape` and `nbytes` are of one expert. That of the first lies at `offset`, and each of the
    others `stride` bytes behind the one before.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    path: Path
    offset: int
    stride: int
    stamp: FileStamp

    @property
    def phase(self) -> int:
        """Where in a block of DIRECT_ALIGNMENT this tensor of every expert starts; 0 if it varies.

        Slots that start there can be filled by direct reads without a copy.
        """
        whole_blocks = self.nbytes % DIRECT_ALIGNMENT == self.stride % DIRECT_ALIGNMENT == 0
        return self.offset % DIRECT_ALIGNMENT if whole_blocks else 0

    def slots_bytes(self, capacity: int) -> int:
        """Return the memory of `capacity` slots of this tensor."""
        return aligned(capacity * self.nbytes) + DIRECT_ALIGNMENT


@dataclass(frozen=True)
class ExpertLayout:
    """Where the experts of one layer lie, stacked by tensor as in a stock checkpoint, or packed.

    `checksums` are the CRC-32 of each expert's tensors, in their order here; none in a stock one.
    """

    layer: int
    prefix: str
    num_experts: int
    tensors: tuple[ExpertTensor, ...]
    checksums: tuple[int, ...] = ()

    @property
    def expert_bytes(self) -> int:
        """Bytes of one expert on disk."""
        return sum(tensor.nbytes for tensor in self.tensors)

    @cached_property
    def pieces(self) -> tuple[Piece, ...]:
        """What is read for an expert: its tensors, those that are neighbours together."""
        found: list[Piece] = []
        end = 0
        for tensor in self.tensors:
            last = found[-1] if found else None
            if last and (last.path, last.stride, end) == (
                tensor.path,
                tensor.stride,
                tensor.offset,
            ):
                found[-1] = replace(last, tensors=(*last.tensors, tensor.name))
            else:
                found.append(Piece((tensor.name,), tensor.path, tensor.offset, tensor.stride))
            end = tensor.offset + tensor.nbytes
        return tuple(found)

    def slab_bytes(self, capacity: int) -> int:
        """Return the memory that `capacity` slots take, alignment included."""
        return SLOT_ALIGNMENT + sum(tensor.slots_bytes(capacity) for tensor in self.tensors)

    @property
    def files(self) -> dict[Path, FileStamp]:
        """Every file that holds a part of this layer's experts, as it was."""
        return {tensor.path: tensor.stamp for tensor in self.tensors}


_SWEEP_BYTES = 8 * 1024 * 1024  # enough reads in flight for any disk
_MAX_SWEEP_SLOTS = 16


def sweep_slots(layout: ExpertLayout) -> int:
    """Return the slots of a layer's sweep buffer: an even number, one half is read while the
    other is computed.
    """
    wanted = min(-(-_SWEEP_BYTES // max(1, layout.expert_bytes)), layout.num_experts)
    return max(2, min(_MAX_SWEEP_SLOTS, wanted + wanted % 2))


def sweep_bytes(layouts: Sequence[ExpertLayout]) -> int:
    """Return the memory of the sweep buffer that all layers share."""
    return max((layout.slab_bytes(sweep_slots(layout)) for layout in layouts), default=0)


def aligned(nbytes: int) -> int:
    """Return `nbytes` rounded up to a multiple of DIRECT_ALIGNMENT."""
    return -(-nbytes // DIRECT_ALIGNMENT) * DIRECT_ALIGNMENT


def stacked_layout(
    tensors: Mapping[str, TensorEntry],
    layer: int,
    prefix: str,
    wanted: Mapping[str, tuple[tuple[int, ...], str]],
) -> ExpertLayout:
    """Return the layout of a layer whose experts are stacked along the first axis.

    `wanted` gives the shape (experts first) and dtype that the model expects of each tensor,
    named relative to `prefix`, the module path of the layer's experts.

    Raises:
        UnsupportedModelError: a tensor is not in the checkpoint, or has another shape or dtype.
    """
    found = []
    num_experts = 0
    for name, (shape, dtype) in wanted.items():
        entry = tensors.get(f"{prefix}.{name}")
        if entry is None:
            raise UnsupportedModelError(
                f"the checkpoint does not hold {prefix}.{name}: its experts are stored under other "
                "names than mlx-lm gives them; convert it with mlx-flash pack first."
            )
        if entry.shape != shape or entry.dtype != dtype:
            raise UnsupportedModelError(
                f"the checkpoint holds {entry.name} as {entry.dtype} {list(entry.shape)}, the "
                f"model expects {dtype} {list(shape)}; convert it with mlx-flash pack first."
            )
        num_experts = shape[0]
        nbytes = math.prod(shape[1:]) * DTYPE_BYTES[dtype]
        place = (entry.path, entry.offset, nbytes, entry.stamp)
        found.append(ExpertTensor(name, dtype, shape[1:], nbytes, *place))
    return ExpertLayout(layer, prefix, num_experts, tuple(found))
