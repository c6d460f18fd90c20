"""The tools of a request, and which of them the model may call."""

import json
from dataclasses import dataclass
from typing import Any

from ..backend import RequestError
from ..turns import tool

_CUSTOM_PARAMETERS = {
    "type": "object",
    "properties": {"input": {"type": "string", "description": "The input, as plain text."}},
    "required": ["input"],
    "additionalProperties": False,
}


@dataclass(frozen=True)
class Tool:
    """A tool that the client runs. A custom one takes text, a function JSON."""

    name: str
    namespace: str | None
    custom: bool


@dataclass(frozen=True)
class Choice:
    """Which tools may be called: for the worker, and as the response repeats it."""

    wanted: str
    echo: str | dict[str, Any]


class Toolbox:
    """The tools that the model is offered, under one name each.

    `declared` is what the response repeats of them. Kinds of tools that run on a server, such as
    a search of the web, are left out.

    Raises:
        RequestError: a tool has no name.
    """

    def __init__(self, given: list[dict[str, Any]]) -> None:
        self.declared: list[dict[str, Any]] = []
        self._tools: dict[str, Tool] = {}
        self._templates: dict[str, dict[str, Any]] = {}
        for place, one in enumerate(given):
            declared = self._declare(one, f"tools.{place}")
            if declared is not None:
                self.declared.append(declared)

    @property
    def templates(self) -> list[dict[str, Any]]:
        """The tools that may be called, as templates take them."""
        return list(self._templates.values())

    def called(self, offered: str) -> Tool:
        """Return the tool that the model calls by the name it was offered under."""
        return self._tools.get(offered) or Tool(offered, None, custom=False)

    def offered_name(self, name: str, namespace: str | None) -> str:
        """Return the name that a tool is offered under; its own where it is not offered."""
        for offered, one in self._tools.items():
            if one.name == name and one.namespace == namespace:
                return offered
        return name

    def choose(self, choice: str | dict[str, Any] | None) -> Choice:
        """Return which tools may be called; tools that a list of allowed ones lacks are dropped.

        Raises:
            RequestError: there is no such choice.
        """
        if choice is None:
            choice = "auto"
        if isinstance(choice, dict):
            return self._choose_some(choice)
        if choice not in ("auto", "none", "required"):
            raise _wrong_choice(f"{choice[:40]!r} is none of auto, none and required")
        if choice == "required" and not self._tools:
            raise _wrong_choice("a tool is required, but there is none in `tools`")
        return Choice(choice, choice)

    def _choose_some(self, choice: dict[str, Any]) -> Choice:
        kind = choice.get("type")
        if kind == "allowed_tools":
            return self._allow(choice)
        if kind not in ("function", "custom"):
            raise _wrong_choice(f"this server has no tool of type {str(kind)[:40]!r}")
        offered, name = self._offered(choice)
        if offered not in self._tools:
            raise _wrong_choice(f"there is no tool {str(name)[:100]!r} in `tools`")
        return Choice(f"={offered}", {"type": kind, "name": name})

    def _allow(self, choice: dict[str, Any]) -> Choice:
        mode, listed = choice.get("mode") or "auto", choice.get("tools")
        if mode not in ("auto", "required") or not isinstance(listed, list):
            raise _wrong_choice("allowed_tools has a mode, auto or required, and a list of tools")
        listed = [one for one in listed if isinstance(one, dict)]
        spaces = {str(one.get("name")) for one in listed if one.get("type") == "namespace"}
        names = {self._offered(one)[0] for one in listed}
        self._templates = {
            offered: template
            for offered, template in self._templates.items()
            if offered in names or self._tools[offered].namespace in spaces
        }
        if mode == "required" and not self._templates:
            raise _wrong_choice("none of the allowed tools is in `tools`")
        return Choice(str(mode), {"type": "allowed_tools", "mode": mode, "tools": listed})

    def _offered(self, choice: dict[str, Any]) -> tuple[str, str]:
        """Return the offered and the own name of the tool that a choice is for."""
        function = choice.get("function")
        name = function.get("name") if isinstance(function, dict) else choice.get("name")
        space = choice.get("namespace")
        return self.offered_name(str(name), space if isinstance(space, str) else None), str(name)

    def _declare(
        self, given: dict[str, Any], place: str, namespace: str | None = None
    ) -> dict[str, Any] | None:
        """Offer a tool; return what the response repeats of it, None when it is left out."""
        kind = given.get("type")
        if kind == "namespace" and namespace is None:
            return self._declare_space(given, place)
        if kind not in ("function", "custom"):
            return None
        nested = given.get("function")
        inner = nested if isinstance(nested, dict) else given
        name = _name(inner, place)
        declared, parameters = (_custom if kind == "custom" else _function)(inner)
        taken = name in self._tools
        offered = f"{namespace}__{name}" if taken and namespace else name
        if offered not in self._tools:
            described = _described(declared)
            self._tools[offered] = Tool(name, namespace, kind == "custom")
            self._templates[offered] = tool(offered, described, parameters)
        return {"type": kind, "name": name, **declared}

    def _declare_space(self, given: dict[str, Any], place: str) -> dict[str, Any]:
        """Offer the tools of a namespace, by their own names where those are free."""
        space = _name(given, place)
        inside = given.get("tools")
        declared = [
            self._declare(one, f"{place}.tools.{number}", space)
            for number, one in enumerate(inside if isinstance(inside, list) else ())
            if isinstance(one, dict)
        ]
        return {
            "type": "namespace",
            "name": space,
            "description": _text(given, "description") or "",
            "tools": [one for one in declared if one is not None],
        }


