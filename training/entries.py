"""Collects what the chat data is made of: one `Entry` per documented Python object."""

import ast
import importlib
import inspect
import re
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import rst

Blocks = list[tuple[str, str]]
SECTION = re.compile(r"(?m)^([A-Z][A-Za-z ]+)\n[-=]{3,}\s*$")
GOOGLE = re.compile(r"(?m)^(Args|Arguments|Parameters|Returns|Yields|Raises|Examples?|Notes?):\s*$")
SKIPPED_MODULES = (
    "antigravity this idlelib test lib2to3 turtledemo __main__ nt msvcrt winreg winsound "
    "_winapi msilib ensurepip pydoc_data"
)
SUBMODULES = (
    "asyncio concurrent.futures collections.abc email.message email.policy email.utils "
    "html.parser html.entities http.client http.server http.cookies http.cookiejar "
    "importlib.abc importlib.util importlib.metadata importlib.resources importlib.machinery "
    "json.tool json.decoder json.encoder logging.config logging.handlers multiprocessing.pool "
    "multiprocessing.shared_memory os.path multiprocessing.managers multiprocessing.connection "
    "unittest.mock urllib.parse urllib.request urllib.error urllib.robotparser xml.dom "
    "xml.dom.minidom xml.etree.ElementTree xml.sax xml.sax.handler xml.sax.saxutils "
    "xmlrpc.client xmlrpc.server wsgiref.util wsgiref.headers wsgiref.simple_server "
    "curses.textpad curses.ascii dbm.dumb tkinter.ttk sqlite3 unittest"
)


@dataclass
class Entry:
    """One documented object; `doc` is its docstring, `manual` its text in the library reference."""

    name: str
    kind: str
    origin: str
    signature: str = ""
    doc: Blocks = field(default_factory=list)
    manual: Blocks = field(default_factory=list)
    params: list[tuple[str, str]] = field(default_factory=list)
    returns: str = ""
    stdlib: bool = False


def docstring_blocks(text: str) -> tuple[Blocks, list[tuple[str, str]], str]:
    """Return a docstring's blocks, its parameters and what it says about the return value."""
    text = inspect.cleandoc(text)
    parts = re.split(SECTION if SECTION.search(text) else GOOGLE, text)
    blocks = paragraphs(parts[0])
    params: list[tuple[str, str]] = []
    returns = ""
    for title, body in zip(parts[1::2], parts[2::2], strict=True):
        if title in {"Args", "Arguments", "Parameters"}:
            params = parameters(body)
        elif title in {"Returns", "Yields"}:
            returns = " ".join(body.split())[:400]
        elif title in {"Examples", "Example", "Notes", "Note"}:
            blocks += paragraphs(body)
    fields = re.findall(r"(?ms)^:param (?:[\w.]+ )?(\w+):\s*(.+?)(?=^:|\n\n|\Z)", text)
    params = params or [(name, " ".join(about.split())) for name, about in fields]
    return [block for block in blocks if not block[1].startswith(":param")], params, returns


def paragraphs(text: str) -> Blocks:
    """Return a docstring's text as blocks: prose on one line, examples and layouts as listings."""
    found: Blocks = []
    for part in re.split(r"\n\s*\n", text.strip("\n")):
        lines = [line.rstrip() for line in part.split("\n") if line.strip()]
        if not lines:
            continue
        deep = [line for line in lines if rst.indent_of(line) >= 2]
        if lines[0].lstrip().startswith(">>>") or (len(lines) > 1 and len(deep) == len(lines)):
            found.append(("code", "\n".join(rst.dedent(lines))))
        elif re.match(r"\s*(\.\. \w|:\w+|[\w.]+\(.*\)\s*-+>)", lines[0]):
            continue
        elif deep and len(deep) * 2 >= len(lines):
            found.append(("text", "\n".join(rst.inline(line) for line in rst.dedent(lines))))
        else:
            found.append(("text", rst.inline(" ".join(line.strip() for line in lines))))
    return found


def parameters(body: str) -> list[tuple[str, str]]:
    """Return (name, description) of each parameter in a NumPy or Google section."""
    lines = rst.dedent(body.split("\n"))
    found: list[tuple[str, list[str]]] = []
    for line in lines:
        if line.strip() and rst.indent_of(line) == 0:
            name, _, rest = line.partition(":")
            found.append((re.sub(r"\s*\(.*", "", name).strip(), [rest.strip()]))
        elif line.strip() and found:
            found[-1][1].append(line.strip())
    return [(name, rst.inline(" ".join(" ".join(about).split()))) for name, about in found]


