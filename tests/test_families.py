"""Every mlx-lm family with experts streams exactly, opened from its own MLX format."""

from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from comparing import (
    ONLY_EXPERTS,
    differing_steps,
    differing_switches,
    random_tokens,
    resident,
    streamed,
)
from families import FAMILIES, METAL_FAMILIES, UNSUPPORTED, Family, write_checkpoint

from mlx_flash.streaming import adapter
from mlx_flash.streaming.switch import StreamedSwitch


def skip_what_mlx_cannot_compute(model: Any, device: str) -> None:
    """Skip, with MLX's own words, when plain mlx-lm cannot run the model on this GPU.

    Its CUDA back end has no kernel for some small quantized matrices (of attention, not experts).
    """
    try:
        mx.eval(model(random_tokens(40, 100)))
    except RuntimeError as error:
        if device != "gpu" or "No implementation for" not in str(error):
            raise
        pytest.skip(f"plain mlx-lm fails too: {error}")


@pytest.mark.parametrize(("bits", "capacity"), [(4, 1), (None, 5)])
@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_family_streams_exactly(
    family: Family, bits: int | None, capacity: int, device: str, tmp_path: Path
) -> None:
    quantization = None if bits is None else {"group_size": 32, "bits": bits}
    write_checkpoint(family, tmp_path, quantization=quantization)
    ours, theirs = streamed(tmp_path, capacity, device=device), resident(tmp_path, device)
    skip_what_mlx_cannot_compute(theirs, device)
    twins = [m for _, m in ours.model.named_modules() if isinstance(m, StreamedSwitch)]
    assert len(twins) == len(ours.layouts) == family.moe_layers
    assert adapter.find_switches(ours.model) == []
    prompt = random_tokens(40, 100)
    if device == "gpu" and differing_steps(theirs, theirs, prompt, num_decode=0):
        assert differing_switches(ours.model, theirs) == []
        pytest.skip(ONLY_EXPERTS)
    assert differing_steps(ours.model, theirs, prompt, num_decode=3) == []


@pytest.mark.parametrize("family", METAL_FAMILIES, ids=lambda family: family.name)
@pytest.mark.skipif(not mx.metal.is_available(), reason=UNSUPPORTED["muse_spark"])
def test_metal_family_streams_exactly(family: Family, tmp_path: Path) -> None:
    write_checkpoint(family, tmp_path)
    ours, theirs = streamed(tmp_path, 2), resident(tmp_path)
    assert differing_steps(ours.model, theirs, random_tokens(40, 100), num_decode=3) == []
