"""What stands behind a streamed model: its cache, slots, open files, reader threads, counters."""

import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

import mlx.core as mx

from ..cache.expert_cache import ExpertCache
from ..cache.policies import POLICIES
from ..config import CacheOptions, ReadOptions
from ..formats.layout import ExpertLayout, sweep_bytes, sweep_slots
from ..store.files import CheckpointFiles
from ..store.reader import ExpertReader, Read, ReadBatch
from ..telemetry.counters import StreamCounters
from ..telemetry.disk_temperature import disk_temperature_c
from ..types import ExpertKey
from .prefetch import Prefetcher
from .recorder import Recorder
from .restore import Restorer
from .slots import SlotPool, new_slab

if TYPE_CHECKING:
    from .layer_stream import LayerStream


class ExpertStream:
    """What stands behind a streamed model: its cache, slots, files and counters.

    `pools` are the slots of each layer. `sweeps` are what all layers share: a few slots for the
    experts that a call computes and that do not become resident.

    Threads and files are released by `close()`, or when the model is no longer used. Then each of
    `at_close` is called, in whatever thread that happens: it must not wait for another one, nor
    hold the stream.
    """

    def __init__(
        self,
        layouts: Sequence[ExpertLayout],
        capacities: Sequence[int],
        cache_options: CacheOptions,
        read_options: ReadOptions,
    ) -> None:
        """Open the files and allocate the slots.

        Raises:
            FormatError: a file cannot be opened.
            UnsupportedModelError: an expert is stored in a type that MLX has not.
        """
        self.layouts = tuple(layouts)
        self.lock = threading.Lock()
        self.overlap_bytes = read_options.overlap_bytes
        self._verify = read_options.verify
        self.counters = StreamCounters()
        self.cache = ExpertCache(
            [layout.num_experts for layout in layouts], capacities, POLICIES[cache_options.policy]
        )
        self.pools = [
            SlotPool(layout, capacity)
            for layout, capacity in zip(layouts, self.cache.capacities, strict=True)
        ]
        self.sweeps = _sweeps(self.layouts)
        stamps = {path: stamp for layout in layouts for path, stamp in layout.files.items()}
        files = CheckpointFiles(stamps, direct=bool(read_options.direct))
        disk_c = partial(disk_temperature_c, next(iter(stamps)))
        # CUDA moves managed memory between card and host, also under a disk that writes into it
        straight = not mx.cuda.is_available() or mx.default_device() == mx.Device(mx.cpu)
        self.reader = ExpertReader(files, read_options, disk_c=disk_c, straight=straight)
        self.prefetcher = Prefetcher(
            self.counters, read_options.predictor, [layout.num_experts for layout in layouts]
        )
        self.restorer = Restorer()
        self.recorder: Recorder | None = None
        self.layer_streams: weakref.WeakValueDictionary[int, LayerStream] = (
            weakref.WeakValueDictionary()
        )  # they hold this stream
        self.at_close: list[Callable[[], None]] = []
        self.close = weakref.finalize(self, _release, self.reader, files, self.at_close)

    def start_reading(
        self,
        layer: int,
        experts: Mapping[int, int],
        into: SlotPool,
        register: Callable[[ReadBatch], object] = lambda batch: None,
    ) -> ReadBatch:
        """Start reading `experts` (expert -> slot) of a layer into the slots of `into`.

        `register` is handed what is returned before anything is read.
        """
        reads = reads_of(self.layouts[layer], experts, into, self._verify)
        return self.reader.start(reads, register)

    @property
    def capacity(self) -> int:
        """The slots of the layer that has most."""
        return max(self.cache.capacities, default=0)

    def resize(self, capacity: int) -> bool:
        """Change the slots of every layer, one after the other; the model may be running.

        A layer into which experts are being read back is left as it is; returns whether there was
        none: otherwise ask again. Whoever calls from a thread of its own needs a stream of MLX of
        its own.
        """
        resized = [
            layer.resize(capacity)
            for number, layer in list(self.layer_streams.items())
            if self.cache.capacities[number] != min(capacity, self.layouts[number].num_experts)
        ]
        if any(resized):
            self.counters.resized += 1
            mx.clear_cache()
        return all(resized)

    @property
    def slot_bytes(self) -> int:
        """Memory that the slots of all layers take, the shared ones included."""
        return sum(pool.num_bytes for pool in self.pools) + sweep_bytes(self.layouts)

    @property
    def expert_bytes(self) -> int:
        """Bytes of all experts of all layers on disk."""
        return sum(layout.num_experts * layout.expert_bytes for layout in self.layouts)


def reads_of(
    layout: ExpertLayout, experts: Mapping[int, int], into: SlotPool, verify: bool = False
) -> list[Read]:
    """Return the reads that fill the slots of `experts` (expert -> slot)."""
    reads = []
    for expert, slot in experts.items():
        key = ExpertKey(layout.layer, expert)
        checksum = layout.checksums[expert] if verify and layout.checksums else None
        for piece in layout.pieces:
            views = tuple(into.view(name, slot) for name in piece.tensors)
            offset = piece.offset + expert * piece.stride
            reads.append(Read(key, piece.path, offset, views, checksum))
    return reads


def _sweeps(layouts: Sequence[ExpertLayout]) -> list[SlotPool]:
    """Return each layer's sweep buffer: all of them lie in the same memory."""
    slab = new_slab(sweep_bytes(layouts), huge_pages=True)
    return [SlotPool(layout, sweep_slots(layout), slab) for layout in layouts]


def _release(
    reader: ExpertReader, files: CheckpointFiles, at_close: Sequence[Callable[[], None]]
) -> None:
    reader.close()
    files.close()
    for call in at_close:
        call()
