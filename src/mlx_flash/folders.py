"""Where MLX-Flash keeps what it may lose: the one place that decides it, by the environment too."""

import os
import sys
import tempfile
from pathlib import Path

from .errors import OptionError

_OVERRIDE = "MLX_FLASH_CACHE"


def warm_start_folder() -> Path | None:
    """Return the folder that remembers who was in memory; None for a user without a home."""
    try:
        return _cache_folder() / "warm-start"
    except RuntimeError:
        return None


def profile_folder() -> Path | None:
    """Return the folder of the user's own task profiles; None for a user without a home."""
    try:
        return _cache_folder() / "profiles"
    except RuntimeError:
        return None


def prompt_cache_folder() -> Path | None:
    """Return the folder of computed prompts; None for a user without a home."""
    try:
        return _cache_folder() / "prompts"
    except RuntimeError:
        return None


def chat_history() -> Path | None:
    """Return the file that remembers what was typed in chats; None for a user without a home."""
    try:
        return _cache_folder() / "chat-history"
    except RuntimeError:
        return None


def browse_record() -> Path | None:
    """Return the file that remembers what was seen on the Hub; None for a user without a home."""
    try:
        return _cache_folder() / "hub-models.json"
    except RuntimeError:
        return None


def check_writable(path: Path) -> None:
    """Return when a file can be written, made or replaced; leave everything as it is.

    Raises:
        OptionError: it is a folder, or its folder is not there or refuses.
    """
    try:
        if path.exists():
            path.open("ab").close()
        else:
            tempfile.TemporaryFile(dir=path.parent).close()
    except OSError as error:
        raise OptionError(
            f"cannot write {path}: {error.strerror or error}: give another place."
        ) from error


def _cache_folder() -> Path:
    """Return what MLX_FLASH_CACHE names, or a folder where the platform keeps such things.

    Raises:
        RuntimeError: the user has no home.
    """
    if named := os.environ.get(_OVERRIDE):
        return Path(named)
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "mlx-flash"
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))  # its specification ignores relative paths
    return (base if base.is_absolute() else Path.home() / ".cache") / "mlx-flash"
