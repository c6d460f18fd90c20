"""A conversation in a file: JSON with its messages, in the form that many programs share."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import PromptError, TranscriptError
from ..streaming.tokens import Message
from .generate import check_text

_MAX_BYTES = 16 * 1024 * 1024
_KEYS = {"role", "content", "reasoning_content"}


def save_transcript(
    path: Path, model: str, system: str, messages: Sequence[Message], *, overwrite: bool = False
) -> None:
    """Write the messages, the system's first, as `{"model": ..., "messages": [...]}`.

    Raises:
        TranscriptError: there is such a file and it is not to be overwritten, or the disk refuses.
    """
    first = [{"role": "system", "content": system}] if system else []
    everything = {"model": model, "messages": [*first, *map(dict, messages)]}
    text = json.dumps(everything, ensure_ascii=False, indent=1) + "\n"
    try:
        with path.open("w" if overwrite else "x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError as error:
        raise TranscriptError(f"{path} is there already.") from error
    except (OSError, ValueError) as error:
        raise TranscriptError(f"cannot write {path}: {_reason(error)}.") from error


def load_transcript(path: Path) -> tuple[str, list[Message]]:
    """Return the system message, empty if there is none, and the others. Nothing is trusted.

    Raises:
        TranscriptError: the file cannot be read, or holds no conversation.
    """
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_BYTES + 1)
        found = json.loads(content) if len(content) <= _MAX_BYTES else None
    except OSError as error:
        raise TranscriptError(f"cannot read {path}: {_reason(error)}.") from error
    except (ValueError, RecursionError) as error:
        raise TranscriptError(f"{path} is no conversation: it is not JSON.") from error
    messages = found.get("messages") if isinstance(found, dict) else None
    if not isinstance(messages, list) or not all(map(_is_message, messages)):
        raise TranscriptError(f"{path} is no conversation: it has no list of messages.")
    system = ""
    if messages and messages[0]["role"] == "system":
        system = messages.pop(0)["content"]
    roles = [message["role"] for message in messages]
    if roles != ["user", "assistant"] * (len(roles) // 2):
        raise TranscriptError(
            f"{path} is no conversation: user and assistant must speak in turn, assistant last."
        )
    return system, messages


def _is_message(message: Any) -> bool:
    """Return whether this is a role and texts, whole characters all."""
    if not isinstance(message, dict) or not {"role", "content"} <= message.keys() <= _KEYS:
        return False
    try:
        for text in message.values():
            if not isinstance(text, str):
                return False
            check_text(text)
    except PromptError:
        return False
    return True


def _reason(error: OSError | ValueError) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
