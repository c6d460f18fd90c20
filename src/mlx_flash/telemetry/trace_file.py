"""Trace files: routing on disk, written a block at a time.

A trace is a file of blocks behind one line of JSON that says what was traced. A block is a line of
JSON and compressed bytes; all of it has checksums. A trace can be appended to, and when a process
dies or the disk is full all blocks but the one being written remain.
"""

import contextlib
import json
import math
import os
import zlib
from collections.abc import Callable, Iterable, Iterator
from io import FileIO
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from ..errors import TraceError
from ..folders import check_writable
from .trace import Routing, Trace, joined

_MAGIC = "mlx-flash-trace"
_BEGINNING = b'{"format":"mlx-flash-trace"'
_VERSION = 1
_MAX_LINE_BYTES = 1024 * 1024
_MAX_BLOCK_BYTES = 256 * 1024 * 1024
_MAX_TRACE_BYTES = 2 * 1024**3  # of a file as arrays: 1.4 million tokens of 48 layers, top-8
_MAX_LAYERS, _MAX_EXPERTS, _MAX_TOP_K, _MAX_NAME = 4096, 65536, 256, 1024
_MAX_TABLE = 2**20  # layers times experts: of what large models have, some 50 times
_MAX_EXPERT_BYTES = 2**40
_MAX_STEP = 10**7  # tokens of a forward pass


class TraceWriter:
    """Appends forward passes to a trace file, a block at a time. Close it to write what is left."""

    BLOCK_TOKENS = 1024

    def __init__(self, path: Path, routing: Routing) -> None:
        """Make the file, or go on behind the blocks that are in it.

        Raises:
            TraceError: the file is no trace or one of another model, or cannot be written.
        """
        self._path, self._routing = path, routing
        self._pending: list[tuple[str, npt.NDArray[Any], npt.NDArray[Any]]] = []
        try:
            self._file: FileIO = _open_to_append(path)
            with contextlib.ExitStack() as failed:
                failed.callback(self._file.close)
                if self._file.seek(0, os.SEEK_END) == 0:
                    self._append(_header_of(routing))
                else:
                    self._check_header()
                failed.pop_all()
        except OSError as error:
            raise TraceError(f"cannot write {path}: {error.strerror or error}.") from error

    def add(
        self, domain: str, experts: npt.NDArray[Any], weights: npt.NDArray[Any] | None = None
    ) -> None:
        """Add one forward pass: `experts[T, L, K]` and, where known, `weights[T, L, K]`."""
        if weights is None:
            weights = np.full(experts.shape, np.nan)
        self._pending.append(
            (domain, experts.astype(np.uint16), np.asarray(weights).astype(np.float16))
        )
        waiting = sum(len(added) for _, added, _ in self._pending)
        if waiting >= self.BLOCK_TOKENS or self._pending[0][0] != domain:
            self.flush()

    def flush(self) -> None:
        """Write what was added.

        Raises:
            TraceError: the disk refuses. What was written before stays sound.
        """
        try:
            while self._pending:
                domain = self._pending[0][0]
                passes = [entry for entry in self._pending if entry[0] == domain]
                others = [entry for entry in self._pending if entry[0] != domain]
                self._append(_block_of(domain, passes))
                self._pending = others
        except OSError as error:
            raise TraceError(f"cannot write {self._path}: {error.strerror or error}.") from error

    def close(self) -> None:
        """Write what is left and close the file.

        Raises:
            TraceError: the disk refuses. What was written before stays sound.
        """
        try:
            with contextlib.closing(self._file):
                self.flush()
        except OSError as error:
            raise TraceError(f"cannot write {self._path}: {error.strerror or error}.") from error

    def _append(self, content: bytes) -> None:
        """Write behind what is there: all of it, or nothing."""
        end, left = self._file.tell(), memoryview(content)
        try:
            while left:
                left = left[self._file.write(left) :]
        except BaseException:
            with contextlib.suppress(OSError):
                self._file.truncate(end)
                self._file.seek(end)
            raise

    def _check_header(self) -> None:
        """Look whose trace it is; cut off a block that was not finished."""
        with self._path.open("rb") as file:
            routing = _read_header_to_append(file, self._path, self._routing.model)
            if not routing.same_shape(self._routing):
                raise _of_another(self._path, routing, self._routing.model)
            end = file.tell()
            for _ in _read_blocks(file, routing, self._path):
                end = file.tell()
        self._file.truncate(end)
        self._file.seek(end)


