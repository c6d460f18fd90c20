"""What a client is told: environment variables, contents of its settings files, steps by hand."""

import json
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ...errors import ConnectError
from .server import Server

Form = Literal["json", "toml", "yaml"]


@dataclass(frozen=True)
class Settings:
    """What must be in the file at `path`.

    `content` is merged into what is there, for JSON and TOML. YAML is text, written only where
    there is no file: merging would lose comments.
    """

    path: Path
    form: Form
    content: Any


@dataclass(frozen=True)
class Entries:
    """Elements of a list that others share, each replacing the one with the same `key`."""

    key: str
    items: tuple[Mapping[str, Any], ...]


@dataclass(frozen=True)
class Setup:
    """All that one client is told.

    `variables` are for the shell; `instead` are for a shell that shall do without the files;
    `files` can be written; `steps` are sentences for what only the user can do; `start` is the
    command that uses it.
    """

    variables: Mapping[str, str] = field(default_factory=dict)
    instead: Mapping[str, str] = field(default_factory=dict)
    files: tuple[Settings, ...] = ()
    steps: tuple[str, ...] = ()
    start: str | None = None


@dataclass(frozen=True)
class Client:
    """A program that can call the server: its name in the command, its title, and which API."""

    name: str
    title: str
    api: str
    gets: str
    setup: Callable[[Server, Mapping[str, str]], Setup]


def home_folder() -> Path:
    """Return the user's home.

    Raises:
        ConnectError: there is none.
    """
    try:
        return Path.home()
    except RuntimeError as error:
        raise ConnectError("you have no home folder, where settings would be.") from error


def config_folder(environment: Mapping[str, str]) -> Path:
    """Return where programs that follow the XDG rules keep settings, on every platform."""
    base = Path(environment.get("XDG_CONFIG_HOME", ""))
    return base if base.is_absolute() else home_folder() / ".config"


def application_folder(environment: Mapping[str, str], name: str) -> Path:
    """Return where a desktop program called `name` keeps settings on this platform."""
    if sys.platform == "darwin":
        return home_folder() / "Library" / "Application Support" / name
    return config_folder(environment) / name


def quoted(text: str) -> str:
    """Return `text` as a YAML string."""
    return json.dumps(text, ensure_ascii=False)


def folder_of(environment: Mapping[str, str], variable: str, default: str) -> Path:
    """Return the folder that `variable` names, or `default` in the user's home."""
    named = environment.get(variable)
    return Path(os.path.expanduser(named)) if named else home_folder() / default
