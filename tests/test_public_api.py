"""The public names: what `import mlx_flash` promises."""

import subprocess
import sys
from pathlib import Path

import mlx.core as mx
import pytest
from comparing import random_tokens, resident
from mlx_lm.utils import load_model

import mlx_flash
from mlx_flash.errors import OptionError, UnsupportedModelError


def test_all_names_exist_and_have_docstrings() -> None:
    for name in mlx_flash.__all__:
        assert getattr(mlx_flash, name) is not None
        assert name.startswith("__") or getattr(mlx_flash, name).__doc__
    assert dir(mlx_flash) == sorted(mlx_flash.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = mlx_flash.nonsense


def test_importing_the_package_imports_no_mlx() -> None:
    check = "import sys, mlx_flash, mlx_flash.cli.main; sys.exit('mlx.core' in sys.modules)"
    subprocess.run([sys.executable, "-c", check], check=True)


def test_stream_experts_changes_a_lazily_loaded_model(checkpoint: Path) -> None:
    model, _ = load_model(checkpoint, lazy=True)
    stream = mlx_flash.stream_experts(model, checkpoint, capacity=3)
    model.set_dtype(mx.float32)
    prompt = random_tokens(12, 128)
    assert mx.array_equal(model(prompt), resident(checkpoint)(prompt)).item()
    assert mlx_flash.find_stream(model) is stream
    assert stream.cache.capacities == [3] * len(stream.layouts)
    assert stream.counters.asks > 0


def test_a_stream_outlives_the_name_it_was_given(checkpoint: Path) -> None:
    model, _ = load_model(checkpoint, lazy=True)
    mlx_flash.stream_experts(model, checkpoint, capacity=1)
    mx.eval(model(random_tokens(12, 128)))


def test_stream_experts_refuses_what_it_cannot_do(checkpoint: Path) -> None:
    model, _ = load_model(checkpoint, lazy=True)
    with pytest.raises(OptionError):
        mlx_flash.stream_experts(model, checkpoint, capacity=0)
    with pytest.raises(OptionError, match="no policy 'magic'"):
        mlx_flash.stream_experts(model, checkpoint, capacity=1, policy="magic")
    mlx_flash.stream_experts(model, checkpoint, capacity=1)
    with pytest.raises(UnsupportedModelError, match="no experts"):
        mlx_flash.stream_experts(model, checkpoint, capacity=1)


def test_a_failed_install_leaves_the_model_whole(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object) -> None:
        raise MemoryError

    model, _ = load_model(checkpoint, lazy=True)
    monkeypatch.setattr("mlx_flash.streaming.expert_stream.SlotPool", fail)
    with pytest.raises(MemoryError):
        mlx_flash.stream_experts(model, checkpoint, capacity=1)
    assert mlx_flash.find_stream(model) is None
    model.set_dtype(mx.float32)
    prompt = random_tokens(12, 128)
    assert mx.array_equal(model(prompt), resident(checkpoint)(prompt)).item()
