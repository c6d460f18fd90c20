"""Change settings files: all or none of a client's, each with a backup and in one step."""

import contextlib
import os
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from ...errors import ConnectError
from .client import Settings
from .merge import MergeError, merge, render

State = Literal["written", "already set", "paste"]


@dataclass(frozen=True)
class Change:
    """What happens to one file. `path` is what the client reads, `target` where links lead.

    `state` is "paste" where the file must be changed by hand. `backup` is what was there before.
    """

    settings: Settings
    target: Path
    old: bytes | None
    new: bytes
    state: State
    backup: Path | None = None


def plan_change(settings: Settings) -> Change:
    """Return what writing `settings` would change. Changes nothing.

    Raises:
        ConnectError: the file cannot be read, or not be changed without a loss.
    """
    target = Path(os.path.realpath(settings.path))
    try:
        old = target.read_bytes() if target.exists() else None
        text = (old or b"").decode()
    except OSError as error:
        raise ConnectError(f"cannot read {settings.path}: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise _unusable(settings, "is no UTF-8 text") from error
    if settings.form == "yaml" and text.strip():
        state: State = "already set" if settings.content.strip() in text else "paste"
        return Change(settings, target, old, old or b"", state)
    try:
        new = merge(settings, text) if text.strip() else render(settings)
    except MergeError as error:
        raise _unusable(settings, str(error)) from error
    state = "already set" if old is not None and new == text else "written"
    return Change(settings, target, old, new.encode(), state)


def apply_change(change: Change, private: bool) -> Change:
    """Write what is planned, and return it with its backup; `private` is for new files.

    Raises:
        ConnectError: the folder or the file cannot be written; what was there is unchanged.
    """
    if change.state != "written":
        return change
    target = change.target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        mode = target.stat().st_mode & 0o7777 if change.old is not None else None
        backup = None
        if change.old is not None and mode is not None:
            backup = _write_backup(target, change.old, mode)
        if mode is None:
            mode = 0o600 if private else 0o666 & ~_umask()
        _replace(target, change.new, mode)
    except OSError as error:
        raise ConnectError(f"cannot write {change.settings.path}: {error.strerror}.") from error
    return replace(change, backup=backup)


def _unusable(settings: Settings, why: str) -> ConnectError:
    return ConnectError(
        f"{settings.path} {why}: nothing was written. Without --write you see what to put into it."
    )


def _write_backup(target: Path, content: bytes, mode: int) -> Path:
    """Write `content` beside `target` under the first free name, and return that."""
    number = 0
    while True:
        backup = target.with_name(f"{target.name}.bak{number or ''}")
        try:
            descriptor = os.open(backup, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            number += 1
            continue
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            os.fchmod(file.fileno(), mode)
        return backup


def _replace(target: Path, content: bytes, mode: int) -> None:
    """Put `content` at `target` in one step: whoever reads it finds the old or the new one."""
    descriptor, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
            os.fchmod(file.fileno(), mode)
        os.replace(name, target)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(name)
        raise


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