def check_can_append(path: Path, model: str) -> None:
    """Return when a trace of a model can be written to a file, or goes on there. Changes nothing.

    Raises:
        TraceError, OptionError: the file is no trace or one of another model, or cannot be written.
    """
    check_writable(path)
    if path.exists() and path.stat().st_size:
        with path.open("rb") as file:
            _read_header_to_append(file, path, model)


def read_trace(
    path: str | Path, on_cut: Callable[[int | None], None] = lambda tokens: None
) -> Trace:
    """Return the trace in a file; a last block that was not finished is left out.

    `on_cut` is called when there is one, with its number of tokens, None where that is cut off too.
    All of it is read into memory, up to 2 GiB.

    Raises:
        TraceError: no such file, no trace, an empty one, one that is damaged, or more than that.
    """
    path = Path(path)
    blocks: list[Trace] = []
    cut: list[int | None] = []
    num_bytes = 0
    try:
        with path.open("rb") as file:
            routing = _read_header(file, path)
            for block in _read_blocks(file, routing, path, cut.append):
                num_bytes += block.experts.nbytes + block.weights.nbytes
                if num_bytes > _MAX_TRACE_BYTES:
                    raise TraceError(
                        f"{path} holds more routing than the {_MAX_TRACE_BYTES // 1024**2} MiB "
                        "that are read into memory: record fewer tokens into one file."
                    )
                blocks.append(block)
    except OSError as error:
        raise TraceError(
            f"cannot read {path}: {error.strerror or error}: record it with mlx-flash trace."
        ) from error
    if cut and not blocks:
        raise TraceError(f"{path} was cut off within its first tokens: record it again.")
    if cut:
        on_cut(cut[0])
    if not blocks:
        raise TraceError(f"{path} holds no tokens: record some with mlx-flash trace.")
    return joined(blocks)


def _open_to_append(path: Path) -> FileIO:
    """Open a file to write without a buffer, made when it is not there, its content left alone."""
    return FileIO(os.open(path, os.O_RDWR | os.O_CREAT, 0o644), "r+")


def _read_header_to_append(file: BinaryIO, path: Path, model: str) -> Routing:
    """Return what a file is a trace of, which must be of a model of that name."""
    try:
        routing = _read_header(file, path)
    except TraceError as error:
        raise TraceError(
            f"{path} is there and is no routing trace to go on with: give another output file."
        ) from error
    if routing.model != model:
        raise _of_another(path, routing, model)
    return routing


def _of_another(path: Path, routing: Routing, model: str) -> TraceError:
    return TraceError(
        f"{path} is a trace of {routing.model}: give another file for a trace of {model}."
    )


def _header_of(routing: Routing) -> bytes:
    """Return the first line of a trace."""
    return _line_of(
        {
            "format": _MAGIC,
            "version": _VERSION,
            "model": routing.model,
            "num_experts": list(routing.num_experts),
            "expert_bytes": list(routing.expert_bytes),
            "top_k": routing.top_k,
        }
    )


def _line_of(header: dict[str, Any]) -> bytes:
    """Return a line of JSON with a checksum of the rest of it."""
    return _json_of(header | {"line_crc32": zlib.crc32(_json_of(header))}) + b"\n"


def _json_of(header: dict[str, Any]) -> bytes:
    return json.dumps(header, separators=(",", ":")).encode()


def _block_of(
    domain: str, passes: Iterable[tuple[str, npt.NDArray[Any], npt.NDArray[Any]]]
) -> bytes:
    """Return forward passes of one domain as a block."""
    passes = list(passes)
    experts = np.concatenate([experts for _, experts, _ in passes])
    weights = np.concatenate([weights for _, _, weights in passes])
    raw = experts.astype("<u2").tobytes() + weights.astype("<f2").tobytes()
    packed = zlib.compress(raw, 3)
    header = {
        "domain": domain,
        "steps": [len(experts) for _, experts, _ in passes],
        "bytes": len(packed),
        "crc32": zlib.crc32(packed),
    }
    return _line_of(header) + packed


