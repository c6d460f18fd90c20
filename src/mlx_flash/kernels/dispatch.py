"""Chooses the kernels of a model, once, when it is loaded."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import OptionError

if TYPE_CHECKING:
    from .cpu.kernels import CpuKernels


_NOT_CACHED = (
    "the CPU kernels are compiled anew in every process: there is no folder to keep them in; "
    "set NUMBA_CACHE_DIR to one that can be written."
)


@dataclass(frozen=True)
class KernelChoice:
    """The kernels that a model runs with: `cpu` are ours, None are MLX's operations.

    `why` is a sentence where that is not what the machine could do best, else empty.
    """

    cpu: "CpuKernels | None" = None
    why: str = ""

    @property
    def name(self) -> str:
        """`cpu` or `reference`."""
        return "reference" if self.cpu is None else "cpu"


def choose_kernels(wanted: str | None, on_cpu: bool, num_threads: int) -> KernelChoice:
    """Return the kernels that are `wanted`; None are the best for the device.

    Raises:
        OptionError: `cpu` is wanted where it cannot run.
    """
    if wanted == "reference" or (wanted is None and not on_cpu):
        return KernelChoice()
    missing = _missing_numba() if on_cpu else "MLX computes on a GPU"
    if missing and wanted is not None:
        raise OptionError(f"the CPU kernels cannot run: {missing}.")
    if missing:
        return KernelChoice(why=f"running with MLX's slow CPU operations: {missing}.")
    from .cpu.jit import can_cache
    from .cpu.kernels import CpuKernels

    why = "" if can_cache() else _NOT_CACHED
    return KernelChoice(CpuKernels(num_threads), why)


def _missing_numba() -> str:
    """Return why numba cannot be used, empty when it can."""
    try:
        import numba  # noqa: F401
    except ImportError as error:
        if error.name == "numba":
            return "numba is not installed (pip install numba)"
        return f"numba is installed and cannot be imported: {error}"
    return ""
