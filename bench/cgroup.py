"""Runs a command in a memory cgroup of its own and reports the most memory it took.

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
    limit, command = MemoryLimit.parse(sys.argv[1]).num_bytes, sys.argv[2:]
    if limit is None:
        sys.exit("give the limit in bytes, such as 1500MB")
    first = V1.is_dir()
    group = (V1 if first else V2) / f"mlx-flash-{os.getpid()}"
    limit_file = "memory.limit_in_bytes" if first else "memory.max"
    peak_file = "memory.max_usage_in_bytes" if first else "memory.peak"
    group.mkdir()
    try:
        (group / limit_file).write_text(str(limit))

        def join() -> None:
            (group / "cgroup.procs").write_text(str(os.getpid()))

        result = subprocess.run(command, preexec_fn=join, check=False)
        peak = int((group / peak_file).read_text())
        sys.stderr.write(
            f"exit code {result.returncode}; the group took {gigabytes(peak)} at most, its page "
            f"cache included, of {gigabytes(limit)}\n"
        )
    finally:
        group.rmdir()
    sys.exit(result.returncode)


if __name__ == "__main__":
    main()
