"""Open checkpoint files: one descriptor per file, and a memory of what the file was."""

import contextlib
import mmap
import os
import sys
from collections.abc import Mapping
from pathlib import Path

from ..errors import FormatError
from ..formats.layout import DIRECT_ALIGNMENT
from ..formats.safetensors import FileStamp


class CheckpointFiles:
    """Read-only descriptors of a fixed set of files, closed together. Thread-safe to read from."""

    def __init__(self, files: Mapping[Path, FileStamp], direct: bool = False) -> None:
        """Open every file; `direct` reads past the page cache where the file system can do that.

        Whether it does for all of them is `direct` from then on.

        Raises:
            FormatError: a file cannot be opened, or is not the one whose header was read.
        """
        self._descriptors: dict[Path, int] = {}
        self._stamps = dict(files)
        self._needs_alignment: set[Path] = set()
        self.direct = direct
        try:
            for path in files:
                self._descriptors[path], needs_alignment = (
                    open_direct(path)
                    if direct
                    else (os.open(path, os.O_RDONLY | os.O_CLOEXEC), False)
                )
                if needs_alignment:
                    self._needs_alignment.add(path)
                self.direct = self.direct and (needs_alignment or sys.platform == "darwin")
                if self.changed(path):
                    raise FormatError(f"{path} was replaced while it was being opened.", path)
        except OSError as error:
            self.close()
            raise FormatError(f"cannot open {path}: {error.strerror or error}.", path) from error
        except FormatError:
            self.close()
            raise

    def descriptor(self, path: Path) -> int:
        """Return the open descriptor of a file of the set."""
        return self._descriptors[path]

    def needs_alignment(self, path: Path) -> bool:
        """Return whether a file is read directly, in whole blocks of DIRECT_ALIGNMENT."""
        return path in self._needs_alignment

    def changed(self, path: Path) -> bool:
        """Return whether a file is not what it was when its header was read."""
        return FileStamp.of(self._descriptors[path]) != self._stamps[path]

    def close(self) -> None:
        """Close every descriptor. May be called again."""
        while self._descriptors:
            os.close(self._descriptors.popitem()[1])


def open_direct(path: Path) -> tuple[int, bool]:
    """Return a descriptor that reads past the page cache, and whether reads must be aligned.

    Where the file system cannot, that is an ordinary one. On macOS it leaves what it reads out of
    the page cache, and takes from there what is there already.

    Raises:
        OSError: the file cannot be opened.
    """
    plain = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    if sys.platform == "darwin":
        import fcntl

        with contextlib.suppress(OSError):
            fcntl.fcntl(plain, fcntl.F_NOCACHE, 1)
        return plain, False
    try:
        direct = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECT)
    except OSError:
        return plain, False
    try:  # some file systems take the flag and refuse the read
        with mmap.mmap(-1, DIRECT_ALIGNMENT) as block:
            os.preadv(direct, [block], 0)
    except OSError:
        os.close(direct)
        return plain, False
    os.close(plain)
    return direct, True
