"""Whether the process should give memory back: what is free, and what macOS says about it."""

import ctypes
import sys
from collections.abc import Callable
from dataclasses import dataclass

from .machine import memory_room_bytes

_WARN, _CRITICAL = 2, 4


@dataclass(frozen=True)
class MemoryPressure:
    """One reading of the memory that a process shares with others.

    `free_bytes` it may still take; below zero where a cgroup is over its limit. `must_give_back`
    says that the system asks for memory, whatever is free: only macOS does.
    """

    free_bytes: int
    must_give_back: bool


def macos_pressure_level() -> int:
    """Return the kernel's memory pressure: 1 normal, 2 warning, 4 critical; 0 where none is told.

    Only macOS tells.
    """
    if sys.platform != "darwin":
        return 0
    sysctl = ctypes.CDLL(None).sysctlbyname
    sysctl.argtypes = [ctypes.c_char_p, *[ctypes.c_void_p] * 3, ctypes.c_size_t]
    level = ctypes.c_int(0)
    size = ctypes.c_size_t(ctypes.sizeof(level))
    name = b"kern.memorystatus_vm_pressure_level"
    failed = sysctl(name, ctypes.byref(level), ctypes.byref(size), None, 0)
    return 0 if failed else level.value


def memory_pressure(level: Callable[[], int] = macos_pressure_level) -> MemoryPressure:
    """Return the pressure now. Reads a few small files; for about once a second."""
    return MemoryPressure(memory_room_bytes(), level() in (_WARN, _CRITICAL))
