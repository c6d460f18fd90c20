"""Headers of safetensors files: which tensor lies where. Nothing in a header is trusted."""

import itertools
import json
import math
import os
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import FormatError

DTYPE_BYTES: Mapping[str, int] = {
    "BOOL": 1,
    "U8": 1,
    "I8": 1,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
    "F8_E8M0": 1,
    "U16": 2,
    "I16": 2,
    "F16": 2,
    "BF16": 2,
    "U32": 4,
    "I32": 4,
    "F32": 4,
    "U64": 8,
    "I64": 8,
    "F64": 8,
    "C64": 8,
}
"""Bytes per element of each dtype that the format names."""

_MAX_HEADER_BYTES = 100_000_000  # the format's own limit


class FileStamp(NamedTuple):
    """What a file was when its header was read: another file, or another content, differs."""

    device: int
    inode: int
    size: int
    mtime_ns: int

    @classmethod
    def of(cls, descriptor: int) -> "FileStamp":
        """Return the stamp of an open file."""
        status = os.fstat(descriptor)
        return cls(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)


@dataclass(frozen=True)
class TensorEntry:
    """Where one tensor lies: `nbytes` at the absolute `offset` of `path`, row-major."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    path: Path
    offset: int
    nbytes: int
    stamp: FileStamp


@dataclass(frozen=True)
class Header:
    """What a safetensors file says of itself: every tensor by name, and the metadata."""

    tensors: Mapping[str, TensorEntry]
    metadata: Mapping[str, str]
    stamp: FileStamp


def read_header(path: Path) -> Header:
    """Return the header of a safetensors file.

    Raises:
        FormatError: the file is truncated, or its header is no header, overlaps, leaves the file,
            or names a size that its shape and dtype do not have.
    """
    try:
        with path.open("rb") as file:
            stamp = FileStamp.of(file.fileno())
            size = stamp.size
            prefix = file.read(8)
            header_bytes = header_length(prefix, size, path)
            raw = file.read(header_bytes)
    except OSError as error:
        raise FormatError(f"cannot read {path}: {error.strerror or error}.", path) from error
    return parse_header(raw, path, stamp)


def header_length(prefix: bytes, size: int, path: Path) -> int:
    """Return the bytes of JSON that follow the first 8 bytes of a file of `size` bytes.

    Raises:
        FormatError: the file cannot hold them.
    """
    if len(prefix) < 8:
        raise FormatError(f"{path} is too short to be a safetensors file.", path, 0)
    (header_bytes,) = struct.unpack("<Q", prefix)
    if header_bytes > min(size - 8, _MAX_HEADER_BYTES):
        raise FormatError(
            f"{path} is truncated or not a safetensors file: its header would take "
            f"{header_bytes} bytes of {size}.",
            path,
            0,
        )
    return int(header_bytes)


def parse_header(raw: bytes, path: Path, stamp: FileStamp) -> Header:
    """Return the header that `raw` is the JSON of, of the file that `path` names.

    Raises:
        FormatError: it is no header, overlaps, leaves the file, or lies about a size.
    """
    try:
        header = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{path} has a header that is not JSON: {error}.", path, 8) from error
    if not isinstance(header, dict):
        raise FormatError(f"{path} has a header that is not a JSON object.", path, 8)
    data_start = 8 + len(raw)
    entries = {
        name: _entry(name, value, path, data_start, stamp)
        for name, value in header.items()
        if name != "__metadata__"
    }
    _check_no_overlap(entries, path)
    metadata = header.get("__metadata__")
    items = metadata.items() if isinstance(metadata, dict) else ()
    texts = {key: value for key, value in items if isinstance(value, str)}
    return Header(entries, texts, stamp)


@dataclass(frozen=True)
class NewTensor:
    """A tensor that is about to be written."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """The bytes it takes."""
        return math.prod(self.shape) * DTYPE_BYTES[self.dtype]


def header_of(tensors: Sequence[NewTensor], metadata: Mapping[str, str], alignment: int) -> bytes:
    """Return the head of a safetensors file in which `tensors` lie back to back, in this order.

    The first starts at a multiple of `alignment` bytes.
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    start = 0
    for tensor in tensors:
        end = start + tensor.nbytes
        header[tensor.name] = {
            "dtype": tensor.dtype,
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
        start = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % alignment)
    return struct.pack("<Q", len(text)) + text


def _entry(name: str, value: Any, path: Path, data_start: int, stamp: FileStamp) -> TensorEntry:
    try:
        dtype = value["dtype"]
        shape = tuple(value["shape"])
        begin, end = value["data_offsets"]
        item_bytes = DTYPE_BYTES[dtype]
    except (KeyError, TypeError, ValueError) as error:
        raise FormatError(f"{path} describes tensor {name!r} badly: {error!r}.", path, 8) from error
    numbers = (*shape, begin, end)
    if not all(type(number) is int and number >= 0 for number in numbers):
        raise FormatError(f"{path} gives tensor {name!r} a negative or broken size.", path, 8)
    if data_start + end > stamp.size:
        raise FormatError(
            f"{path} is truncated: tensor {name!r} ends at byte {data_start + end} "
            f"of a file of {stamp.size} bytes; download it again.",
            path,
            data_start + begin,
        )
    if end - begin != math.prod(shape) * item_bytes:
        raise FormatError(
            f"{path} has a header that lies: tensor {name!r} of shape {list(shape)} in {dtype} "
            f"cannot take {end - begin} bytes.",
            path,
            data_start + begin,
        )
    return TensorEntry(name, dtype, shape, path, data_start + begin, end - begin, stamp)


def _check_no_overlap(entries: Mapping[str, TensorEntry], path: Path) -> None:
    """Raise FormatError when two tensors share bytes."""
    ordered = sorted(entries.values(), key=lambda entry: (entry.offset, entry.nbytes))
    for before, after in itertools.pairwise(ordered):
        if before.offset + before.nbytes > after.offset:
            raise FormatError(
                f"{path} has a header that lies: tensors {before.name!r} and {after.name!r} "
                "overlap.",
                path,
                after.offset,
            )
