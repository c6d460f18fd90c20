"""The scripts in bench/: they end, clean up, and exit as what they run."""

import importlib.util
import sys
import threading
from pathlib import Path
from types import ModuleType
from typing import Any

import mlx.core as mx
import pytest
from comparing import streamed

from mlx_flash.config import MemoryLimit
from mlx_flash.engine.find import bundled_model
from mlx_flash.engine.load import load_model

SCRIPTS = Path(__file__).parent.parent / "bench"


@pytest.fixture(autouse=True)
def _on_the_cpu() -> Any:
    before = mx.default_device()
    mx.set_default_device(mx.Device(mx.cpu))
    yield
    mx.set_default_device(before)


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"bench_{name}", SCRIPTS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("first", "swap", "value"),
    [(True, "memory.memsw.limit_in_bytes", "5000"), (False, "memory.swap.max", "0")],
)
def test_a_cgroup_gets_no_swap(tmp_path: Path, first: bool, swap: str, value: str) -> None:
    (tmp_path / swap).write_text("max")
    script("cgroup").set_limits(tmp_path, 5000, first)
    assert (tmp_path / swap).read_text() == value
    limit = "memory.limit_in_bytes" if first else "memory.max"
    assert (tmp_path / limit).read_text() == "5000"


def test_a_cgroup_that_cannot_be_removed_hides_no_exit_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As while a process that the command left behind is in it: here its files are."""
    cgroup = script("cgroup")
    monkeypatch.setattr(cgroup, "V1", tmp_path / "none")
    monkeypatch.setattr(cgroup, "V2", tmp_path)
    command = ["sh", "-c", f"echo 7 > $(echo {tmp_path}/mlx-flash-*)/memory.peak; exit 3"]
    monkeypatch.setattr(sys, "argv", ["cgroup.py", "1500MB", *command])
    with pytest.raises(SystemExit) as ended:
        cgroup.main()
    assert ended.value.code == 3
    assert "cannot remove" in capsys.readouterr().err


def test_a_cgroup_without_a_command_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    for arguments in ([], ["1500MB"]):
        monkeypatch.setattr(sys, "argv", ["cgroup.py", *arguments])
        with pytest.raises(SystemExit, match="give a limit and a command"):
            script("cgroup").main()


def test_memory_pressure_ends_with_what_it_measures(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pressure, loaded = script("memory_pressure"), streamed(checkpoint, 2)

    def fail(*arguments: Any) -> None:
        raise RuntimeError("no more memory")

    monkeypatch.setattr(pressure, "load_model", lambda *arguments, **options: loaded)
    monkeypatch.setattr(pressure, "generate", fail)
    threads = set(threading.enumerate())
    with pytest.raises(RuntimeError, match="no more memory"):
        pressure.main(str(bundled_model()))
    assert set(threading.enumerate()) <= threads


def test_memory_pressure_of_a_model_that_fits_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    pressure = script("memory_pressure")

    def load_all(checkpoint: Any, limit: MemoryLimit, options: Any, **more: Any) -> Any:
        return load_model(checkpoint, MemoryLimit(everything=True), options, **more)

    monkeypatch.setattr(pressure, "load_model", load_all)
    with pytest.raises(SystemExit, match="no slots to give back"):
        pressure.main(str(bundled_model()))
