"""How warm the disk is that holds a file, as Linux tells it for NVMe and for SATA (drivetemp)."""

import os
from pathlib import Path

_SYSFS = Path("/sys")
_SENSORS = (
    "device/hwmon*/temp1_input",  # NVMe, below its controller
    "device/hwmon/hwmon*/temp1_input",  # SATA with the module drivetemp
    "device/device/hwmon/hwmon*/temp1_input",  # NVMe in older kernels, below its PCI device
    "device/nvme*/hwmon*/temp1_input",  # NVMe with several paths to one disk
)
_SANE_C = (-40.0, 150.0)  # a drive that does not know its temperature says 0 Kelvin


def disk_temperature_c(path: Path, sysfs: Path = _SYSFS) -> float | None:
    """Return the degrees Celsius of the disk that holds a file, the warmest where there are more.

    Follows partitions, and device mapper and md devices to the disks below. None where nothing
    tells: outside Linux, in most virtual machines, on network file systems and on those that hide
    their disks (btrfs, ZFS, overlay). Never raises.
    """
    try:
        device = os.stat(path).st_dev
        node = sysfs / f"dev/block/{os.major(device)}:{os.minor(device)}"
        found = [_sensor_c(disk) for disk in _disks(node)]
    except (OSError, ValueError):  # no such file, or sysfs changes while it is being walked
        return None
    return max((celsius for celsius in found if celsius is not None), default=None)


def _disks(node: Path) -> set[Path]:
    """Return the disks that a block device lies on, itself when it is one."""
    disks: set[Path] = set()
    pending = [node]
    seen: set[Path] = set()
    while pending:
        device = Path(os.path.realpath(pending.pop()))
        if device in seen:
            continue
        seen.add(device)
        if (device / "partition").exists():
            pending.append(device.parent)
        elif below := list(device.glob("slaves/*")):
            pending += below
        else:
            disks.add(device)
    return disks


def _sensor_c(disk: Path) -> float | None:
    """Return the degrees that the first working sensor of a disk tells."""
    for pattern in _SENSORS:
        for sensor in sorted(disk.glob(pattern)):
            try:
                celsius = int(sensor.read_text()) / 1000
            except (OSError, ValueError, OverflowError):
                continue
            if _SANE_C[0] <= celsius <= _SANE_C[1]:
                return celsius
    return None