def stdlib_entries(pages: dict[str, str]) -> list[Entry]:
    """Return the standard library's objects: reference text joined with live docstrings.

    `pages` maps a page of the library reference to its source.
    """
    found: dict[str, Entry] = {}
    for source in pages.values():
        for item in rst.objects_of(source.expandtabs(8).split("\n"), ""):
            signature = _full_signature(item.name, max(item.signatures, key=len))
            entry = Entry(item.name, item.kind, item.name.split(".")[0], signature, stdlib=True)
            entry.manual = [block for block in item.blocks if "[1]_" not in block[1][:8]]
            found.setdefault(item.name, entry)
    for name, obj, module in live_objects(found):
        doc = own_doc(obj)
        entry = found.setdefault(name, Entry(name, _kind(obj), module.split(".")[0], stdlib=True))
        if doc:
            entry.doc, entry.params, entry.returns = docstring_blocks(doc)
        entry.signature = entry.signature or _inspected(name, obj)
    return [entry for entry in found.values() if entry.doc or entry.manual]


def live_objects(documented: dict[str, Entry]) -> Iterator[tuple[str, object, str]]:
    """Yield (qualified name, object, module) of the standard library's public objects."""
    names = sorted(
        {n for n in sys.stdlib_module_names if n[0] != "_"} - set(SKIPPED_MODULES.split())
    )
    for module_name in [*names, *SUBMODULES.split()]:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                module = importlib.import_module(module_name)
        except ImportError:
            continue
        yield module_name, module, module_name
        for name, obj in sorted(vars(module).items()):
            full = name if module_name == "builtins" else f"{module_name}.{name}"
            home = str(getattr(obj, "__module__", "") or "").split(".")[0].strip("_")
            foreign = full not in documented and home != module_name.split(".")[0]
            if name.startswith("_") or foreign or not (callable(obj) and hasattr(obj, "__doc__")):
                continue
            yield full, obj, module_name
            if inspect.isclass(obj):
                for member, method in sorted(vars(obj).items()):
                    if not member.startswith("_") and callable(method):
                        yield f"{full}.{member}", method, module_name


def own_doc(obj: object) -> str:
    """Return an object's docstring, or nothing when it only inherits one."""
    doc = getattr(obj, "__doc__", None)
    if not isinstance(doc, str):
        return ""
    if inspect.isclass(obj) and any(base.__doc__ == doc for base in obj.__mro__[1:]):
        return ""
    doc = re.sub(r"^[\w.]+\(.*\)\s*(->.*)?\n\n", "", doc)
    return doc if len(doc) >= 12 else ""


def _kind(obj: object) -> str:
    if inspect.ismodule(obj):
        return "module"
    return "class" if inspect.isclass(obj) else "function"


def _full_signature(name: str, head: str) -> str:
    if "(" not in head:
        return name
    arguments = head[head.index("(") :]
    return name + re.sub(r"\s+", " ", re.sub(r",(?=[A-Za-z*_])", ", ", arguments))


def _inspected(name: str, obj: object) -> str:
    if not callable(obj):
        return ""
    try:
        signature = re.sub(r" at 0x[0-9a-f]+", "", str(inspect.signature(obj)))
        return name + re.sub(r"^\((self|cls)(, (/, )?|(?=\)))", "(", signature)
    except (ValueError, TypeError):
        return ""


def package_entries(path: Path, module: str, origin: str) -> Iterator[Entry]:
    """Yield the documented public objects of one source file, read without importing it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(path.read_text(encoding="utf-8"))
    except (SyntaxError, ValueError, RecursionError):
        return
    for prefix, node in _public_nodes(tree, module):
        doc = ast.get_docstring(node)
        if not doc or len(doc) < 30:
            continue
        kind = "class" if isinstance(node, ast.ClassDef) else "function"
        name = f"{prefix}.{node.name}"
        signature = "" if kind == "class" else f"{name}({ast.unparse(node.args)})"
        entry = Entry(
            name, kind, origin, re.sub(r"\b(self|cls)(, |(?=\)))", "", signature, count=1)
        )
        entry.doc, entry.params, entry.returns = docstring_blocks(doc)
        if entry.doc:
            yield entry


def _public_nodes(
    tree: ast.Module, module: str
) -> Iterator[tuple[str, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef]]:
    for node in tree.body:
        if not isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if node.name.startswith("_"):
            continue
        yield module, node
        if isinstance(node, ast.ClassDef):
            for child in node.body:
                is_function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef)
                if is_function and not child.name.startswith("_"):
                    yield f"{module}.{node.name}", child
