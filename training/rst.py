"""Reads reStructuredText: plain prose for the writing domain, documented objects for the chat."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

OBJECT = re.compile(
    r"^(\s*)\.\. (?:py:)?(function|method|class|data|exception|attribute|classmethod|staticmethod"
    r"|decorator|decoratormethod|coroutinefunction|coroutinemethod|abstractmethod|property"
    r"|awaitablefunction|awaitablemethod|opcode|describe)::\s*(.*)$"
)
MODULE = re.compile(r"^\.\. (?:py:)?(?:current)?module::\s*([\w.]+)")
DIRECTIVE = re.compile(r"^(\s*)\.\. ([\w:-]+)::\s*(.*)$")
ROLE_TARGET = re.compile(r":[\w:+-]+:`[!~]?([^`<]*?)\s*<[^`>]*>`")
ROLE = re.compile(r":([\w:+-]+):`([!~]?)([^`]*)`")
LINK = re.compile(r"`([^`<]+?)\s*<[^`>]*>`_{1,2}")
CALLOUTS = {"note": "Note: ", "warning": "Warning: ", "caution": "Warning: ", "tip": "Tip: "}
CODE_BLOCKS = {"code-block", "sourcecode", "doctest", "code", "testcode"}


@dataclass(frozen=True)
class Documented:
    """One object that a reference page documents; `blocks` are ("text" or "code", string)."""

    name: str
    kind: str
    signatures: list[str]
    blocks: list[tuple[str, str]] = field(default_factory=list)


def inline(text: str) -> str:
    """Return `text` without roles and link targets; literals keep one backtick a side."""
    text = ROLE_TARGET.sub(r"`\1`", text)
    text = ROLE.sub(_role, text)
    text = LINK.sub(r"\1", text)
    text = text.replace("``", "`").replace("\\*", "*").replace("\\ ", "").replace("`None`", "None")
    return re.sub(r"\|(\w+)\|", r"\1", text)


def _role(match: re.Match[str]) -> str:
    role, mark, name = match.groups()
    if mark == "~":
        name = name.rsplit(".", 1)[-1]
    if role in {"term", "ref", "doc", "dfn", "abbr", "pep", "rfc", "emphasis", "sup", "sub"}:
        return f"{role.upper()} {name}" if role in {"pep", "rfc"} else name
    return f"`{name}`"


def indent_of(line: str) -> int:
    """Return the number of leading spaces."""
    return len(line) - len(line.lstrip(" "))


def block_end(lines: list[str], start: int, indent: int) -> int:
    """Return the index after the last line from `start` that is blank or deeper than `indent`."""
    end = start
    while end < len(lines) and (not lines[end].strip() or indent_of(lines[end]) > indent):
        end += 1
    return end


def dedent(lines: list[str]) -> list[str]:
    """Return the lines without their common indent and without blank ends."""
    margin = min((indent_of(line) for line in lines if line.strip()), default=0)
    return "\n".join(line[margin:] for line in lines).strip("\n").split("\n")


def blocks_of(lines: list[str]) -> list[tuple[str, str]]:
    """Return a body as ("text", paragraph) and ("code", listing) pairs, objects left out."""
    found: list[tuple[str, str]] = []
    paragraph: list[str] = []

    position = 0
    while position < len(lines):
        line = lines[position]
        if line.lstrip().startswith(".. "):
            found += _taken(paragraph)
            end = block_end(lines, position + 1, indent_of(line))
            found += _directive(DIRECTIVE.match(line), lines[position + 1 : end])
            position = end
        elif line.lstrip().startswith(">>>"):
            found += _taken(paragraph)
            blank = (n for n in range(position, len(lines)) if not lines[n].strip())
            end = next(blank, len(lines))
            found.append(("code", "\n".join(dedent(lines[position:end]))))
            position = end
        elif not line.strip():
            literal = bool(paragraph) and paragraph[-1].rstrip().endswith("::")
            indent = indent_of(paragraph[0]) if paragraph else 0
            if literal:
                paragraph[-1] = paragraph[-1].rstrip()[:-1]
            found += _taken(paragraph)
            end = block_end(lines, position + 1, indent) if literal else position + 1
            code = "\n".join(dedent(lines[position + 1 : end]))
            if code.strip():
                found.append(("code", code))
            position = end
        else:
            if paragraph and re.match(r"\s*([*+-]|\d+\.|#\.)\s", line):
                found += _taken(paragraph)
            paragraph.append(line)
            position += 1
    found += _taken(paragraph)
    return found


def _taken(paragraph: list[str]) -> list[tuple[str, str]]:
    """Return the collected lines as one block, or none for a rule, and empty the list."""
    text = inline(" ".join(line.strip() for line in paragraph)).strip()
    paragraph.clear()
    return [("text", text)] if text and not set(text) <= set("=-~^*# +|") else []


def _directive(match: re.Match[str] | None, body: list[str]) -> Iterator[tuple[str, str]]:
    if match is None or OBJECT.match(match.group(0)):
        return
    name = match.group(2)
    inner = dedent([line for line in body if not re.match(r"\s*:\w[\w-]*:", line)])
    if name in CODE_BLOCKS:
        if any(line.strip() for line in inner):
            yield "code", "\n".join(inner)
    elif name in CALLOUTS:
        text = " ".join([match.group(3), *inner]).strip()
        yield "text", CALLOUTS[name] + inline(" ".join(text.split()))
    elif name.startswith("deprecated"):
        version, _, rest = match.group(3).partition(" ")
        reason = inline(" ".join(" ".join([rest, *inner]).split()))
        yield "text", f"Deprecated since version {version}. {reason}".strip()
    elif name == "impl-detail":
        yield "text", inline(" ".join(" ".join([match.group(3), *inner]).split()))


def objects_of(lines: list[str], module: str, prefix: str = "") -> Iterator[Documented]:
    """Yield every object documented in `lines`, nested ones with their class's name."""
    position = 0
    while position < len(lines):
        found_module = MODULE.match(lines[position])
        if found_module:
            module = found_module.group(1)
        match = OBJECT.match(lines[position])
        if not match:
            position += 1
            continue
        indent, kind, first = len(match.group(1)), match.group(2), match.group(3)
        end = block_end(lines, position + 1, indent)
        head, body_start = _signatures(first, lines, position + 1, end)
        body = dedent(lines[body_start:end])
        name = _qualified(head[0], module, prefix)
        if name and kind not in {"describe", "opcode"}:
            yield Documented(name, kind, head, blocks_of(body))
        owner = name if kind in {"class", "exception"} else prefix
        yield from objects_of(body, module, owner)
        position = end


