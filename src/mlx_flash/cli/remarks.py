"""What people should know of a model that was loaded: options that do less than they say."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from ..config import CacheOptions, ReadOptions

if TYPE_CHECKING:
    from ..engine.load import LoadedModel


def remarks(
    loaded: "LoadedModel",
    cache_options: CacheOptions,
    read_options: ReadOptions,
    profile: str | None = None,
    split_by: Path | None = None,
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
    if stream is not None and split_by is not None:
        slots = stream.cache.capacities
        yield (
            f"Slots are split among layers by {split_by}: {min(slots)} to {max(slots)} each."
            if loaded.is_split
            else f"By {split_by} no split of the slots hits more: each layer has {max(slots)}."
        )
    if loaded.plan.why_resident:
        given = {"--profile": profile, "--split-by": split_by}
        useless = " and ".join(name for name, value in given.items() if value is not None)
        unused = f", and {useless} not used" if useless else ""
        yield f"Running resident, nothing is streamed{unused}: {loaded.plan.why_resident}."
