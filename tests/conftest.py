"""Fixtures that many tests share: where to compute, and small checkpoints."""

import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path

# MLX's CUDA back end takes cuDNN's attention for a cache of 256 tokens or more only when the buffer
# that its allocator happened to reuse has just the cache's size. The two kernels differ in the last
# bit, so that not even a resident model repeats itself.
os.environ.setdefault("MLX_CUDA_USE_CUDNN_SDPA", "0")

import mlx.core as mx
import pytest
from families import FAMILIES, Family, write_checkpoint

BY_NAME = {family.name: family for family in FAMILIES}


def has_gpu() -> bool:
    return mx.metal.is_available() or mx.cuda.is_available()


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    skip = pytest.mark.skip(reason="MLX finds no GPU on this machine")
    for item in items:
        if item.get_closest_marker("gpu") and not has_gpu():
            item.add_marker(skip)
        if isinstance(item, pytest.Function) and (group := costly_to_share(item)):
            item.add_marker(pytest.mark.xdist_group(group))


def costly_to_share(item: pytest.Function) -> str:
    """Name what a test has in common with others and takes long to make: they run together."""
    params = item.callspec.params if hasattr(item, "callspec") else {}
    if "family" in params:
        return str(params["family"].name)
    if "reference" in params:
        return str(params["reference"])
    return (
        "checkpoint" if item.get_closest_marker("gpu") and "checkpoint" in item.fixturenames else ""
    )


@pytest.fixture(autouse=True)
def _own_cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep the command line, also in other processes, out of the user's cache folder."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("MLX_FLASH_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(params=["cpu", "kernels", pytest.param("gpu", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> Iterator[str]:
    """Run the test on each of MLX's devices that the machine has, and on our CPU kernels."""
    before = mx.default_device()
    mx.set_default_device(mx.Device(mx.gpu if request.param == "gpu" else mx.cpu))
    yield request.param
    mx.set_default_device(before)


@pytest.fixture(scope="session")
def qwen() -> Family:
    """The family of the bundled model: 8 experts, 2 of them per token.

    Every matrix is 256 wide, more than any quantization group, as in real models: MLX has other
    kernels for a width of one group.
    """
    family = BY_NAME["qwen3_moe"]
    widths = dict.fromkeys(("hidden_size", "intermediate_size", "moe_intermediate_size"), 256)
    config = family.config | widths | {"num_experts_per_tok": 2, "head_dim": 64}
    return dataclasses.replace(family, config=config)


@pytest.fixture(scope="session")
def checkpoint(qwen: Family, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A 4-bit checkpoint with bf16 scales in two shards. Do not change it: copy it."""
    folder = tmp_path_factory.mktemp("qwen3_moe")
    quantization = {"group_size": 32, "bits": 4}
    return write_checkpoint(qwen, folder, quantization=quantization, dtype="bfloat16", shards=2)