def _read_header(file: BinaryIO, path: Path) -> Routing:
    """Return what a file is a trace of.

    Raises:
        TraceError: it is no trace, or of a version that is not known.
    """
    line = file.readline(_MAX_LINE_BYTES)
    header = _parsed(line)
    if line.startswith(_BEGINNING) and not line.endswith(b"\n"):
        raise TraceError(f"{path} was cut off within its first line: record it again.")
    if header.get("format") != _MAGIC:
        raise TraceError(f"{path} is no routing trace: record one with mlx-flash trace.")
    if header.get("version") != _VERSION:
        raise TraceError(f"{path} is a trace of another version of mlx-flash: record it again.")
    model, top_k = header.get("model"), header.get("top_k")
    experts = _counts(header.get("num_experts"), _MAX_EXPERTS)
    sizes = _counts(header.get("expert_bytes"), _MAX_EXPERT_BYTES)
    sound = _is_whole(header) and experts and len(sizes) == len(experts)
    sound = sound and len(experts) * max(experts) <= _MAX_TABLE
    sound = sound and _is_count(top_k, min(_MAX_TOP_K, *experts))
    if not sound or not isinstance(model, str) or len(model) > _MAX_NAME:
        raise TraceError(f"{path} is damaged: its first line makes no sense: record it again.")
    return Routing(model, experts, sizes, int(header["top_k"]))


def _read_blocks(
    file: BinaryIO,
    routing: Routing,
    path: Path,
    on_cut: Callable[[int | None], None] = lambda tokens: None,
) -> Iterator[Trace]:
    """Yield the blocks of a trace; one that the end of the file cuts off is left out.

    `on_cut` is called for it, with its tokens where its line is there.

    Raises:
        TraceError: a block is damaged.
    """
    size = os.fstat(file.fileno()).st_size
    while file.tell() < size:
        line = file.readline(_MAX_LINE_BYTES)
        if file.tell() >= size and not line.endswith(b"\n") and line.isascii():
            return on_cut(None)  # within the line
        header, block = _parsed(line), None
        if _is_whole(header) and _is_count(header.get("bytes"), _MAX_BLOCK_BYTES):
            if file.tell() + header["bytes"] > size:
                return on_cut(_num_tokens(header))
            block = _read_block(file, header, routing)
        if block is None:
            raise TraceError(f"{path} is damaged: record it again.")
        yield block


def _read_block(file: BinaryIO, header: dict[str, Any], routing: Routing) -> Trace | None:
    """Return a block, or None where it is not what its header says."""
    packed = file.read(header["bytes"])
    domain, num_tokens = header.get("domain"), _num_tokens(header)
    if zlib.crc32(packed) != header.get("crc32") or not isinstance(domain, str):
        return None
    if num_tokens is None:
        return None
    shape = (num_tokens, len(routing.num_experts), routing.top_k)
    size = 2 * math.prod(shape)
    if not 0 < 2 * size <= _MAX_BLOCK_BYTES:
        return None
    expander = zlib.decompressobj()
    try:
        raw = expander.decompress(packed, 2 * size)
    except zlib.error:
        return None
    if len(raw) != 2 * size or expander.unconsumed_tail:
        return None
    experts = np.frombuffer(raw, "<u2", math.prod(shape)).reshape(shape)
    weights = np.frombuffer(raw, "<f2", math.prod(shape), size).reshape(shape)
    if (experts >= np.array(routing.num_experts)[:, None]).any():
        return None
    return Trace(
        routing, experts, weights, np.array(header["steps"], np.int64), ((domain, shape[0]),)
    )


def _parsed(line: bytes) -> dict[str, Any]:
    """Return what a line of JSON says, nothing where it is none."""
    try:
        header = json.loads(line) if line.endswith(b"\n") else None
    except (ValueError, RecursionError):
        return {}
    return header if isinstance(header, dict) else {}


def _is_whole(header: dict[str, Any]) -> bool:
    """Return whether a line says what was written."""
    said = {name: value for name, value in header.items() if name != "line_crc32"}
    try:
        return header.get("line_crc32") == zlib.crc32(_json_of(said))
    except RecursionError:
        return False


def _num_tokens(header: dict[str, Any]) -> int | None:
    """Return the tokens of the block behind a line, None where it does not say."""
    steps = header.get("steps")
    if not isinstance(steps, list) or not all(_is_count(step, _MAX_STEP) for step in steps):
        return None
    return sum(steps)


def _counts(values: Any, largest: int) -> tuple[int, ...]:
    """Return a list of counts as a tuple, empty where it is none."""
    if not isinstance(values, list) or not 0 < len(values) <= _MAX_LAYERS:
        return ()
    return tuple(values) if all(_is_count(value, largest) for value in values) else ()


def _is_count(value: Any, largest: int) -> bool:
    return type(value) is int and 0 < value <= largest
