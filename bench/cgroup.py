"""Runs a command in a memory cgroup of its own and reports the most memory it took.

It gets no swap, where the system lets a cgroup say so: memory is all there is.

python bench/cgroup.py 1500MB mlx-flash generate ...    (needs the right to make a cgroup)
"""

import os
import subprocess
import sys
from pathlib import Path

from mlx_flash.config import MemoryLimit
from mlx_flash.planner.memory import gigabytes

V1, V2 = Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")


def main() -> None:
    """Run the command that the arguments hold; exit as it does."""
    if len(sys.argv) < 3:
        sys.exit("give a limit and a command: cgroup.py 1500MB mlx-flash generate ...")
    limit, command = MemoryLimit.parse(sys.argv[1]).num_bytes, sys.argv[2:]
    if limit is None:
        sys.exit("give the limit in bytes, such as 1500MB")
    first = V1.is_dir()
    group = (V1 if first else V2) / f"mlx-flash-{os.getpid()}"
    group.mkdir()
    try:
        set_limits(group, limit, first)

        def join() -> None:
            (group / "cgroup.procs").write_text(str(os.getpid()))

        result = subprocess.run(command, preexec_fn=join, check=False)
        peak_file = "memory.max_usage_in_bytes" if first else "memory.peak"
        peak = int((group / peak_file).read_text())
        sys.stderr.write(
            f"exit code {result.returncode}; the group took {gigabytes(peak)} at most, its page "
            f"cache included, of {gigabytes(limit)}\n"
        )
    finally:
        _remove(group)
    sys.exit(result.returncode)


def set_limits(group: Path, limit: int, first: bool) -> None:
    """Limit the memory of a cgroup, of the `first` version or the second, and leave it no swap."""
    (group / ("memory.limit_in_bytes" if first else "memory.max")).write_text(str(limit))
    swap = group / ("memory.memsw.limit_in_bytes" if first else "memory.swap.max")
    if swap.exists():
        swap.write_text(str(limit if first else 0))  # the first version counts memory and swap
    else:
        sys.stderr.write("this system cannot keep the group from swapping\n")


def _remove(group: Path) -> None:
    """Remove a cgroup, or say why it stays: a process that the command left behind is in it."""
    try:
        group.rmdir()
    except OSError as error:
        sys.stderr.write(f"cannot remove {group}: {error.strerror}\n")


if __name__ == "__main__":
    main()
