"""What is read of the disk and the process: its temperature, and the bytes written."""

import os
import sys
from pathlib import Path

import pytest

from mlx_flash.telemetry.disk_temperature import disk_temperature_c
from mlx_flash.telemetry.machine import written_bytes

PCI, VIRTUAL = "devices/pci0000:00/0000:01:00.0", "devices/virtual/block"
NVME = f"{PCI}/nvme/nvme0"


def link(sysfs: Path, name: str, target: str) -> None:
    (sysfs / name).parent.mkdir(parents=True, exist_ok=True)
    (sysfs / target).mkdir(parents=True, exist_ok=True)
    (sysfs / name).symlink_to(os.path.relpath(sysfs / target, (sysfs / name).parent))


def write(sysfs: Path, name: str, text: str) -> None:
    (sysfs / name).parent.mkdir(parents=True, exist_ok=True)
    (sysfs / name).write_text(text + "\n")


def holds(sysfs: Path, file: Path, device: str) -> None:
    """Make `device` the one that holds the file."""
    number = file.stat().st_dev
    link(sysfs, f"dev/block/{os.major(number)}:{os.minor(number)}", device)


@pytest.fixture
def sysfs(tmp_path: Path) -> Path:
    return tmp_path / "sys"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    path.write_text("weights")
    return path


def add_nvme(sysfs: Path, sensor: str, text: str = "41850") -> None:
    link(sysfs, f"{NVME}/nvme0n1/device", NVME)
    link(sysfs, f"{NVME}/device", PCI)
    write(sysfs, f"{NVME}/nvme0n1/nvme0n1p2/partition", "2")
    (sysfs / NVME / "nvme0n1/slaves").mkdir()
    write(sysfs, f"{sensor}/temp1_input", text)


@pytest.mark.parametrize("sensor", [f"{NVME}/hwmon3", f"{PCI}/hwmon/hwmon3"])
@pytest.mark.parametrize("device", ["nvme0n1", "nvme0n1/nvme0n1p2"])
def test_an_nvme_disk_tells_its_temperature(
    sysfs: Path, file: Path, device: str, sensor: str
) -> None:
    add_nvme(sysfs, sensor)
    holds(sysfs, file, f"{NVME}/{device}")
    assert disk_temperature_c(file, sysfs) == 41.85


def test_an_nvme_disk_with_several_paths_tells_its_temperature(sysfs: Path, file: Path) -> None:
    subsystem = "devices/virtual/nvme-subsystem/nvme-subsys0"
    write(sysfs, f"{NVME}/hwmon1/temp1_input", "39850")
    link(sysfs, f"{subsystem}/nvme0", NVME)
    link(sysfs, f"{subsystem}/nvme0n1/device", subsystem)
    holds(sysfs, file, f"{subsystem}/nvme0n1")
    assert disk_temperature_c(file, sysfs) == 39.85


def test_a_sata_disk_tells_its_temperature(sysfs: Path, file: Path) -> None:
    write(sysfs, "devices/scsi/0:0:0:0/hwmon/hwmon0/temp1_input", "33000")
    link(sysfs, "devices/scsi/0:0:0:0/block/sda/device", "devices/scsi/0:0:0:0")
    holds(sysfs, file, "devices/scsi/0:0:0:0/block/sda")
    assert disk_temperature_c(file, sysfs) == 33.0


def test_the_warmest_disk_below_mapped_devices_counts(sysfs: Path, file: Path) -> None:
    add_nvme(sysfs, f"{NVME}/hwmon3")
    write(sysfs, "devices/scsi/1/hwmon/hwmon9/temp1_input", "52000")
    link(sysfs, "devices/scsi/1/block/sda/device", "devices/scsi/1")
    write(sysfs, "devices/scsi/1/block/sda/sda1/partition", "1")
    link(sysfs, f"{VIRTUAL}/md0/slaves/nvme0n1p2", f"{NVME}/nvme0n1/nvme0n1p2")
    link(sysfs, f"{VIRTUAL}/md0/slaves/sda1", "devices/scsi/1/block/sda/sda1")
    link(sysfs, f"{VIRTUAL}/dm-1/slaves/md0", f"{VIRTUAL}/md0")
    link(sysfs, f"{VIRTUAL}/md0/slaves/dm-1", f"{VIRTUAL}/dm-1")  # a circle must end
    holds(sysfs, file, f"{VIRTUAL}/dm-1")
    assert disk_temperature_c(file, sysfs) == 52.0


@pytest.mark.parametrize("text", ["", "warm", "-273150", "999999", "9" * 4000, "nan", "\u00b2"])
def test_a_sensor_that_tells_garbage_tells_nothing(sysfs: Path, file: Path, text: str) -> None:
    add_nvme(sysfs, f"{NVME}/hwmon3", text)
    holds(sysfs, file, f"{NVME}/nvme0n1")
    assert disk_temperature_c(file, sysfs) is None
    write(sysfs, f"{NVME}/hwmon4/temp1_input", "-3000")
    assert disk_temperature_c(file, sysfs) == -3.0


def test_where_nothing_tells_there_is_no_temperature(sysfs: Path, file: Path) -> None:
    assert disk_temperature_c(file, sysfs) is None
    assert disk_temperature_c(file.with_name("gone"), sysfs) is None
    assert disk_temperature_c(Path("nul\0byte"), sysfs) is None
    holds(sysfs, file, f"{VIRTUAL}/vda")
    assert disk_temperature_c(file, sysfs) is None


def test_this_machine_tells_a_temperature_or_none(file: Path) -> None:
    found = disk_temperature_c(file)
    assert found is None or -40 <= found <= 150


def test_the_bytes_written_are_those_sent_to_the_disk(tmp_path: Path) -> None:
    io = tmp_path / "io"
    assert written_bytes(io) is None
    io.write_text("wchar: 9\nread_bytes: 8\nwrite_bytes: 4096\ncancelled_write_bytes: 7\n")
    assert written_bytes(io) == 4096
    for garbage in ("write_bytes: many", "write_bytes", "cancelled_write_bytes: 7", ""):
        io.write_text(garbage)
        assert written_bytes(io) is None


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is a part of Linux")
def test_the_bytes_written_by_this_process_grow_when_it_writes(tmp_path: Path) -> None:
    before = written_bytes()
    if before is None or os.major(tmp_path.stat().st_dev) == 0:
        pytest.skip("this kernel does not count them, or this is no file system on a disk")
    with (tmp_path / "file").open("wb") as opened:
        opened.write(bytes(1 << 20))
        opened.flush()
        os.fsync(opened.fileno())
    after = written_bytes()
    assert after is not None
    assert after - before >= 1 << 20