def _signatures(first: str, lines: list[str], position: int, end: int) -> tuple[list[str], int]:
    heads = [first]
    while position < end and lines[position].strip():
        text = lines[position].strip()
        if re.match(r":\w+:", text):
            position += 1
            continue
        if heads[-1].endswith("\\"):
            heads[-1] = heads[-1][:-1] + text
        else:
            heads.append(text)
        position += 1
    heads = [re.sub(r"\\(.)", r"\1", re.sub(r"\s+", " ", head)) for head in heads if head.strip()]
    return heads or [""], position


def _qualified(signature: str, module: str, prefix: str) -> str:
    name = re.match(r"(?:class |async |await )?([A-Za-z_][\w.]*)", signature)
    if not name:
        return ""
    bare = name.group(1).rstrip(".")
    if prefix:
        owner = prefix.rsplit(".", 1)[-1]
        return prefix + "." + bare.removeprefix(owner + ".")
    return f"{module}.{bare}" if module and not bare.startswith(module + ".") else bare


def prose(source: str) -> str:
    """Return a page as plain text: paragraphs on one line, listings indented by four spaces."""
    lines = [line.rstrip().expandtabs(4) for line in source.split("\n")]
    parts: list[str] = []
    for kind, text in _flat(lines):
        parts.append(text if kind == "text" else re.sub(r"(?m)^(?=.)", "    ", text))
    return "\n\n".join(parts)


def _flat(lines: list[str]) -> Iterator[tuple[str, str]]:
    start = 0
    for position, line in enumerate(lines):
        if position < start:
            continue
        match = OBJECT.match(line)
        if not match:
            continue
        yield from _titled(lines[start:position])
        end = block_end(lines, position + 1, len(match.group(1)))
        heads, body = _signatures(match.group(3), lines, position + 1, end)
        yield "text", "\n".join(f"`{head}`" for head in heads if head)
        yield from _flat(dedent(lines[body:end]))
        start = end
    yield from _titled(lines[start:])


def _titled(lines: list[str]) -> Iterator[tuple[str, str]]:
    kept: list[str] = []
    for line in lines:
        underline = len(line) > 2 and len(set(line)) == 1 and line[0] in "=-~^*#+\"'"
        if underline and kept and kept[-1].strip() and len(kept[-1].split()) < 16:
            title = kept.pop().strip()
            yield from blocks_of(kept)
            yield "text", "# " + inline(title)
            kept = []
        elif not underline:
            kept.append(line)
    yield from blocks_of(kept)
