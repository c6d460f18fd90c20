"""Direct reads: whole blocks of a file, past the page cache, wherever the bytes are wanted."""

import itertools
import mmap
import threading
from collections.abc import Callable, Sequence

import numpy as np

from ..formats.layout import DIRECT_ALIGNMENT

Preadv = Callable[[int, Sequence[memoryview], int], int]
"""What reads: a descriptor, views to fill one after the other, and where in the file; `preadv`."""

_BLOCK_BYTES = 4 * 1024 * 1024  # of direct reads whose place or size is not aligned, per thread


class DirectReads:
    """Fills views from files that must be read in whole blocks of DIRECT_ALIGNMENT."""

    def __init__(self, straight: bool) -> None:
        """Let the disk write `straight` into views, where it can, or never."""
        self._straight = straight
        self._of_thread = threading.local()

    def fill(
        self, preadv: Preadv, descriptor: int, offset: int, views: Sequence[memoryview]
    ) -> int:
        """Read whole blocks, where it may straight into the views: file and memory are in step.

        The blocks that a view shares with others, and all of a view out of step, go through memory
        of this thread. Returns the bytes read.
        """
        end = offset + sum(view.nbytes for view in views)
        block = memoryview(self._block())
        parts, shared = _parts(offset, views, block) if self._straight else ([], [])
        if parts and preadv(descriptor, parts, _floor(offset)) >= end - _floor(offset):
            for start, part in shared:
                _scatter(start, part, offset, views)
            return end - offset
        done = 0
        while offset + done < end:
            start = _floor(offset + done)
            wanted = min(_ceil(end) - start, _BLOCK_BYTES)
            stop = min(start + preadv(descriptor, [block[:wanted]], start), end)
            if stop <= offset + done:
                break
            _scatter(start, block[: stop - start], offset, views)
            done = stop - offset
        return done

    def _block(self) -> mmap.mmap:
        if not hasattr(self._of_thread, "block"):
            self._of_thread.block = mmap.mmap(-1, _BLOCK_BYTES)  # anonymous memory is aligned
        block: mmap.mmap = self._of_thread.block
        return block


def _floor(offset: int) -> int:
    return offset // DIRECT_ALIGNMENT * DIRECT_ALIGNMENT


def _ceil(offset: int) -> int:
    return -(-offset // DIRECT_ALIGNMENT) * DIRECT_ALIGNMENT


def _parts(
    offset: int, views: Sequence[memoryview], block: memoryview
) -> tuple[list[memoryview], list[tuple[int, memoryview]]]:
    """Return what one direct read from `offset` fills, and the pieces of `block` among it.

    Each piece comes with the place in the file that it is read from. There are no parts where a
    view is out of step with the file, or `block` is too small.
    """
    parts: list[memoryview] = []
    shared: list[tuple[int, memoryview]] = []
    position, used = _floor(offset), 0

    def share(stop: int) -> None:
        """Fill a piece of `block` up to `stop` in the file."""
        nonlocal used
        if stop > position:
            piece = block[used : used + stop - position]
            parts.append(piece)
            shared.append((position, piece))
            used += stop - position

    bounds = itertools.accumulate((view.nbytes for view in views), initial=offset)
    for start, view in zip(bounds, views, strict=False):
        inner = _inner(start, view)
        if inner and not _in_step(start, view):
            return [], []
        if inner:
            share(_ceil(start))
            parts.append(inner)
            position = _ceil(start) + inner.nbytes
    share(_ceil(offset + sum(view.nbytes for view in views)))
    return (parts, shared) if used <= block.nbytes else ([], [])


def _inner(start: int, view: memoryview) -> memoryview:
    """Return the part of a view, which lies at `start` in the file, that is whole blocks there."""
    first = _ceil(start) - start
    return view[first : max(first, _floor(start + view.nbytes) - start)]


def _in_step(offset: int, view: memoryview) -> bool:
    """Return whether a place in a file and one in memory are at the same point of a block."""
    address = np.frombuffer(view, np.uint8).ctypes.data
    return (offset - address) % DIRECT_ALIGNMENT == 0


def _scatter(start: int, source: memoryview, offset: int, views: Sequence[memoryview]) -> None:
    """Copy `source`, which lies at `start` in the file, to where it belongs in the views."""
    for view in views:
        first, last = max(start, offset), min(start + source.nbytes, offset + view.nbytes)
        if first < last:
            target = np.frombuffer(view, np.uint8)
            target[first - offset : last - offset] = np.frombuffer(source, np.uint8)[
                first - start : last - start
            ]
        offset += view.nbytes
