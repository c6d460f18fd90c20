"""Reads one file of any form as plain text, and refuses what is not prose or code."""

import gzip
import re
from pathlib import Path

import rst
from lxml import etree
from lxml import html as lxml_html
from sources import GPL_TEXT

BLOCK_TAGS = {"p", "h1", "h2", "h3", "h4", "h5", "li", "dt", "dd", "td", "th", "pre", "caption"}
SKIPPED_TAGS = {"script", "style", "nav", "footer", "header", "head", "form", "select", "button"}
SKIPPED_CLASS = re.compile(
    r"sidebar|nav|toc|headerlink|footer|lang|breadcrumb|related|search|menu|top|innertoc", re.I
)


def read_page(path: Path, form: str) -> str:
    """Return the page as plain text; empty when it is not to be used."""
    raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    source = raw.decode("utf-8", errors="replace").replace("\r\n", "\n")
    readers = {"rst": rst.prose, "markdown": markdown, "html": html_text, "rust": rust_docs}
    return tidy(readers[form](source))


def read_code(path: Path, name: str) -> str:
    """Return a source file with its name in the first line; empty when it is not to be used."""
    if not 200 < path.stat().st_size < 200_000:
        return ""
    text = path.read_text(encoding="utf-8", errors="replace").replace("\r\n", "\n").expandtabs(4)
    if GPL_TEXT.search(text) or "\ufffd" in text or not looks_like_code(text):
        return ""
    return f"# {name}\n{strip_licence(text)}".rstrip() + "\n"


def looks_like_code(text: str) -> bool:
    """Return whether the text is written by hand: short lines, few digits, mostly ASCII."""
    lines = text.split("\n")
    digits = sum(character.isdigit() for character in text)
    foreign = sum(ord(character) > 127 for character in text)
    return (
        len(text) / len(lines) < 70
        and max(map(len, lines)) < 400
        and digits < 0.12 * len(text)
        and foreign < 0.02 * len(text)
    )


def strip_licence(text: str) -> str:
    """Return code without the comment block at its top, which is a licence in most files."""
    lines = text.split("\n")
    start = 0
    while start < len(lines) and (lines[start].startswith("#") or not lines[start].strip()):
        start += 1
    head = "\n".join(lines[:start])
    return (
        "\n".join(lines[start:]) if re.search(r"copyright|licen[sc]e|coding", head, re.I) else text
    )


def tidy(text: str) -> str:
    """Return prose with single blank lines and without characters that say nothing."""
    text = re.sub(r"[\u00b6\u200b\ufeff\u00ad]", "", text).replace("\u00a0", " ")
    text = re.sub(r"[\u2018\u2019]", "'", re.sub(r"[\u201c\u201d]", '"', text))
    text = re.sub(r"[ \t]+\n", "\n", text)
    text = re.sub(r"\n{3,}", "\n\n", text).strip()
    foreign = sum(ord(character) > 127 for character in text)
    usable = len(text) > 300 and foreign < 0.05 * len(text) and not GPL_TEXT.search(text)
    return text + "\n" if usable else ""


def markdown(source: str) -> str:
    """Return Markdown without comments, link targets and front matter."""
    source = re.sub(r"(?s)\A---\n.*?\n---\n|<!--.*?-->", "", source)
    source = re.sub(r"(?m)^\[[^\]]+\]:\s.*$", "", source)
    return re.sub(r"!?\[([^\]]*)\](\([^)]*\)|\[[^\]]*\])", r"\1", source)


def rust_docs(source: str) -> str:
    """Return the doc comments of a Rust file, one passage per documented item."""
    passages: list[str] = []
    current: list[str] = []
    for line in source.split("\n"):
        comment = re.match(r"\s*//[/!] ?(.*)$", line)
        if comment:
            current.append(comment.group(1))
            continue
        if len(current) > 1:
            item = re.match(r"\s*(pub (?:const |unsafe )*(?:fn|struct|enum|trait|mod)[^{;]*)", line)
            head = f"`{item.group(1).strip()}`\n\n" if item else ""
            passages.append(head + markdown("\n".join(current)))
        current = []
    return "\n\n".join(passages)


def html_text(source: str) -> str:
    """Return a page's paragraphs, headings and listings without its navigation."""
    try:
        root = lxml_html.fromstring(source.encode("utf-8"))
    except (etree.ParserError, ValueError):
        return ""
    mains = root.xpath("//main|//div[@role='main']|//div[@class='body']|//div[@id='page-content']")
    parts: list[str] = []
    _walk(mains[0] if mains else root, parts)
    return "\n\n".join(parts)


def _walk(node: etree._Element, parts: list[str]) -> None:
    for child in node:
        if not isinstance(child.tag, str) or child.tag in SKIPPED_TAGS:
            continue
        if SKIPPED_CLASS.search(f"{child.get('class', '')} {child.get('id', '')}"[:60]):
            continue
        inner = child.tag in BLOCK_TAGS and not any(
            isinstance(grand.tag, str) and grand.tag in BLOCK_TAGS
            for grand in child.iterdescendants()
        )
        if inner or child.tag in {"pre", "p", "dt"}:
            _add(child, parts)
        else:
            _walk(child, parts)


def _add(node: etree._Element, parts: list[str]) -> None:
    text = str(node.text_content())
    if node.tag == "pre":
        if text.strip():
            parts.append(re.sub(r"(?m)^(?=.)", "    ", text.strip("\n")))
        return
    text = " ".join(text.split())
    if len(text) > 2:
        marks = {"li": "- ", "h1": "# ", "h2": "# ", "h3": "# ", "h4": "# "}
        parts.append(marks.get(str(node.tag), "") + text)
