"""One layer's stream: which experts a call asks for, their admission, their bytes, the result."""

import time
from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx
import numpy as np
import numpy.typing as npt

from ..store.reader import Read
from ..types import ExpertKey
from .expert_stream import ExpertStream

Switch = Callable[[mx.array, mx.array], mx.array]

_EAGER_BYTES = 1024 * 1024  # results above this are computed at once, so that none is held back
_MAX_UNSETTLED = 4
_SORTED_FROM = 64  # pairs from which mlx-lm's switches sort; GPU kernels change below it


class LayerStream:
    """Makes the experts of one layer resident and runs its switch on their slots.

    Exact for every capacity: a call that asks for more experts than there are slots is split
    into waves. Owned by the thread that runs the model.
    """

    def __init__(self, stream: ExpertStream, layer: int) -> None:
        self.stream = stream
        self._layout = stream.layouts[layer]
        self._pool = stream.pools[layer]
        self._unsettled: list[mx.array] = []

    def __deepcopy__(self, memo: dict[int, Any]) -> "LayerStream":
        """Return itself: a copied model shares its slots, and with them their bookkeeping."""
        return self

    def run(self, switch: Switch, x: mx.array, indices: mx.array) -> mx.array:
        """Return `switch(x[..., D], slots of indices[..., K])`: `[..., K, D]`, unweighted.

        `switch` computes on the slots of this layer. Evaluates `indices`.

        Raises:
            ExpertReadError: an expert could not be read; it is not resident, the others are.
        """
        experts = np.asarray(indices)
        waves = self.stream.cache.waves(self._layout.layer, np.unique(experts).tolist())
        self.stream.counters.waves += len(waves)
        if len(waves) == 1:
            self._make_resident(waves[0])
            return self._keep(switch(x, mx.array(self._slots_of(experts, waves[0]))))
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
            self._make_resident(wave)
            inside = np.flatnonzero(np.isin(pairs, wave))
            rows = _at_least(inside, min(pairs.size, _SORTED_FROM))
            y = switch(
                tokens[mx.array(rows // top_k)],
                mx.array(self._slots_of(pairs[rows], wave)[:, None]),
            )
            mx.eval(y)  # before the next wave overwrites the slots
            results.append(y[: inside.size].squeeze(-2))
            positions.append(inside)
        order = np.argsort(np.concatenate(positions))
        y = mx.concatenate(results)[mx.array(order)]
        return y.reshape(*experts.shape, y.shape[-1])

    def _slots_of(self, experts: npt.NDArray[Any], wave: Sequence[int]) -> npt.NDArray[np.uint32]:
        """Return the slot of each expert, all of them residents of the wave."""
        residents = self.stream.cache.residents(self._layout.layer)
        table = np.zeros(self._layout.num_experts, np.uint32)
        for expert in wave:
            table[expert] = residents[expert]
        slots: npt.NDArray[np.uint32] = table[experts]
        return slots

    def _make_resident(self, experts: Sequence[int]) -> None:
        """Read those of `experts` that are not resident into their slots."""
        layer = self._layout.layer
        with self.stream.cache.admit(layer, experts) as admission:
            if admission.misses:
                self._settle()
                start = time.perf_counter()
                reads = [
                    Read(ExpertKey(layer, expert), span.path, span.offset, into)
                    for expert, slot in admission.misses.items()
                    for tensor in self._layout.tensors
                    for span, into in [(tensor.span(expert), self._pool.view(tensor.name, slot))]
                ]
                self.stream.counters.bytes_read += self.stream.reader.submit(reads).wait()
                self.stream.counters.stall_s += time.perf_counter() - start
        self.stream.counters.asks += len(experts)
        self.stream.counters.hits += len(admission.hits)

    def _keep(self, y: mx.array) -> mx.array:
        """Note that `y`, not computed yet, reads this layer's slots; compute it now if large."""
        if y.nbytes > _EAGER_BYTES:
            mx.eval(y)
            return y
        if len(self._unsettled) >= _MAX_UNSETTLED:
            self._settle()
        self._unsettled.append(y)
        return y

    def _settle(self) -> None:
        """Finish every computation that still reads this layer's slots."""
        mx.eval(self._unsettled)
        self._unsettled.clear()


def _at_least(pairs: npt.NDArray[Any], num_pairs: int) -> npt.NDArray[Any]:
    """Return `pairs`, on a GPU repeated up to `num_pairs`.

    A small wave must take the kernel that its whole call takes: kernels differ in the order they
    sum in, and are chosen by the number of pairs. The CPU has one, and nothing to repeat for.
    """
    if mx.default_device() == mx.Device(mx.cpu) or pairs.size >= num_pairs:
        return pairs
    return np.resize(pairs, num_pairs)
