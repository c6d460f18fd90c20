"""Readings of the machine: memory that can be spared, cores that may be used, memory in use."""

import math
import os
import resource
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil

_CGROUPS = Path("/sys/fs/cgroup")
_MEMBERSHIP = Path("/proc/self/cgroup")
_STATUS = Path("/proc/self/status")
_V1_MEMORY = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
_V2_MEMORY = ("memory.high", "memory.current", "inactive_file")


def available_memory_bytes(root: Path = _CGROUPS, membership: Path = _MEMBERSHIP) -> int:
    """Return the bytes that this process may still take: of RAM, and of every cgroup above it."""
    room = [int(psutil.virtual_memory().available)]
    room += [limit - used for limit, used in _cgroup_memory(root, membership)]
    return max(0, min(room))


def total_memory_bytes(root: Path = _CGROUPS, membership: Path = _MEMBERSHIP) -> int:
    """Return the bytes of memory this process could have at most: RAM or the tightest cgroup."""
    limits = [limit for limit, _ in _cgroup_memory(root, membership)]
    return min([int(psutil.virtual_memory().total), *limits])


def _cgroup_memory(root: Path, membership: Path) -> Iterator[tuple[int, int]]:
    """Yield (limit, unreclaimable use) in bytes of each limited memory cgroup of this process."""
    for base, folder, is_v2 in _cgroup_folders(root, membership, "memory"):
        names = _V2_MEMORY if is_v2 else _V1_MEMORY
        while True:
            reading = _read_cgroup(folder, *names)
            if reading is not None:
                yield reading
            if folder == base:
                break
            folder = folder.parent


def _cgroup_folders(
    root: Path, membership: Path, controller: str
) -> Iterator[tuple[Path, Path, bool]]:
    """Yield (top, own folder below it, whether it is of version 2) of each cgroup hierarchy."""
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return  # not Linux, or no /proc
    for line in lines:
        _, controllers, own = line.split(":", 2)
        if controllers == "":
            base = root
        elif controller in controllers.split(","):
            base = root / controller
        else:
            continue
        folder = base / own.lstrip("/")
        if not folder.is_dir():  # inside a container the path is the host's; its own is the root
            folder = base
        yield base, folder, controllers == ""


def _read_cgroup(
    folder: Path, limit_name: str, usage_name: str, reclaimable: str
) -> tuple[int, int] | None:
    """Return (limit, unreclaimable use) of one cgroup in bytes, or None when it has no limit."""
    limits = [_number(folder / name) for name in {limit_name, "memory.max"}]
    usage = _number(folder / usage_name)
    limit = min((number for number in limits if number is not None), default=None)
    if limit is None or limit >= 1 << 60 or usage is None:
        return None
    try:
        stat = (folder / "memory.stat").read_text()
    except OSError:
        stat = ""
    found = [line.split()[1] for line in stat.splitlines() if line.startswith(f"{reclaimable} ")]
    return limit, max(0, usage - (int(found[0]) if found and found[0].isdigit() else 0))


def _number(file: Path) -> int | None:
    """Return the number in a file, or None when there is none ("max", no file)."""
    try:
        text = file.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


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
                quota, period = (*parts, "", "")[:2]
            else:
                quota = _text(folder / "cpu.cfs_quota_us")
                period = _text(folder / "cpu.cfs_period_us")
            if quota.isdigit() and period.isdigit() and int(quota) > 0 and int(period) > 0:
                yield int(quota) / int(period)
            if folder == base:
                break
            folder = folder.parent


def _text(file: Path) -> str:
    """Return the text of a file without white space around it, empty when it cannot be read."""
    try:
        return file.read_text().strip()
    except OSError:
        return ""
