"""What people should know of a model that was loaded: options that do less than they say."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from ..config import CacheOptions, ReadOptions

if TYPE_CHECKING:
    from ..engine.load import LoadedModel


def remarks(
    loaded: "LoadedModel", cache_options: CacheOptions, read_options: ReadOptions
) -> Iterator[str]:
    """Yield a line for each option that the model or the machine cannot follow."""
    if loaded.kernels.why:
        yield loaded.kernels.why
    if read_options.verify and not loaded.checkpoint.packed:
        yield "There are no checksums to compare: the model is not packed (mlx-flash pack)."
    num_experts = max((layout.num_experts for layout in loaded.layouts), default=0)
    if 0 < num_experts < (cache_options.capacity or 0):
        yield f"The model has {num_experts} experts per layer: there are no more slots than that."
    stream = loaded.stream
    if (
        stream is not None
        and read_options.max_temperature_c
        and stream.reader.heat_pause.unreadable
    ):
        yield "This machine gives no temperature of the disk that holds the model."
    if loaded.plan.why_resident:
        yield f"Running resident, nothing is streamed: {loaded.plan.why_resident}."
