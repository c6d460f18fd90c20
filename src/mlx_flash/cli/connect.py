"""`mlx-flash connect`: set other programs up to call `mlx-flash serve`."""

import json
import os
import shlex
import sys
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from ..errors import OptionError
from .clients.server import DEFAULT_URL, KEY_VARIABLE
from .options import AsJson

if TYPE_CHECKING:
    from .clients.client import Client, Settings, Setup
    from .clients.discovery import Discovery
    from .clients.write import Change

_HIDDEN_KEY = "YOUR_API_KEY"


def command(
    name: Annotated[
        str | None, typer.Argument(metavar="[CLIENT]", help="Left out, all clients are listed.")
    ] = None,
    url: Annotated[str, typer.Option(help="Where the server is, without /v1.")] = DEFAULT_URL,
    api_key: Annotated[
        str | None,
        typer.Option(
            envvar=KEY_VARIABLE, show_envvar=True, help="The server's API key, if it has one."
        ),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="The model's name. Default: what the server runs.")
    ] = None,
    context: Annotated[
        int | None, typer.Option(min=256, help="Tokens of context. Default: what the server says.")
    ] = None,
    write: Annotated[
        bool, typer.Option("--write", help="Change the client's files, with a backup beside each.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show what a coding agent, editor or chat program needs to use the server, or write it."""
    from .clients.registry import CLIENTS, find_client

    if name is None and write:
        raise OptionError("there is no client to write for: give its name, see mlx-flash connect.")
    if name is None:
        _print_clients(CLIENTS, as_json)
        return
    client = find_client(name)
    from .clients.discovery import discover

    found = discover(url, api_key or None, model, context)
    notes = Console(stderr=True, highlight=False, markup=False)
    notes.print(found.note, soft_wrap=True)
    if write and found.refused and not (model and context):
        raise OptionError(
            f"the server at {found.server.url} did not say what it serves: give its --api-key, or "
            "--model and --context."
        )
    setup = client.setup(found.server, os.environ)
    shown, changes = setup, None
    if write:
        changes = _write(setup, bool(api_key), notes)
        if api_key:  # what is printed from here on may be seen by others
            shown = client.setup(replace(found.server, api_key=_HIDDEN_KEY), os.environ)
    if as_json:
        sys.stdout.write(json.dumps(_report(client, found, shown, changes)) + "\n")
        return
    sys.stdout.write(_text(client, shown, changes))
    if setup.files and not write:
        notes.print(f"mlx-flash connect {client.name} --write writes it.", soft_wrap=True)


def _print_clients(clients: "tuple[Client, ...]", as_json: bool) -> None:
    if as_json:
        rows = [{"client": c.name, "title": c.title, "api": c.api, "gets": c.gets} for c in clients]
        sys.stdout.write(json.dumps({"clients": rows}) + "\n")
        return
    table = Table(box=None, pad_edge=False, collapse_padding=True)
    for title in ("client", "what it is", "API", "what it gets"):
        table.add_column(title, no_wrap=title == "client")
    for client in clients:
        table.add_row(client.name, client.title, client.api, client.gets)
    Console(highlight=False, markup=False).print(table)


def _write(setup: "Setup", has_key: bool, notes: Console) -> "list[Change]":
    """Write the files of a client, after all of them have been found fit to be changed."""
    from .clients.write import apply_change, plan_change

    planned = [plan_change(settings) for settings in setup.files]
    changes = [apply_change(change, private=has_key) for change in planned]
    if not setup.files:
        notes.print("there is no file to write: this is set up by hand.", soft_wrap=True)
    for change in changes:
        if has_key and change.state == "written" and change.target.stat().st_mode & 0o077:
            path = change.settings.path
            notes.print(f"others may read {path}, which has a key: chmod 600 it.", soft_wrap=True)
    return changes


def _text(client: "Client", setup: "Setup", changes: "list[Change] | None") -> str:
    """Return all that the user is told, in the order in which it is done."""
    parts = [f"{client.title}, by the {client.api} API"]
    for at, settings in enumerate(setup.files):
        parts.append(_settings_text(settings, changes[at] if changes is not None else None))
    if setup.variables:
        where = "In your shell, or the file that it reads at its start:"
        parts.append(f"{where}\n{_exports(setup.variables)}")
    if setup.instead and changes is None:
        parts.append(f"Or instead, for one shell alone:\n{_exports(setup.instead)}")
    parts.extend(setup.steps)
    if setup.start:
        parts.append(f"Then: {setup.start}")
    return "\n\n".join(parts) + "\n"


def _settings_text(settings: "Settings", change: "Change | None") -> str:
    """Return what to do with one file, or what was done."""
    from .clients.merge import render

    if change is None:
        return f"In {settings.path}:\n{render(settings)}".rstrip("\n")
    if change.state == "already set":
        return f"already set: {settings.path}"
    if change.state == "paste":
        why = "is there already, and YAML is not merged: put this into it by hand"
        return f"{settings.path} {why}:\n{render(settings)}".rstrip("\n")
    kept = f", and what it was is in {change.backup}" if change.backup else ""
    linked = f" (a link to {change.target})" if change.target != settings.path else ""
    return f"wrote {settings.path}{linked}{kept}"


def _exports(variables: Mapping[str, str]) -> str:
    return "\n".join(f"export {name}={shlex.quote(value)}" for name, value in variables.items())


def _report(
    client: "Client", found: "Discovery", setup: "Setup", changes: "list[Change] | None"
) -> dict[str, Any]:
    """Return what `--json` prints."""
    from .clients.merge import render

    files: list[dict[str, Any]] = []
    for at, settings in enumerate(setup.files):
        change = changes[at] if changes is not None else None
        backup = str(change.backup) if change is not None and change.backup else None
        files.append(
            {
                "path": str(settings.path),
                "form": settings.form,
                "content": render(settings),
                "state": change.state if change is not None else "not written",
                "backup": backup,
            }
        )
    return {
        "client": client.name,
        "api": client.api,
        "url": found.server.url,
        "model": found.server.model,
        "context": found.server.context,
        "server_running": found.running,
        "files": files,
        "variables": dict(setup.variables),
        "instead": dict(setup.instead),
        "steps": list(setup.steps),
        "start": setup.start,
    }
