"""Put settings into the text of a file and leave everything else in it as it is."""

import json
import re
from collections.abc import Mapping
from typing import Any

from .client import Entries, Settings


class MergeError(Exception):
    """Raised when a text cannot be read, or has something else where the settings belong."""


def render(settings: Settings) -> str:
    """Return the text of a new file that holds nothing but the settings."""
    return str(settings.content) if settings.form == "yaml" else merge(settings, "")


def merge(settings: Settings, text: str) -> str:
    """Return JSON or TOML `text` with the settings in it; the same text when they are already.

    Raises:
        MergeError: the text is not of its form, or the settings have no place in it.
    """
    combine = _merge_toml if settings.form == "toml" else _merge_json
    return combine(settings.content, text)


def merged(content: Any, old: Any, where: str = "") -> Any:
    """Return `old` with `content` in it, as a new value; None is nothing yet.

    Objects are merged, entries find their place in a list, all else is replaced.

    Raises:
        MergeError: there is something else where an object or a list belongs.
    """
    if isinstance(content, Mapping):
        if not isinstance(old, Mapping | None):
            raise MergeError(f"has no object at {where or 'its top'}")
        new = dict(old or {})
        for key, value in content.items():
            new[key] = merged(value, new.get(key), f"{where}.{key}".lstrip("."))
        return new
    if isinstance(content, Entries):
        if not isinstance(old, list | None):
            raise MergeError(f"has no list at {where or 'its top'}")
        return _merged_entries(content, old or [])
    return content


def _merged_entries(content: Entries, old: list[Any]) -> list[Any]:
    new = list(old)
    for item in content.items:
        same = [
            at
            for at, element in enumerate(new)
            if isinstance(element, Mapping) and element.get(content.key) == item[content.key]
        ]
        if same:
            new[same[0]] = merged(item, new[same[0]])
        else:
            new.append(dict(item))
    return new


def _merge_json(content: Any, text: str) -> str:
    if not text.strip():
        return json.dumps(merged(content, None), indent=2, ensure_ascii=False) + "\n"
    try:
        old = json.loads(text)
    except (ValueError, RecursionError) as error:
        if _has_comments(text):
            raise MergeError("has comments, which would be lost") from error
        raise MergeError("is not valid JSON") from error
    new = merged(content, old)
    if new == old:
        return text
    end = "\n" if text.endswith("\n") else ""
    return json.dumps(new, indent=_indent(text), ensure_ascii=False) + end


def _has_comments(text: str) -> bool:
    return re.search(r"^\s*(//|/\*)|[,{\[\"\d]\s*//\s", text, re.MULTILINE) is not None


def _indent(text: str) -> int | str:
    """Return the indent of the first line that has one, as `json.dumps` wants it."""
    found = re.search(r"^([ \t]+)\S", text, re.MULTILINE)
    if found is None:
        return 2
    return "\t" if "\t" in found[1] else len(found[1])


def _merge_toml(content: Mapping[str, Any], text: str) -> str:
    import tomlkit
    from tomlkit.exceptions import TOMLKitError

    try:
        document = tomlkit.parse(text)
        old = document.unwrap()
    except (TOMLKitError, ValueError, RecursionError) as error:
        raise MergeError("is not valid TOML") from error
    new = merged(content, old)
    if new == old:
        return text
    try:
        _put(document, content)
        result = tomlkit.dumps(document)
        kept = tomlkit.parse(result).unwrap() == new
    except (TOMLKitError, ValueError, TypeError, KeyError) as error:
        raise MergeError("is laid out so that it cannot be changed safely") from error
    if not kept:  # whatever is changed beside what was asked for is a loss
        raise MergeError("is laid out so that it cannot be changed safely")
    return result


def _put(table: Any, content: Mapping[str, Any]) -> None:
    """Set `content` in a tomlkit table; a value that is there already keeps its comment."""
    import tomlkit

    for key, value in content.items():
        if isinstance(value, Mapping):
            if key not in table:
                holds_tables = all(isinstance(part, Mapping) for part in value.values())
                table[key] = tomlkit.table(is_super_table=holds_tables)
            _put(table[key], value)
        elif key not in table or table[key] != value:
            table[key] = value
