"""What a worker says of the model it has loaded."""

from pathlib import Path

from mlx_flash.engine.find import bundled_model
from mlx_flash.engine.pack import pack
from mlx_flash.server.options import WorkerOptions
from mlx_flash.server.worker.loading import load_served


def size_of(folder: Path) -> tuple[int, int]:
    options = WorkerOptions(model=str(folder), capacity=6, max_context=64)
    served = load_served(options, lambda what: None)
    try:
        return served.card.num_parameters, served.card.size_bytes
    finally:
        served.close()


def test_a_packed_model_is_as_large_as_before(tmp_path: Path) -> None:
    plain = bundled_model()
    pack(plain, tmp_path, None, lambda done, total: None)
    stored = sum(path.stat().st_size for path in plain.glob("*.safetensors"))
    num_parameters, size_bytes = size_of(plain)
    assert size_of(tmp_path) == (num_parameters, size_bytes)
    assert 0.99 * stored < size_bytes <= stored
    assert num_parameters > 1.5 * size_bytes  # most have 4 bits
