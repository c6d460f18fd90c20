"""One layer's stream: which experts a call asks for, their admission, their bytes, the result."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from ..errors import UnsupportedModelError
from ..store.reader import Read
from ..types import ExpertKey
from .expert_stream import ExpertStream

Switch = Callable[[mx.array, mx.array], mx.array]

HELD_RESULT_BYTES = 64 * 1024
"""Each layer holds on to its last result up to this size, until its slots are written again."""

_SORTED_FROM = 64  # pairs from which mlx-lm's switches sort; GPU kernels change below it


class LayerStream:
    """Makes the experts of one layer resident and runs its switch on their slots.

    Exact for every capacity: a call that asks for more experts than there are slots is split
    into waves. Threads take turns.
    """

    def __init__(self, stream: ExpertStream, layer: int) -> None:
        self.stream = stream
        self._layout = stream.layouts[layer]
        self._pool = stream.pools[layer]
        self._running: mx.array | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> "LayerStream":
        """Return itself: a copied model shares its slots, and with them their bookkeeping."""
        return self

    def run(self, switch: Switch, x: mx.array, indices: mx.array) -> mx.array:
        """Return `switch(x[..., D], slots of indices[..., K])`: `[..., K, D]`, unweighted.

        `switch` computes on the slots of this layer. Evaluates `indices`.

        Raises:
            ExpertReadError: an expert could not be read; it is not resident, the others are.
            UnsupportedModelError: inside a gradient.
        """
        experts = np.asarray(indices)
        if experts.size == 0:
            return mx.zeros((*indices.shape, x.shape[-1]), x.dtype)
        with self.stream.lock:
            return self._run(switch, x, experts)

    def _run(self, switch: Switch, x: mx.array, experts: npt.NDArray[Any]) -> mx.array:
        waves = self.stream.cache.waves(self._layout.layer, np.unique(experts).tolist())
        self.stream.counters.waves += len(waves)
        if len(waves) == 1:
            slots = self._make_resident(waves[0])
            return self._hold(switch(x, mx.array(self._lookup(slots, experts))))
        return self._run_waves(switch, x, experts, waves)

    def _run_waves(
        self,
        switch: Switch,
        x: mx.array,
        experts: npt.NDArray[Any],
        waves: Sequence[Sequence[int]],
    ) -> mx.array:
        """Run the switch wave by wave over the (token, k) pairs whose expert is in the wave."""
        num_tokens, top_k = experts.size // experts.shape[-1], experts.shape[-1]
        tokens = x.reshape(num_tokens, x.shape[-1])
        pairs = experts.reshape(-1)
        results, positions = [], []
        for wave in waves:
            slots = self._make_resident(wave)
            inside = np.flatnonzero(np.isin(pairs, wave))
            rows = _at_least(inside, min(pairs.size, _SORTED_FROM))
            y = switch(
                tokens[mx.array(rows // top_k)],
                mx.array(self._lookup(slots, pairs[rows])[:, None]),
            )
            _start(y)
            mx.eval(y)  # before the next wave overwrites the slots
            results.append(y[: inside.size].squeeze(-2))
            positions.append(inside)
        order = np.argsort(np.concatenate(positions))
        y = mx.concatenate(results)[mx.array(order)]
        return y.reshape(*experts.shape, y.shape[-1])

    def _lookup(
        self, slots: Mapping[int, int], experts: npt.NDArray[Any]
    ) -> npt.NDArray[np.uint32]:
        """Return the slot of each of `experts`, all of them keys of `slots`."""
        table = np.zeros(self._layout.num_experts, np.uint32)
        table[list(slots)] = list(slots.values())
        found: npt.NDArray[np.uint32] = table[experts]
        return found

    def _make_resident(self, experts: Sequence[int]) -> dict[int, int]:
        """Read those of `experts` that are not resident; return the slot of each."""
        layer = self._layout.layer
        with self.stream.cache.admit(layer, experts) as admission:
            if admission.misses:
                self._finish()
                start = time.perf_counter()
                reads = [
                    Read(ExpertKey(layer, expert), span.path, span.offset, into)
                    for expert, slot in admission.misses.items()
                    for tensor in self._layout.tensors
                    for span, into in [(tensor.span(expert), self._pool.view(tensor.name, slot))]
                ]
                self.stream.counters.bytes_read += self.stream.reader.read(reads)
                self.stream.counters.stall_s += time.perf_counter() - start
        self.stream.counters.asks += len(experts)
        self.stream.counters.hits += len(admission.hits)
        return admission.hits | admission.misses

    def _hold(self, y: mx.array) -> mx.array:
        """Start computing `y`, which reads this layer's slots; wait for it only if it is large."""
        self._finish()
        _start(y)
        if y.nbytes > HELD_RESULT_BYTES:
            mx.eval(y)
        else:
            self._running = y
        return y

    def _finish(self) -> None:
        """Wait for the computation that may still read this layer's slots."""
        if self._running is not None:
            mx.eval(self._running)
            self._running = None


def _start(y: mx.array) -> None:
    """Start computing `y`.

    Raises:
        UnsupportedModelError: inside a gradient, whose backward pass would find other experts
            in the slots.
    """
    try:
        mx.async_eval(y)
    except ValueError as error:
        raise UnsupportedModelError(
            "a streamed model cannot be trained: load it with memory for all its experts."
        ) from error


def _at_least(pairs: npt.NDArray[Any], num_pairs: int) -> npt.NDArray[Any]:
    """Return `pairs`, on a GPU repeated up to `num_pairs`.

    A small wave must take the kernel that its whole call takes: kernels differ in the order they
    sum in, and are chosen by the number of pairs. The CPU has one, and nothing to repeat for.
    """
    if mx.default_device() == mx.Device(mx.cpu) or pairs.size >= num_pairs:
        return pairs
    return np.resize(pairs, num_pairs)
