"""How functions are compiled: by numba, for this processor, kept on disk for later processes."""

from collections.abc import Callable
from functools import cache
from typing import Any

from numba import cfunc, njit, types

_STEP = types.void(types.int64, types.int64)
_kept: list[Any] = []  # compiled steps live as long as the process: addresses are handed out


def _probe() -> None:
    """Do nothing."""


@cache
def can_cache() -> bool:
    """Return whether compiled code can be kept on disk: numba finds a folder it may write to."""
    try:
        njit(cache=True)(_probe)
    except RuntimeError:
        return False
    return True


def compiled(function: Callable[..., None]) -> Callable[..., None]:
    """Return a function compiled at its first call; it does not hold the interpreter's lock."""
    fast: Callable[..., None] = njit(nogil=True, cache=can_cache())(function)
    return fast


def inlined(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function whose code becomes part of the step that calls it.

    It has no code of its own on disk: numba's cache keeps it with the step, and looks only at the
    step's file, so both belong in one file.
    """
    fast: Callable[..., Any] = njit(inline="always")(function)
    return fast


def step_address(step: Callable[..., None], variant: str = "") -> int:
    """Compile a `void(int64, int64)` now, or load it; return its address for other code to call.

    `variant` says what it was made for, where one function makes several. numba keeps the code of
    functions of one name in numbered files, and two processes that compile at once can take the
    same number for different ones: each variant gets a name, and so files, of its own.
    """
    step.__qualname__ = f"{step.__qualname__}.{variant}"
    fast = cfunc(_STEP, cache=can_cache(), error_model="numpy")(step)
    _kept.append(fast)
    return int(fast.address)
