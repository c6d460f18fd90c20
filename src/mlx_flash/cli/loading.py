"""What commands do while they load a model, with a spinner where a person watches."""

from typing import TYPE_CHECKING

from rich.status import Status

from ..folders import profile_folder

if TYPE_CHECKING:
    from ..engine.load import LoadedModel
    from ..engine.profiles import Ranking


def show_compiling(status: Status | None, number: int, of: int) -> None:
    """Say which kernel is being compiled, on a terminal."""
    if status is not None:
        status.update(f"preparing CPU kernels, {number} of {of} (compiled once per machine)")


def ranking_of_profile(loaded: "LoadedModel", name: str) -> "Ranking":
    """Return the experts that a profile ranks for this model.

    Raises:
        OptionError, TraceError: there is none of that name, or it is damaged.
    """
    from ..engine.find import model_name
    from ..engine.profiles import find_profile

    counts = [layout.num_experts for layout in loaded.layouts]
    return find_profile(name, model_name(loaded.checkpoint.folder), counts, profile_folder())


def read_profile(loaded: "LoadedModel", name: str, status: Status | None) -> None:
    """Read the experts of a profile, unless the model has them all in memory."""
    from ..engine.profiles import load_experts

    ranking = ranking_of_profile(loaded, name)
    if loaded.stream is not None:
        if status is not None:
            status.update(f"reading the experts of {name}")
        load_experts(loaded.stream, ranking)
