"""Recording routing: what a thread is asked stays in that thread."""

import threading
from collections.abc import Iterator
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from comparing import streamed

from mlx_flash.streaming.recorder import router_weights


@pytest.fixture(autouse=True)
def _on_the_cpu() -> Iterator[None]:
    before = mx.default_device()
    mx.set_default_device(mx.Device(mx.cpu))
    yield
    mx.set_default_device(before)


def test_weights_asked_for_in_one_thread_change_no_result_in_another(checkpoint: Path) -> None:
    ours = streamed(checkpoint, 2)
    block, x = ours.model.layers[2].mlp, mx.ones((1, 1, 256))
    mx.eval(x)
    expected = block.switch_mlp(x, mx.array([[[3, 4]]])).tolist()
    asking, answered = threading.Event(), threading.Event()

    def block_that_waits(x: mx.array) -> mx.array:
        asking.set()
        answered.wait(60)
        y: mx.array = block(x)
        return y

    def ask() -> None:
        with mx.stream(mx.new_stream(mx.cpu)):
            router_weights(block_that_waits, block.switch_mlp, x, np.array([[3, 4]]))

    thread = threading.Thread(target=ask)
    thread.start()
    asking.wait(60)
    try:
        assert block.switch_mlp(x, mx.array([[[3, 4]]])).tolist() == expected
    finally:
        answered.set()
        thread.join()
