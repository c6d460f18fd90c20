"""Readings of the machine and the process: memory, cores that may be used, bytes written."""

import math
import mmap
import os
import resource
import sys
from collections.abc import Container, Iterable, Iterator
from pathlib import Path

import psutil

_CGROUPS = Path("/sys/fs/cgroup")
_MEMBERSHIP = Path("/proc/self/cgroup")
_STATUS = Path("/proc/self/status")
_IO = Path("/proc/self/io")
_V1_LIMITS, _V1_USAGE = ("memory.limit_in_bytes",), "memory.usage_in_bytes"
_V2_LIMITS, _V2_USAGE = ("memory.max", "memory.high"), "memory.current"
_V1_CACHE = ("total_inactive_file", "total_active_file")  # with the groups below, as usage is
_V2_CACHE = ("inactive_file", "active_file")
_NO_LIMIT = 1 << 60  # v1 has no word for it: it gives the largest number of pages


def available_memory_bytes(root: Path = _CGROUPS, membership: Path = _MEMBERSHIP) -> int:
    """Return the bytes that this process may still take: of RAM, and of every cgroup above it."""
    return max(0, memory_room_bytes(root, membership))


def memory_room_bytes(root: Path = _CGROUPS, membership: Path = _MEMBERSHIP) -> int:
    """Return the available memory, or minus what a cgroup is over its limit by (`memory.high`).

    Page cache of a cgroup counts as available, the active part too: the kernel takes it back
    before it refuses memory, and a model that is read through it would look like a full cgroup.
    """
    room = [limit - used for limit, used in _cgroup_memory(root, membership)]
    return min([_system_memory()[0], *room])


def total_memory_bytes(root: Path = _CGROUPS, membership: Path = _MEMBERSHIP) -> int:
    """Return the bytes of memory this process could have at most: RAM or the tightest cgroup."""
    limits = [limit for limit, _ in _cgroup_memory(root, membership)]
    return min([_system_memory()[1], *limits])


def _system_memory() -> tuple[int, int]:
    """Return (available, total) bytes of RAM."""
    try:
        memory = psutil.virtual_memory()
        return int(memory.available), int(memory.total)
    except (OSError, ValueError, LookupError):  # no /proc, or not the one that psutil knows
        pages = (os.sysconf("SC_AVPHYS_PAGES"), os.sysconf("SC_PHYS_PAGES"))
        return pages[0] * mmap.PAGESIZE, pages[1] * mmap.PAGESIZE


def _cgroup_memory(root: Path, membership: Path) -> Iterator[tuple[int, int]]:
    """Yield (limit, unreclaimable use) in bytes of each limited memory cgroup of this process."""
    for base, folder, is_v2 in _cgroup_folders(root, membership, "memory"):
        while True:
            if is_v2:
                reading = _read_cgroup(folder, _V2_LIMITS, _V2_USAGE, _V2_CACHE)
            else:
                reading = _read_cgroup(folder, _V1_LIMITS, _V1_USAGE, _V1_CACHE)
            if reading is not None:
                yield reading
            if folder == base:
                break
            folder = folder.parent


def _cgroup_folders(
    root: Path, membership: Path, controller: str
) -> Iterator[tuple[Path, Path, bool]]:
    """Yield (top, own folder below it, whether it is of version 2) of each cgroup hierarchy."""
    for line in _text(membership).splitlines():  # none where there is no /proc
        _, controllers, own = (*line.split(":", 2), "", "", "")[:3]
        if own == "":
            continue
        if controllers == "":
            base = root
        elif controller in controllers.split(","):
            base = root / controller
        else:
            continue
        folder = base / own.lstrip("/")
        # inside a container the path is the host's, or leads up: its own group is the root
        if ".." in own.split("/") or not os.path.isdir(folder):
            folder = base
        yield base, folder, controllers == ""


def _read_cgroup(
    folder: Path, limits: Iterable[str], usage: str, cache: Container[str]
) -> tuple[int, int] | None:
    """Return (limit, unreclaimable use) of one cgroup in bytes, or None when it has no limit."""
    found = [_number(_text(folder / name)) for name in limits]
    limit = min((number for number in found if number is not None), default=_NO_LIMIT)
    used = _number(_text(folder / usage))
    if limit >= _NO_LIMIT or used is None:
        return None
    stat = [line.partition(" ") for line in _text(folder / "memory.stat").splitlines()]
    reclaimable = sum(_number(value) or 0 for name, _, value in stat if name in cache)
    return limit, max(0, used - reclaimable)


def _number(text: str) -> int | None:
    """Return the number of bytes that a text is, or None when it is none ("max", nothing)."""
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 20 else None


def rss_bytes() -> int:
    """Return the resident memory of this process now."""
    return int(psutil.Process().memory_info().rss)


def peak_rss_bytes() -> int:
    """Return the largest resident memory this process ever had."""
    try:  # Linux hands ru_maxrss down from the parent process, so it is no measure of this one
        status = _STATUS.read_text()
    except OSError:
        status = ""
    for line in status.splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def written_bytes(io: Path = _IO) -> int | None:
    """Return the bytes that this process has had written to disks, or None outside Linux.

    They count when a page of a file becomes dirty, or a direct write is sent: also of a file that
    is deleted before it reaches the disk, and of child processes once they were waited for. File
    systems in memory and what the system swaps out do not count.
    """
    for line in _text(io).splitlines():
        name, _, value = line.partition(": ")
        if name == "write_bytes":
            return _number(value)
    return None


def num_cores(root: Path = _CGROUPS, membership: Path = _MEMBERSHIP) -> int:
    """Return the cores this process may keep busy: its affinity, and every cgroup's quota."""
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    quotas = [math.ceil(quota) for quota in _cgroup_cores(root, membership)]
    return max(1, min([cores, *quotas]))


def _cgroup_cores(root: Path, membership: Path) -> Iterator[float]:
    """Yield the cores that each limited CPU cgroup of this process allows, fractions included."""
    for base, folder, is_v2 in _cgroup_folders(root, membership, "cpu"):
        while True:
            if is_v2:
                parts = _text(folder / "cpu.max").split()
                quota, period = (_number(text) for text in (*parts, "", "")[:2])
            else:
                quota = _number(_text(folder / "cpu.cfs_quota_us"))
                period = _number(_text(folder / "cpu.cfs_period_us"))
            if quota and period:
                yield quota / period
            if folder == base:
                break
            folder = folder.parent


def _text(file: Path) -> str:
    """Return the text of a file without white space around it, empty when it cannot be read."""
    try:
        return file.read_text().strip()
    except (OSError, ValueError):  # also bytes that are no text, and names that are no path
        return ""
