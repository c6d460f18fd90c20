"""All that a token's experts do, in one go: gate and up, the activation, down."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..activations import Activation
from .matrix import Matrix, rows_of
from .phases import Gating, Preparation, activation
from .pool import Phase, Pool, Program, start_of

_ALONE_BYTES = 256 * 1024  # a product of less weight is over before another thread is awake


@dataclass(frozen=True, eq=False)
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
        product = matrix.product(groups, inputs, self._output)
        self._program = Program([self._preparation, product], keep=(ready, inputs, groups))
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


class OneToken:
    """What some of its experts do for one token, for decoding: the tables are made once."""

    def __init__(self, experts: ExpertMatrices, num_pairs: int) -> None:
        pairs = np.arange(num_pairs)
        self._groups = np.stack([pairs, pairs, np.ones_like(pairs)], axis=1)
        self._outputs = np.zeros(num_pairs, np.int64)
        source = np.zeros((1, experts.first.width), np.float32)
        rows = np.zeros(num_pairs, np.int64)
        self._program = _program(experts, source, rows, self._groups, self._outputs)
        self._preparation = self._program.phases[0].task

    def run(
        self,
        pool: Pool,
        x: npt.NDArray[np.float32],
        pairs: npt.NDArray[np.int64],
        slots: npt.NDArray[np.uint32],
        y: npt.NDArray[np.float32],
    ) -> None:
        """Write what the experts in `slots[i]` make of `x[1, D]` to the rows `pairs[i]` of `y`."""
        with pool.turn:
            self._groups[:, 0] = slots
            self._preparation[Preparation.SOURCE] = start_of(x)
            self._outputs[:] = rows_of(y, pairs)
            pool.run(self._program)


def run_experts(
    pool: Pool,
    experts: ExpertMatrices,
    x: npt.NDArray[np.float32],
    pairs: npt.NDArray[np.int64],
    slots: npt.NDArray[np.uint32],
    y: npt.NDArray[np.float32],
) -> None:
    """Write what the expert in `slots[i]` makes of its token to row `pairs[i]` of `y`.

    `y` has a row for each pair of one of the tokens `x[n, D]` and one of its K experts.
    """
    top_k = len(y) // len(x)
    order, groups = by_slot(slots)
    ordered = pairs[order]
    tokens, rows = np.unique(ordered // top_k, return_inverse=True)
    wanted = x if len(tokens) == len(x) else x[tokens]
    pool.run(_program(experts, wanted, rows, groups, rows_of(y, ordered)))


def _program(
    experts: ExpertMatrices,
    x: npt.NDArray[np.float32],
    rows: npt.NDArray[np.int64],
    groups: npt.NDArray[np.int64],
    outputs: npt.NDArray[np.int64],
) -> Program:
    """Return the program for pairs of a row of `x` and an expert, experts in `groups`.

    `rows[i]` is the row of pair i, and `outputs[i]` the address of its result. The first phase
    prepares `x`, which the caller keeps.
    """
    first, up, down = experts.first, experts.up, experts.down
    pairs = np.arange(rows.size)
    ready, ready_hidden = first.prepared(len(x)), down.prepared(rows.size)
    hidden = np.empty((2 if up else 1, rows.size, first.num_rows), np.float32)
    inputs, hidden_inputs = rows_of(ready, rows), rows_of(ready_hidden, pairs)
    gates, ups = rows_of(hidden[0], pairs), rows_of(hidden[-1], pairs)
    phases = [first.preparation(x, ready), first.product(groups, inputs, gates)]
    if up is not None:
        phases.append(up.product(groups, inputs, ups))
    phases += [
        _gating(experts.activation, hidden),
        down.preparation(hidden[0], ready_hidden),
        down.product(groups, hidden_inputs, outputs),
    ]
    keep = (ready, hidden, ready_hidden, inputs, gates, ups, hidden_inputs, groups, outputs)
    return Program(phases, keep)


def _gating(kind: Activation, hidden: npt.NDArray[np.float32]) -> Phase:
    task = np.zeros(len(Gating) + 1, np.int64)
    task[Gating.FIRST] = start_of(hidden)
    task[Gating.SECOND] = task[Gating.FIRST] + (len(hidden) - 1) * hidden.strides[0]
    task[Gating.STRIDE] = hidden.strides[1]
    task[Gating.WIDTH] = hidden.shape[2]
    task[-1:].view(np.float32)[:] = kind.alpha, kind.limit  # behind the fields: they live as long
    task[Gating.PARAMETERS] = start_of(task) + 8 * len(Gating)
    return Phase(activation(kind.name), task, hidden.shape[1])