def custom_input(arguments: str) -> str:
    """Return the text that a custom tool is called with, of the arguments that the model wrote."""
    try:
        given = json.loads(arguments)
    except (ValueError, RecursionError):
        return arguments
    text = given.get("input") if isinstance(given, dict) else None
    return text if isinstance(text, str) else arguments


def _name(given: dict[str, Any], place: str) -> str:
    name = given.get("name")
    if not isinstance(name, str) or not name:
        raise RequestError("invalid", f"{place}: a tool has a name.", f"{place}.name")
    return name


def _text(given: dict[str, Any], key: str) -> str | None:
    value = given.get(key)
    return value if isinstance(value, str) else None


def _format(given: Any) -> dict[str, Any]:
    """Return the form of a custom tool's input: a grammar, or any text."""
    if isinstance(given, dict) and given.get("type") == "grammar":
        syntax, definition = given.get("syntax"), given.get("definition")
        if syntax in ("lark", "regex") and isinstance(definition, str):
            return {"type": "grammar", "syntax": syntax, "definition": definition}
    return {"type": "text"}


def _function(given: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what the response repeats of a function, and its parameters."""
    parameters = given.get("parameters")
    parameters = parameters if isinstance(parameters, dict) else None
    declared = {
        "description": _text(given, "description"),
        "parameters": parameters,
        "strict": given.get("strict") is True,
    }
    return declared, parameters or {"type": "object", "properties": {}}


def _custom(given: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what the response repeats of a custom tool, and the parameters of its stand-in."""
    declared = {
        "description": _text(given, "description"),
        "format": _format(given.get("format")),
    }
    return declared, _CUSTOM_PARAMETERS


def _described(declared: dict[str, Any]) -> str:
    """Return what the model reads about a tool; of a custom one its grammar, too."""
    description, form = declared["description"] or "", declared.get("format", {"type": "text"})
    if form["type"] == "text":
        return description
    rule = f"`input` follows this {form['syntax']} grammar:\n{form['definition']}"
    return f"{description}\n\n{rule}".strip()


def _wrong_choice(what: str) -> RequestError:
    return RequestError("invalid", f"tool_choice: {what}.", "tool_choice")
