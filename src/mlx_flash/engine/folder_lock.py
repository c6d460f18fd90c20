"""Lets one process at a time write a folder."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import OptionError


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep others who ask for it from writing a folder while the block runs.

    The lock is on the folder itself and goes with the process: nothing is left behind. Where the
    file system has no such locks, nobody is kept from anything.

    Raises:
        OptionError: another process holds it.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise OptionError(
                f"another process is writing {folder}: wait for it to end, or give another folder."
            ) from error
        except OSError:
            pass
        yield
    finally:
        os.close(descriptor)
