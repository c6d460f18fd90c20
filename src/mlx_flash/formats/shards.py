"""The shards of a pack: stock safetensors of what is no expert, with a checksum of all tensors."""

import zlib
from collections.abc import Sequence
from pathlib import Path

from ..errors import FormatError
from .safetensors import NewTensor, header_of, read_header

_CHECKSUM = "crc32"
_CHUNK_BYTES = 4 * 1024 * 1024


def shard_header(tensors: Sequence[NewTensor], checksum: int) -> bytes:
    """Return the head of a shard, as long for any CRC-32 of its tensors."""
    return header_of(tensors, {"format": "mlx", _CHECKSUM: f"{checksum:08x}"}, 16)


def is_as_written(path: Path) -> bool | None:
    """Return whether a shard's tensors have its checksum; None when it has none.

    Raises:
        FormatError: it cannot be read.
    """
    header = read_header(path)
    expected = header.metadata.get(_CHECKSUM)
    if expected is None:
        return None
    found = 0
    try:
        with path.open("rb") as file:
            file.seek(min((entry.offset for entry in header.tensors.values()), default=0))
            while chunk := file.read(_CHUNK_BYTES):
                found = zlib.crc32(chunk, found)
    except OSError as error:
        raise FormatError(f"cannot read {path}: {error.strerror or error}.", path) from error
    return f"{found:08x}" == expected
