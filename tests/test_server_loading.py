"""What a worker says of the model it has loaded."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from mlx_flash.engine.find import bundled_model
from mlx_flash.engine.pack import pack
from mlx_flash.server.options import WorkerOptions
from mlx_flash.server.worker.loading import Served, load_served

Load = Callable[[WorkerOptions], Served]


@pytest.fixture
def load() -> Iterator[Load]:
    with ExitStack() as stack:

        def loaded(options: WorkerOptions) -> Served:
            served = load_served(options, lambda what: None)
            stack.callback(served.close)
            return served

        yield loaded


def test_a_packed_model_is_as_large_as_before(tmp_path: Path, load: Load) -> None:
    pack(bundled_model(), tmp_path, None, lambda done, total: None)
    stored = sum(path.stat().st_size for path in bundled_model().glob("*.safetensors"))
    plain = load(WorkerOptions(capacity=6, max_context=64)).card
    packed = load(WorkerOptions(model=str(tmp_path), capacity=6, max_context=64)).card
    assert packed.num_parameters == plain.num_parameters
    assert packed.size_bytes == plain.size_bytes
    assert 0.99 * stored < plain.size_bytes <= stored
    assert plain.num_parameters > 1.5 * stored  # most have 4 bits


def test_answers_run_one_by_one_where_a_batch_would_change_them(load: Load) -> None:
    options = WorkerOptions(capacity=6, max_context=64, kernels="reference")
    served = load(options)
    assert served.limits.max_batch == served.card.max_batch == 1
    assert served.card.lossy == []
    assert any("--fast-batch computes several together" in remark for remark in served.remarks)
    fast = load(replace(options, fast_batch=True))
    assert fast.limits.max_batch == fast.card.max_batch == 16
    assert fast.card.lossy == [
        "answers beside others are computed in one batch, which changes last bits"
    ]
    assert any(remark.startswith("not exact: answers beside") for remark in fast.remarks)
