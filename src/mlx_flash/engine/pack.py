"""Writes a model into the packed store, expert by expert, in bounded memory."""

import errno
import hashlib
import json
import os
import shutil
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import mlx.core as mx
from mlx.nn.layers.base import Module

from ..errors import OptionError, PackError, UnsupportedModelError
from ..folders import check_writable
from ..formats.checkpoint import PACK_RECORD, Checkpoint, read_json_object
from ..formats.packed import (
    in_record_order,
    packed_header,
    packed_name,
    record_bytes,
)
from ..formats.safetensors import NewTensor
from ..formats.shards import shard_header
from ..kernels.reference import Quantization
from ..planner.memory import gigabytes
from ..streaming import adapter
from ..streaming.slots import ALL_DTYPES, type_name
from .folder_lock import locked

_SHARD_BYTES = 10**9  # of what is no expert: also what an interruption may cost at most
_COPIED = {".json", ".jinja", ".txt", ".model", ".tiktoken", ".md"}
_NOT_COPIED = {"config.json", "model.safetensors.index.json", "hf_quant_config.json", PACK_RECORD}
_PARTIAL = ".partial"

OnBytes = Callable[[int, int], None]


@dataclass(frozen=True)
class _NewFile:
    """A file of the pack: a shard with its `tensors`, or a layer with those of one expert."""

    name: str
    tensors: tuple[NewTensor, ...]
    prefix: str = ""
    num_experts: int = 0

    @property
    def nbytes(self) -> int:
        """The bytes of its tensors."""
        return self.num_experts * record_bytes(self.tensors) if self.prefix else _sum(self.tensors)

    @property
    def head(self) -> bytes:
        """What stands before the tensors, with checksums of nothing."""
        if self.prefix:
            return packed_header(self.prefix, self.tensors, [0] * self.num_experts)
        return shard_header(self.tensors, 0)

    @property
    def file_bytes(self) -> int:
        """The bytes of the whole file."""
        return len(self.head) + self.nbytes


@dataclass
class _Meter:
    """Counts bytes for a progress bar."""

    total: int
    on_bytes: OnBytes
    done: int = field(default=0)

    def add(self, nbytes: int) -> None:
        self.done += nbytes
        self.on_bytes(self.done, self.total)


def pack(source: Path, target: Path, quantization: Quantization | None, on_bytes: OnBytes) -> bool:
    """Write the model in `source` to the folder `target`, its experts in the packed store.

    Returns whether anything was missing: False where the pack was complete.

    Whatever mlx-lm loads can be packed, with experts stored one by one too. `quantization` also
    quantizes, as mlx-lm does. Holds the weights of one layer in memory, and never more. Each file
    gets its name when it is complete: what was interrupted goes on with those that are missing or
    have another size. `on_bytes(done, of)` is called as it writes.

    Raises:
        OptionError: `target` holds something else or is being written by another process, or the
            model is packed or quantized already.
        PackError: the disk is full, or cannot be written.
        FormatError, ModelNotFoundError, UnsupportedModelError: `source` is no sound checkpoint.
    """
    checkpoint = Checkpoint.open(source)
    if checkpoint.packed:
        raise OptionError(f"{source} is packed already: use it as it is.")
    lazy = adapter.load_lazily(source)
    if quantization is not None:
        if "quantization" in lazy.config:
            raise OptionError(
                f"{source} is quantized already: pack it as it is, without an option to quantize."
            )
        lazy = adapter.quantize_lazily(
            lazy, quantization.bits, quantization.group_size, quantization.mode
        )
    files = _plan_files(lazy.model)
    _make_folder(target)
    with locked(target):
        _claim(target, _identity(checkpoint, quantization), files)
        missing = [file for file in files if not _is_whole(target / file.name, file.file_bytes)]
        complete = not missing and (target / "config.json").is_file()
        _write_files(lazy.model, target, files, missing, on_bytes)
        _copy_others(source, target)
        with _translated(target):
            partial = target / f"config.json{_PARTIAL}"
            adapter.write_config(lazy.config, partial)
            partial.replace(target / "config.json")
    return not complete


def _make_folder(target: Path) -> None:
    """Make a folder, unless it is there."""
    if target.exists() and not target.is_dir():
        raise OptionError(f"{target} is a file: give a folder.")
    try:
        target.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OptionError(
            f"cannot make {target}: {error.strerror or error}: give another folder."
        ) from error
    check_writable(target / "config.json")


def _is_whole(path: Path, nbytes: int) -> bool:
    """Return whether there is a file of that size."""
    return path.is_file() and path.stat().st_size == nbytes


def _write_files(
    model: Module,
    target: Path,
    files: Sequence[_NewFile],
    missing: Sequence[_NewFile],
    on_bytes: OnBytes,
) -> None:
    """Write the `missing` ones of the files of a pack."""
    _check_room(target, sum(file.nbytes for file in missing))
    total = sum(file.nbytes for file in files)
    meter = _Meter(total, on_bytes, total - sum(file.nbytes for file in missing))
    for file in missing:
        with _new_file(target / file.name) as out:
            if file.prefix:
                _write_layer(out, file, model, meter)
            else:
                _write_shard(out, file, model, meter)
        mx.clear_cache()


