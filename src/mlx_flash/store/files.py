"""Open checkpoint files: one descriptor per file, and a memory of what the file was."""

import os
from collections.abc import Iterable
from pathlib import Path

from ..errors import FormatError


class CheckpointFiles:
    """Read-only descriptors of a fixed set of files, closed together. Thread-safe to read from."""

    def __init__(self, paths: Iterable[Path]) -> None:
        """Open every file.

        Raises:
            FormatError: a file cannot be opened.
        """
        self._descriptors: dict[Path, int] = {}
        self._identity: dict[Path, tuple[int, int]] = {}
        try:
            for path in dict.fromkeys(paths):
                descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                self._descriptors[path] = descriptor
                self._identity[path] = self._stat(descriptor)
        except OSError as error:
            self.close()
            raise FormatError(f"cannot open {path}: {error.strerror or error}.", path) from error

    @staticmethod
    def _stat(descriptor: int) -> tuple[int, int]:
        status = os.fstat(descriptor)
        return status.st_size, status.st_mtime_ns

    def descriptor(self, path: Path) -> int:
        """Return the open descriptor of a file of the set."""
        return self._descriptors[path]

    def changed(self, path: Path) -> bool:
        """Return whether a file's size or modification time is not what it was when opened."""
        return self._stat(self._descriptors[path]) != self._identity[path]

    def close(self) -> None:
        """Close every descriptor. May be called again."""
        while self._descriptors:
            os.close(self._descriptors.popitem()[1])
