"""The packed store: all tensors of an expert back to back in one record, one file per layer.

A file is valid safetensors: a U8 tensor for each record, in the order of the experts, aligned for
direct reads on every platform. Its metadata says what is in a record, with a checksum of each.
"""

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import FormatError
from .layout import DIRECT_ALIGNMENT, ExpertLayout, ExpertTensor
from .safetensors import DTYPE_BYTES, FileStamp, Header, NewTensor, header_of, read_header

RECORD_ALIGNMENT = 16 * 1024
"""Records start at a multiple of this in their file: a page on every platform."""

_FORMAT, _VERSION = "mlx-flash-packed", "1"
_FILES = "experts-*.safetensors"
_MAX_AXES = 4


@dataclass(frozen=True)
class PackedLayer:
    """A layer's file. `tensors` are those of one expert, in the order in which a record has them.

    `offset` is that of the first record; `checksums` are the CRC-32 of each record's tensors.
    """

    path: Path
    prefix: str
    tensors: tuple[NewTensor, ...]
    checksums: tuple[int, ...]
    offset: int
    stamp: FileStamp

    @property
    def num_experts(self) -> int:
        """Experts of the layer."""
        return len(self.checksums)

    @property
    def stacks(self) -> dict[str, NewTensor]:
        """The tensors as a stock checkpoint names and stacks them, experts first."""
        return {
            tensor.name: NewTensor(
                f"{self.prefix}.{tensor.name}", tensor.dtype, (self.num_experts, *tensor.shape)
            )
            for tensor in self.tensors
        }

    def layout(self, layer: int) -> ExpertLayout:
        """Return where the experts lie, for streaming them as layer number `layer`."""
        starts = itertools.accumulate((tensor.nbytes for tensor in self.tensors), initial=0)
        found = tuple(
            ExpertTensor(
                tensor.name,
                tensor.dtype,
                tensor.shape,
                tensor.nbytes,
                self.path,
                self.offset + start,
                record_bytes(self.tensors),
                self.stamp,
            )
            for tensor, start in zip(self.tensors, starts, strict=False)
        )
        return ExpertLayout(layer, self.prefix, self.num_experts, found, self.checksums)


def record_bytes(tensors: Sequence[NewTensor]) -> int:
    """Return the bytes of a record in its file, padding included."""
    return -(-sum(tensor.nbytes for tensor in tensors) // RECORD_ALIGNMENT) * RECORD_ALIGNMENT


def in_record_order(tensors: Sequence[NewTensor]) -> list[NewTensor]:
    """Return an expert's tensors as records have them: first those that are whole blocks.

    Direct reads fill the slots of these without a copy, because each starts at a block.
    """
    return sorted(tensors, key=lambda tensor: tensor.nbytes % DIRECT_ALIGNMENT != 0)


def packed_name(layer: int) -> str:
    """Return the name of the file of layer number `layer`."""
    return f"experts-{layer:05d}.safetensors"


def packed_header(prefix: str, tensors: Sequence[NewTensor], checksums: Sequence[int]) -> bytes:
    """Return the head of a layer's file, as long for any values of the checksums.

    `tensors` are those of one expert, in the order of `in_record_order`.
    """
    described = [{"name": t.name, "dtype": t.dtype, "shape": list(t.shape)} for t in tensors]
    metadata = {
        "format": _FORMAT,
        "version": _VERSION,
        "prefix": prefix,
        "tensors": json.dumps(described),
        "crc32": " ".join(f"{checksum:08x}" for checksum in checksums),
    }
    records = [
        NewTensor(f"{prefix}.{expert}", "U8", (record_bytes(tensors),))
        for expert in range(len(checksums))
    ]
    return header_of(records, metadata, RECORD_ALIGNMENT)


def find_packed(folder: Path) -> dict[str, PackedLayer]:
    """Return the packed layers in a folder by their prefix, the module path of their experts.

    Raises:
        FormatError: a file is not what its name says, or was packed by a later version, or two
            hold the same layer.
    """
    found: dict[str, PackedLayer] = {}
    for path in sorted(folder.glob(_FILES)):
        layer = read_packed(path)
        if layer.prefix in found:
            raise FormatError(
                f"{found[layer.prefix].path} and {path} both hold {layer.prefix}: delete the one "
                "that mlx-flash pack did not write.",
                path,
            )
        found[layer.prefix] = layer
    return found


def read_packed(path: Path) -> PackedLayer:
    """Return what the file of a packed layer holds. Nothing in it is trusted.

    Raises:
        FormatError: it is no packed layer, or one of a later version.
    """
    return packed_layer(read_header(path), path)


def packed_layer(header: Header, path: Path) -> PackedLayer:
    """Return what a file with this header holds.

    Raises:
        FormatError: it is no packed layer, or one of a later version.
    """
    if header.metadata.get("format") != _FORMAT:
        raise FormatError(f"{path} was not written by mlx-flash pack.", path, 8)
    if header.metadata.get("version") != _VERSION:
        raise FormatError(f"{path} was packed by a later mlx-flash: update this one.", path, 8)
    try:
        prefix = header.metadata["prefix"]
        tensors = tuple(_tensor(item) for item in json.loads(header.metadata["tensors"]))
        checksums = tuple(int(text, 16) for text in header.metadata["crc32"].split())
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise FormatError(f"{path} describes its records badly: {error!r}.", path, 8) from error
    first = header.tensors.get(f"{prefix}.0")
    layer = PackedLayer(
        path, prefix, tensors, checksums, first.offset if first else 0, header.stamp
    )
    _check_records(layer, header)
    return layer


def _tensor(item: Mapping[str, Any]) -> NewTensor:
    name, dtype, shape = item["name"], item["dtype"], tuple(item["shape"])
    numbers = all(type(length) is int and length > 0 for length in shape)
    if not isinstance(name, str) or dtype not in DTYPE_BYTES or not numbers:
        raise ValueError(item)
    if len(shape) > _MAX_AXES:
        raise ValueError(item)
    return NewTensor(name, dtype, shape)


def _check_records(layer: PackedLayer, header: Header) -> None:
    """Raise FormatError unless the records lie where the layer's description puts them."""
    nbytes = record_bytes(layer.tensors)
    names = [f"{layer.prefix}.{expert}" for expert in range(layer.num_experts)]
    places = sorted((entry.offset, entry.nbytes) for entry in header.tensors.values())
    wanted = [(layer.offset + number * nbytes, nbytes) for number in range(layer.num_experts)]
    aligned = layer.offset % RECORD_ALIGNMENT == 0
    distinct = len({tensor.name for tensor in layer.tensors}) == len(layer.tensors)
    in_order = sorted(header.tensors, key=lambda name: header.tensors[name].offset) == names
    if not (names and nbytes and aligned and distinct and in_order and places == wanted):
        raise FormatError(f"{layer.path} has records that are not where it says.", layer.path, 8)