def _sum(tensors: Sequence[NewTensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)


def _plan_files(model: Module) -> list[_NewFile]:
    """Return the files of a pack: shards of what is no expert, then one for each layer."""
    switches = adapter.find_switches(model)
    if not switches:
        raise UnsupportedModelError("the model has no experts to pack.")
    experts = {
        f"{path}.{name}.{tensor}"
        for path, switch in switches
        for name, projection in adapter.projections(switch).items()
        for tensor in adapter.parameters(projection)
    }
    shards: list[list[NewTensor]] = [[]]
    for name, array in adapter.parameters(model).items():
        if name in experts:
            continue
        tensor = NewTensor(name, type_name(array.dtype, ALL_DTYPES), tuple(array.shape))
        if shards[-1] and _sum(shards[-1]) + tensor.nbytes > _SHARD_BYTES:
            shards.append([])
        shards[-1].append(tensor)
    files = [
        _NewFile(f"model-{number:05d}-of-{len(shards):05d}.safetensors", tuple(shard))
        for number, shard in enumerate(shards, start=1)
    ]
    for layer, (path, switch) in enumerate(switches):
        stacks = {
            f"{name}.{tensor}": array
            for name, projection in adapter.projections(switch).items()
            for tensor, array in adapter.parameters(projection).items()
        }
        tensors = in_record_order(
            [
                NewTensor(name, type_name(array.dtype), tuple(array.shape[1:]))
                for name, array in stacks.items()
            ]
        )
        num_experts = next(iter(stacks.values())).shape[0]
        files.append(_NewFile(packed_name(layer), tuple(tensors), path, num_experts))
    return files


def _identity(checkpoint: Checkpoint, quantization: Quantization | None) -> str:
    """Return what a pack is made of: a digest of the source's files and of the options."""
    stamps = {entry.path.name: entry.stamp for entry in checkpoint.tensors.values()}
    facts = {
        "config": checkpoint.config,
        "files": {name: (stamp.size, stamp.mtime_ns) for name, stamp in sorted(stamps.items())},
        "quantization": str(quantization),
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _claim(target: Path, identity: str, files: Sequence[_NewFile]) -> None:
    """Make `target` the folder of this pack, or see that it is already.

    Raises:
        OptionError: there is something else in it.
    """
    record = target / PACK_RECORD
    claim = {"source": identity, "files": {file.name: file.file_bytes for file in files}}
    with _translated(target):
        found = read_json_object(record) if record.is_file() else None
        if found == claim:
            return
        if found is not None and found.get("source") != identity:
            raise OptionError(
                f"{target} holds a pack of another model, of another version of it, or with "
                "other options: give a new folder."
            )
        unfinished = record.name + _PARTIAL  # of one that was killed before it had claimed
        if found is None and any(path.name != unfinished for path in target.iterdir()):
            raise OptionError(f"{target} is not empty: give a new folder.")
        with _new_file(record) as out:
            out.write(json.dumps(claim).encode())


def _check_room(target: Path, nbytes: int) -> None:
    """Raise PackError when the disk has no room for so many bytes."""
    free = shutil.disk_usage(target).free
    if free < nbytes:
        raise PackError(
            f"{target} needs {gigabytes(nbytes)} and its disk has {gigabytes(free)} free: make "
            "room, or give a folder elsewhere."
        )


def _write_layer(out: BinaryIO, file: _NewFile, model: Module, meter: _Meter) -> None:
    """Write the records of a layer, tensor by tensor, and drop the layer's weights."""
    checksums = [0] * file.num_experts
    out.truncate(file.file_bytes)
    start = len(file.head)
    for tensor in file.tensors:
        stack = adapter.take_parameter(model, f"{file.prefix}.{tensor.name}")
        mx.eval(stack)
        for expert in range(file.num_experts):
            piece = _bytes_of(stack[expert])
            out.seek(start + expert * record_bytes(file.tensors))
            out.write(piece)
            checksums[expert] = zlib.crc32(piece, checksums[expert])
            meter.add(tensor.nbytes)
        start += tensor.nbytes
    out.seek(0)
    out.write(packed_header(file.prefix, file.tensors, checksums))
    meter.add(file.nbytes - file.num_experts * _sum(file.tensors))


def _write_shard(out: BinaryIO, file: _NewFile, model: Module, meter: _Meter) -> None:
    """Write parameters as stock safetensors, and drop them."""
    out.write(file.head)
    checksum = 0
    for tensor in file.tensors:
        piece = _bytes_of(adapter.take_parameter(model, tensor.name))
        out.write(piece)
        checksum = zlib.crc32(piece, checksum)
        meter.add(tensor.nbytes)
    out.seek(0)
    out.write(shard_header(file.tensors, checksum))


def _bytes_of(array: mx.array) -> memoryview:
    """Return the bytes of an array in row order; evaluates it."""
    flat = mx.contiguous(array).reshape(-1)
    if flat.size == 0:
        return memoryview(b"")
    return memoryview(flat.view(mx.uint8))  # type: ignore[arg-type]


def _copy_others(source: Path, target: Path) -> None:
    """Copy what is no weight and no config: the tokenizer, templates, licences."""
    with _translated(target):
        for file in sorted(source.iterdir()):
            wanted = file.suffix in _COPIED or file.name.startswith("LICENSE")
            if wanted and file.is_file() and file.name not in _NOT_COPIED:
                with _new_file(target / file.name) as out, file.open("rb") as original:
                    shutil.copyfileobj(original, out)


@contextmanager
def _new_file(path: Path) -> Iterator[BinaryIO]:
    """Yield a file that gets its name when the block ends, and its bytes on the disk before."""
    partial = path.with_name(path.name + _PARTIAL)
    with _translated(path):
        try:
            with partial.open("wb") as out:
                yield out
                out.flush()
                os.fsync(out.fileno())
            partial.replace(path)
        except BaseException:  # whoever makes room for a new attempt should not need it twice
            partial.unlink(missing_ok=True)
            raise


@contextmanager
def _translated(path: Path) -> Iterator[None]:
    """Raise PackError where the disk refuses."""
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        advice = "make room and run it again: files that are complete are kept" if full else ""
        raise PackError(
            f"cannot write {path}: {error.strerror or error}{'; ' if full else ''}{advice}."
        ) from error
