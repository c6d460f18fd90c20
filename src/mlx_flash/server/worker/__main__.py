"""The worker process: `python -m mlx_flash.server.worker SOCKET OPTIONS`. The gateway starts it."""

import logging
import os
import socket
import sys
from pathlib import Path

from ..channel import WorkerEnd, decode_options
from .worker import Worker


def main() -> None:
    """Serve the gateway at the other end of an inherited socket until it goes."""
    logging.basicConfig(level=logging.INFO, format="mlx-flash worker: %(message)s")
    _be_the_one_that_the_system_ends()
    end = WorkerEnd(socket.socket(fileno=int(sys.argv[1])))
    Worker(end, decode_options(sys.argv[2])).run()


def _be_the_one_that_the_system_ends() -> None:
    """Let Linux, when memory is out, end this process before others: it can be started again."""
    adjust = Path("/proc/self/oom_score_adj")
    try:
        adjust.write_text("900")
    except OSError:
        return


if __name__ == "__main__":
    main()
    sys.stdout.flush()
    os._exit(0)  # threads of libraries may not want to end
