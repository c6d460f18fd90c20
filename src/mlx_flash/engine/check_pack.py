"""Checks a model in the packed store: reads all of it, against its checksums."""

import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

from ..errors import FormatError, OptionError
from ..formats.checkpoint import Checkpoint
from ..formats.packed import PackedLayer, record_bytes
from ..formats.shards import is_as_written


def check(folder: Path, on_bytes: Callable[[int, int], None]) -> int:
    """Read every record and every other tensor of a packed model; return the number of records.

    `on_bytes(done, of)` is called as it reads.

    Raises:
        FormatError: a record or a shard is not what was written, or a file is no packed layer.
        OptionError: the model is not packed.
    """
    checkpoint = Checkpoint.open(folder)
    layers = checkpoint.packed.values()
    if not layers:
        raise OptionError(f"{folder} is not packed: there is nothing to check.")
    total = sum(layer.num_experts * record_bytes(layer.tensors) for layer in layers)
    total += sum(tensor.nbytes for tensor in checkpoint.tensors.values())
    damaged, done = [], 0
    for layer in layers:
        for expert, offset, sound in _records(layer):
            if not sound:
                damaged.append((layer.path, expert, offset))
            done += record_bytes(layer.tensors)
            on_bytes(done, total)
    num_records = sum(layer.num_experts for layer in layers)
    if damaged:
        path, expert, offset = damaged[0]
        raise FormatError(
            f"{len(damaged)} of {num_records} records are damaged, the first is expert {expert} in "
            f"{path} at offset {offset}: delete "
            f"{', '.join(sorted({path.name for path, _, _ in damaged}))} and run mlx-flash pack "
            "again, which writes what is missing.",
            path,
            offset,
        )
    for shard in sorted({tensor.path for tensor in checkpoint.tensors.values()}):
        _check_shard(shard)
        done += sum(t.nbytes for t in checkpoint.tensors.values() if t.path == shard)
        on_bytes(done, total)
    return num_records


def _check_shard(shard: Path) -> None:
    """Raise FormatError unless tensors that are no experts are what was written."""
    sound = is_as_written(shard)
    if sound is None:
        raise FormatError(
            f"all records are as they were written, but {shard} was packed without a checksum: run "
            "mlx-flash pack again, with the same model and options, to add it.",
            shard,
        )
    if not sound:
        raise FormatError(
            f"the weights in {shard} are damaged: delete it and run mlx-flash pack again, with the "
            "same model and options.",
            shard,
        )


def _records(layer: PackedLayer) -> Iterator[tuple[int, int, bool]]:
    """Yield the expert and offset of each record, and whether its checksum is right."""
    nbytes = sum(tensor.nbytes for tensor in layer.tensors)
    try:
        with layer.path.open("rb") as file:
            for expert, checksum in enumerate(layer.checksums):
                offset = layer.offset + expert * record_bytes(layer.tensors)
                file.seek(offset)
                yield expert, offset, zlib.crc32(file.read(nbytes)) == checksum
    except OSError as error:
        raise FormatError(
            f"cannot read {layer.path}: {error.strerror or error}.", layer.path
        ) from error
