"""All clients by name."""

from ...errors import OptionError
from .agents import AGENTS
from .chats import CHATS
from .client import Client
from .editors import EDITORS

CLIENTS = (*AGENTS, *EDITORS, *CHATS)
_OTHER_NAMES = {
    "claude-code": "claude",
    "codex-cli": "codex",
    "qwen": "qwen-code",
    "copilot": "copilot-cli",
    "open-webui": "openwebui",
    "vs-code": "vscode",
    "code": "vscode",
    "roo": "cline",
    "roo-code": "cline",
    "kilo": "cline",
}


def find_client(name: str) -> Client:
    """Return the client called `name`, whatever its case.

    Raises:
        OptionError: there is none.
    """
    wanted = name.strip().lower()
    wanted = _OTHER_NAMES.get(wanted, wanted)
    for client in CLIENTS:
        if client.name == wanted:
            return client
    known = ", ".join(client.name for client in CLIENTS)
    raise OptionError(f"there is no client {name!r}; there are {known}.")
