"""Input items in one form: the one in which they are kept, and given back by `input_items`."""

import json
from collections.abc import Callable
from typing import Any
from uuid import uuid4

from ..backend import RequestError
from ..turns import text_of

Item = dict[str, Any]

_ROLES = ("user", "assistant", "system", "developer")


def new_id(prefix: str) -> str:
    """Return an id that is used once."""
    return f"{prefix}_{uuid4().hex}"


def items_of(given: Any, find: Callable[[str], Item | None] = lambda key: None) -> list[Item]:
    """Return the items of an input: text, or a list. `find` returns what an id refers to.

    Items of a kind that this server does not know are left out.

    Raises:
        RequestError: an item is malformed, holds no text, or refers to one that is not there.
    """
    if isinstance(given, str):
        return [_message({"role": "user", "content": given}, "input")]
    if not isinstance(given, list):
        raise RequestError("invalid", "input: give text or a list of items.", "input")
    items = [_item(one, f"input.{place}", find) for place, one in enumerate(given)]
    return [item for item in items if item is not None]


def _item(given: Any, place: str, find: Callable[[str], Item | None]) -> Item | None:
    if not isinstance(given, dict):
        raise RequestError("invalid", f"{place}: an item is an object.", place)
    kind = given.get("type")
    if kind is None and "role" not in given and "id" in given:
        kind = "item_reference"
    if kind in (None, "message"):
        return _message(given, place)
    if kind == "item_reference":
        found = find(_required(given, "id", place))
        if found is None:
            raise RequestError(
                "not_found",
                f"{place}: there is no item {str(given['id'])[:100]!r}: send the item itself.",
                f"{place}.id",
            )
        return found
    if kind in ("function_call", "custom_tool_call"):
        return _call(given, kind, place)
    if kind in ("function_call_output", "custom_tool_call_output"):
        return {
            "id": _id(given, "fco" if kind == "function_call_output" else "ctco"),
            "type": kind,
            "status": "completed",
            "call_id": _required(given, "call_id", place),
            "output": _output(given.get("output"), f"{place}.output"),
        }
    return _reasoning(given) if kind == "reasoning" else None


def _message(given: Item, place: str) -> Item:
    role = given.get("role")
    if role not in _ROLES:
        raise RequestError(
            "invalid", f"{place}: a message has a role, one of {', '.join(_ROLES)}.", place
        )
    content = given.get("content")
    if content is None:
        content = ""
    texts = [
        text_of([part], f"{place}.content")
        for part in (content if isinstance(content, list) else [content])
    ]
    parts: list[Item] = [{"type": "input_text", "text": text} for text in texts]
    if role == "assistant":
        parts = [{"type": "output_text", "text": text, "annotations": []} for text in texts]
    return {
        "id": _id(given, "msg"),
        "type": "message",
        "status": "completed",
        "role": role,
        "content": parts,
    }


def _call(given: Item, kind: str, place: str) -> Item:
    """Return an earlier call of a tool."""
    item = {
        "id": _id(given, "fc" if kind == "function_call" else "ctc"),
        "type": kind,
        "status": "completed",
        "call_id": _required(given, "call_id", place),
        "name": _required(given, "name", place),
    }
    if isinstance(given.get("namespace"), str):
        item["namespace"] = given["namespace"]
    key = "arguments" if kind == "function_call" else "input"
    value = given.get(key)
    item[key] = value if isinstance(value, str) else json.dumps(value or {}, ensure_ascii=False)
    return item


def _output(given: Any, place: str) -> str:
    """Return the output of a tool as text. The model is told of what it cannot see, such as images:
    the tool has been called, and the conversation must go on.
    """
    if given is None or isinstance(given, str):
        return given or ""
    if not isinstance(given, list):
        return json.dumps(given, ensure_ascii=False)
    texts = []
    for part in given:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind in ("input_image", "input_file", "input_audio"):
            texts.append(f"[{kind}: this model reads text only]")
        else:
            texts.append(text_of([part], place))
    return "\n".join(texts)


def _reasoning(given: Item) -> Item:
    return {
        "id": _id(given, "rs"),
        "type": "reasoning",
        "status": "completed",
        "summary": _reasoning_parts(given.get("summary"), "summary_text"),
        "content": _reasoning_parts(given.get("content"), "reasoning_text"),
        "encrypted_content": None,
    }


def _reasoning_parts(given: Any, kind: str) -> list[Item]:
    texts = [
        part.get("text") if isinstance(part, dict) else part
        for part in (given if isinstance(given, list) else [given])
    ]
    return [{"type": kind, "text": text} for text in texts if isinstance(text, str)]


def _id(given: Item, prefix: str) -> str:
    value = given.get("id")
    return value if isinstance(value, str) and value else new_id(prefix)


def _required(given: Item, key: str, place: str) -> str:
    value = given.get(key)
    if not isinstance(value, str) or not value:
        raise RequestError(
            "invalid", f"{place}: this item has a `{key}`, a string.", f"{place}.{key}"
        )
    return value
