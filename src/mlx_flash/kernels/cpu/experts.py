"""All that a token's experts do, in one go: gate and up, the activation, down."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..activations import Activation
from .matrix import Matrix, rows_of
from .phases import Gating, Preparation, activation
from .pool import Phase, Pool, Program, start_of

_ALONE_BYTES = 256 * 1024  # a product of less weight is over before another thread is awake


@dataclass(frozen=True)
class ExpertMatrices:
    """The stacks of a layer's experts. `up` is None where an expert has no gate: `first` is fc1."""

    first: Matrix
    up: Matrix | None
    down: Matrix
    activation: Activation


def by_slot(
    slots: npt.NDArray[np.uint32],
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return an order that puts equal slots together, and its groups (slot, first, number)."""
    order = np.argsort(slots, kind="stable")
    ordered = slots[order]
    starts = np.flatnonzero(ordered[1:] != ordered[:-1]) + 1
    groups = np.empty((len(starts) + 1, 3), np.int64)
    groups[0, 1], groups[1:, 1] = 0, starts
    groups[:-1, 2] = starts
    groups[-1, 2] = len(slots)
    groups[:, 2] -= groups[:, 1]
    groups[:, 0] = ordered[groups[:, 1]]
    return order, groups


class OneInput:
    """The product of one input row with a matrix, for decoding: its tables are made once.

    Valid as long as the matrix, which it does not keep.
    """

    def __init__(self, matrix: Matrix) -> None:
        self._num_rows = matrix.num_rows
        ready = matrix.prepared(1)
        self._output = np.zeros(1, np.int64)
        inputs, groups = rows_of(ready, np.arange(1)), np.array([[0, 0, 1]], np.int64)
        source = np.zeros((1, matrix.width), np.float32)
        self._preparation = matrix.preparation(source, ready)
        self._program = Program([self._preparation, matrix.product(groups, inputs, self._output)])
        self._tables = ready, inputs, groups  # kept: addresses of them are in the tasks
        self._alone = matrix.num_rows * matrix.row_bytes < _ALONE_BYTES

    def run(self, pool: Pool, x: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Return `x[1, K]` times the matrix, transposed, plus its bias: `[1, N]`."""
        y = np.empty((1, self._num_rows), np.float32)
        with pool.turn:
            self._preparation.task[Preparation.SOURCE] = start_of(x)
            self._output[0] = start_of(y)
            pool.run(self._program, alone=self._alone)
        return y


def run_linear(pool: Pool, matrix: Matrix, x: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return `x[n, K]` times the matrix, transposed, plus its bias: `[n, N]`."""
    groups = np.array([[0, 0, len(x)]], np.int64)
    everything = np.arange(len(x))
    return _run_groups(pool, matrix, x, everything, everything, groups)


def run_gathered(
    pool: Pool,
    matrix: Matrix,
    x: npt.NDArray[np.float32],
    rows: npt.NDArray[np.int64],
    slots: npt.NDArray[np.uint32],
) -> npt.NDArray[np.float32]:
    """Return, for each i, row `rows[i]` of `x[n, K]` times the matrix in slot `slots[i]`."""
    order, groups = by_slot(slots)
    return _run_groups(pool, matrix, x, rows[order], order, groups)


def _run_groups(
    pool: Pool,
    matrix: Matrix,
    x: npt.NDArray[np.float32],
    rows: npt.NDArray[np.int64],
    order: npt.NDArray[np.int64],
    groups: npt.NDArray[np.int64],
) -> npt.NDArray[np.float32]:
    ready = matrix.prepared(len(x))
    y = np.empty((len(rows), matrix.num_rows), np.float32)
    inputs, outputs = rows_of(ready, rows), rows_of(y, order)
    phases = [matrix.preparation(x, ready), matrix.product(groups, inputs, outputs)]
    small = len(rows) * matrix.num_rows * matrix.row_bytes < _ALONE_BYTES
    pool.run(Program(phases), alone=small)
    return y


def run_experts(
    pool: Pool,
    experts: ExpertMatrices,
    x: npt.NDArray[np.float32],
    slots: npt.NDArray[np.uint32],
) -> npt.NDArray[np.float32]:
    """Return what the experts in `slots[n, K]` make of `x[n, D]`: `[n, K, D]`, unweighted."""
    first, up, down = experts.first, experts.up, experts.down
    num_tokens, top_k = slots.shape
    order, groups = by_slot(slots.reshape(-1))
    pairs = np.arange(order.size)
    ready = first.prepared(num_tokens)
    inputs = rows_of(ready, order // top_k)
    hidden = np.empty((2 if up else 1, order.size, first.num_rows), np.float32)
    gates = rows_of(hidden[0], pairs)
    phases = [first.preparation(x, ready), first.product(groups, inputs, gates)]
    if up is not None:
        ups = rows_of(hidden[1], pairs)
        phases.append(up.product(groups, inputs, ups))
    ready_hidden = down.prepared(order.size)
    hidden_inputs = rows_of(ready_hidden, pairs)
    y = np.empty((order.size, down.num_rows), np.float32)
    outputs = rows_of(y, order)
    phases += [
        _gating(experts.activation, hidden),
        down.preparation(hidden[0], ready_hidden),
        down.product(groups, hidden_inputs, outputs),
    ]
    pool.run(Program(phases))
    return y.reshape(num_tokens, top_k, down.num_rows)


def _gating(kind: Activation, hidden: npt.NDArray[np.float32]) -> Phase:
    task = np.zeros(len(Gating) + 1, np.int64)
    task[Gating.FIRST] = start_of(hidden)
    task[Gating.SECOND] = task[Gating.FIRST] + (len(hidden) - 1) * hidden.strides[0]
    task[Gating.STRIDE] = hidden.strides[1]
    task[Gating.WIDTH] = hidden.shape[2]
    task[-1:].view(np.float32)[:] = kind.alpha, kind.limit  # behind the fields: they live as long
    task[Gating.PARAMETERS] = start_of(task) + 8 * len(Gating)
    return Phase(activation(kind.name), task, hidden.shape[1])
