"""Open checkpoint files: one descriptor per file, and a memory of what the file was."""

import os
from collections.abc import Mapping
from pathlib import Path

from ..errors import FormatError
from ..formats.safetensors import FileStamp


class CheckpointFiles:
    """Read-only descriptors of a fixed set of files, closed together. Thread-safe to read from."""

    def __init__(self, files: Mapping[Path, FileStamp]) -> None:
        """Open every file.

        Raises:
            FormatError: a file cannot be opened, or is not the one whose header was read.
        """
        self._descriptors: dict[Path, int] = {}
        self._stamps = dict(files)
        try:
            for path in files:
                self._descriptors[path] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
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

    def changed(self, path: Path) -> bool:
        """Return whether a file is not what it was when its header was read."""
        return FileStamp.of(self._descriptors[path]) != self._stamps[path]

    def close(self) -> None:
        """Close every descriptor. May be called again."""
        while self._descriptors:
            os.close(self._descriptors.popitem()[1])
