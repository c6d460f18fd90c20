"""Builds the corpus: tokens per stream, the tokenizer, held-out text and the list of sources."""

import argparse
import hashlib
import json
import logging
import lzma
import random
import re
import sysconfig
from collections import defaultdict
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import arithmetic
import chat
import numpy as np
import rst
import smalltalk
import sources
import tokenizer as bpe
from entries import Entry, package_entries, stdlib_entries
from pages import read_code, read_page
from tokenizers import Tokenizer

logger = logging.getLogger("corpus")
CORE_MODULES = (
    "os shutil json re itertools functools pathlib collections subprocess asyncio csv random "
    "math datetime time sys string typing logging argparse statistics heapq bisect copy pickle "
    "io glob tempfile hashlib threading contextlib dataclasses enum operator textwrap urllib "
    "sqlite3 queue decimal fractions zipfile base64 struct uuid inspect str list dict set int "
    "float bytes tuple print open len range sorted zip map filter enumerate sum min max "
    "isinstance any all abs round input iter next reversed super getattr property object type "
    "concurrent socket http html unittest calendar secrets traceback types abc platform getpass "
    "fnmatch configparser zlib gzip"
)
MINOR_MODULES = "tkinter turtle msilib test curses errno token symtable xml distutils"
CORE = frozenset(CORE_MODULES.split())
MINOR = frozenset(MINOR_MODULES.split())
HELDOUT_SHARE = 0.015
NUM_HELDOUT_BYTES = 84_000


@dataclass
class Corpus:
    """Documents per stream, held-out documents per domain, and what each source gave."""

    train: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    heldout: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    report: dict[str, dict[str, object]] = field(default_factory=dict)
    seen: set[bytes] = field(default_factory=set)

    def add(self, stream: str, key: str, text: str, share: float = HELDOUT_SHARE) -> int:
        """Put one document into the training or the held-out side; return its bytes, 0 if known."""
        if stream in {"coding", "writing"}:
            text = text.replace("<|", "< |")
        digest = hashlib.md5("".join(text.split()).encode()).digest()
        if not text or digest in self.seen:
            return 0
        self.seen.add(digest)
        side = self.heldout if is_heldout(key, share) else self.train
        side[stream].append(text)
        return len(text.encode())

    def note(self, source: str, licence: str, stream: str, num_files: int, num_bytes: int) -> None:
        """Add to the list of sources what one of them gave."""
        row = self.report.setdefault(
            f"{source}/{stream}",
            {"source": source, "licence": licence, "stream": stream, "files": 0, "bytes": 0},
        )
        row["files"] = int(str(row["files"])) + num_files
        row["bytes"] = int(str(row["bytes"])) + num_bytes


def is_heldout(key: str, share: float) -> bool:
    """Return whether a file or module is held out; the same key always answers the same."""
    name = key.removeprefix("stdlib/")
    if key.startswith("stdlib/") and name in CORE | MINOR:
        return False
    return int.from_bytes(hashlib.md5(key.encode()).digest()[:4], "big") < share * 2**32


def unseen_paragraphs(text: str, seen: set[bytes]) -> str:
    """Return `text` without long paragraphs that an earlier page already had."""
    kept = []
    for paragraph in text.split("\n\n"):
        digest = hashlib.md5(paragraph.encode()).digest()
        if len(paragraph) < 120 or digest not in seen:
            kept.append(paragraph)
        seen.add(digest)
    return "\n\n".join(kept)


def add_docs(corpus: Corpus, docs: Path) -> dict[str, str]:
    """Add the prose; return the sources of the pages of Python's library reference."""
    library: dict[str, str] = {}
    paragraphs: set[bytes] = set()
    for source in sources.DOCS:
        num_files = num_bytes = 0
        root = docs / source.package / "usr/share/doc"
        for path in sorted(root.glob(source.pages)):
            page = path.relative_to(root).as_posix()
            key = f"{source.package}/{page}"
            if source.package.startswith("python3") and "/_sources/library/" in page:
                module = path.name.split(".")[0]
                library[path.name.removesuffix(".rst.txt")] = path.read_text(encoding="utf-8")
                key = f"stdlib/{module}"
            text = unseen_paragraphs(read_page(path, source.form), paragraphs)
            share = 2 * HELDOUT_SHARE if key.startswith("stdlib/") else HELDOUT_SHARE
            added = corpus.add("writing", key, text if len(text) > 200 else "", share)
            num_files, num_bytes = num_files + bool(added), num_bytes + added
        corpus.note(source.package, source.licence, "writing", num_files, num_bytes)
        logger.info("%-22s %6d pages %9d bytes", source.package, num_files, num_bytes)
    return library


def add_stdlib_code(corpus: Corpus) -> None:
    """Add the source of the running Python's standard library, tests left out."""
    root = Path(sysconfig.get_paths()["stdlib"])
    added = []
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root).as_posix()
        if sources.is_wanted(name):
            text = read_code(path, name)
            module = re.split(r"[/.]", name)[0].lstrip("_")
            added.append(corpus.add("coding", f"stdlib/{module}", text, 2 * HELDOUT_SHARE))
    corpus.note("CPython 3.11 Lib", "PSF-2.0", "coding", sum(map(bool, added)), sum(added))


def add_packages(corpus: Corpus, site: Path, rng: random.Random) -> None:
    """Add the packages' code, and conversations made from its docstrings."""
    for name, (licence, paths) in sources.wheel_files(site).items():
        rng.shuffle(paths)
        num_files = num_bytes = num_chats = chat_bytes = 0
        for path in paths:
            relative = path.relative_to(site).as_posix()
            text = read_code(path, relative) if num_bytes < sources.NUM_BYTES_PER_PACKAGE else ""
            added = corpus.add("coding", f"wheel/{relative}", text)
            num_files, num_bytes = num_files + bool(added), num_bytes + added
            module = relative.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
            if not added or any(part.startswith("_") for part in module.split(".")):
                continue
            for entry in package_entries(path, module, f"wheel/{relative}"):
                for turns in chat.conversations(entry, rng, 0.2):
                    size = corpus.add("extra", entry.origin, bpe.render(turns))
                    num_chats, chat_bytes = num_chats + bool(size), chat_bytes + size
        corpus.note(name, licence, "coding", num_files, num_bytes)
        corpus.note(name, licence, "chat", num_chats, chat_bytes)


def add_stdlib_chat(corpus: Corpus, library: dict[str, str], rng: random.Random) -> None:
    """Add the conversations about the standard library, and small talk."""
    entries = stdlib_entries(library)
    by_module: dict[str, list[Entry]] = defaultdict(list)
    num_chats = num_bytes = 0
    for entry in entries:
        by_module[entry.name.rpartition(".")[0]].append(entry)
        repeats = 2.2 if entry.origin in CORE else 0.45 if entry.origin in MINOR else 1.2
        for turns in chat.conversations(entry, rng, repeats):
            key = f"stdlib/{entry.origin}"
            size = corpus.add("chat", key, bpe.render(turns), 2 * HELDOUT_SHARE)
            num_chats, num_bytes = num_chats + bool(size), num_bytes + size
    for module, page in library.items():
        key = f"stdlib/{module.split('.')[0]}"
        for turns in chat.module_conversations(module, page_head(page), by_module[module], rng):
            size = corpus.add("chat", key, bpe.render(turns), 2 * HELDOUT_SHARE)
            num_chats, num_bytes = num_chats + bool(size), num_bytes + size
    corpus.note(
        "CPython 3.11 docstrings and library reference", "PSF-2.0", "chat", num_chats, num_bytes
    )
    talk = [bpe.render(turns) for turns in smalltalk.conversations(4000, rng)]
    corpus.train["chat"] += talk
    corpus.note("small talk (written for this model)", "MIT", "chat", len(talk), len("".join(talk)))


def page_head(page: str) -> list[tuple[str, str]]:
    """Return the paragraphs of a library page before its first object, title left out."""
    head: list[str] = []
    for line in page.split("\n"):
        if rst.OBJECT.match(line):
            break
        head.append(line)
    parts = rst.prose("\n".join(head)).split("\n\n")
    kept = [part for part in parts if not part.startswith(("#", "**Source", "    ", "-"))]
    return [("text", part) for part in kept[:4] if len(part) > 30]


def add_math(corpus: Corpus) -> None:
    """Add generated arithmetic: worksheets and conversations, other seeds held out."""
    made = 0
    for side, seed, count in ((corpus.train, 1, 24_000), (corpus.heldout, 2, 300)):
        rng = random.Random(seed)
        for _ in range(count):
            size = rng.randint(4, 16)
            if rng.random() < 0.4:
                side["math"].append(arithmetic.worksheet(size, rng) + "\n")
            else:
                pairs = list(arithmetic.problems(size, rng))
                side["math"] += [bpe.render([pair]) for pair in pairs[:-2]] + [
                    bpe.render(pairs[-2:])
                ]
        made = made or sum(map(len, side["math"]))
    corpus.note("generated arithmetic", "MIT", "math", len(corpus.train["math"]), made)


def write_heldout(corpus: Corpus, folder: Path, rng: random.Random) -> None:
    """Write one file a domain: whole documents, shuffled, long ones cut to their first part."""
    folder.mkdir(parents=True, exist_ok=True)
    corpus.heldout["chat"] += corpus.heldout.pop("extra", [])
    for domain, documents in corpus.heldout.items():
        rng.shuffle(documents)
        kept: list[str] = []
        total = 0
        for document in documents:
            document = (
                document if len(document) < 9000 else document[:8000].rsplit("\n", 1)[0] + "\n"
            )
            size = len(document.encode())
            if total + size > NUM_HELDOUT_BYTES * 1.1:
                continue
            kept.append(document)
            total += size
            if total > NUM_HELDOUT_BYTES:
                break
        (folder / f"{domain}.txt").write_text(bpe.END_OF_TEXT.join(kept), encoding="utf-8")
        logger.info("held out %-8s %4d documents %7d bytes", domain, len(kept), total)


def tokenizer_sample(corpus: Corpus, rng: random.Random) -> Iterator[str]:
    """Yield about 40 MB of training text, chat and prose over-represented."""
    for stream, budget in (("coding", 14e6), ("writing", 10e6), ("chat", 9e6), ("extra", 4e6)):
        documents = corpus.train[stream]
        for index in rng.sample(range(len(documents)), len(documents)):
            budget -= len(documents[index])
            if budget < 0:
                break
            yield re.sub(r"<\|\w+\|>\n?", "", documents[index])


def encode(tokenizer: Tokenizer, documents: list[str], rng: random.Random) -> np.ndarray:
    """Return shuffled documents as uint16 tokens, an end-of-text token after each."""
    rng.shuffle(documents)
    end = tokenizer.token_to_id(bpe.END_OF_TEXT)
    parts: list[np.ndarray] = []
    for start in range(0, len(documents), 2000):
        for encoding in tokenizer.encode_batch_fast(documents[start : start + 2000]):
            parts.append(np.array([*encoding.ids, end], dtype=np.uint16))
    return np.concatenate(parts)


def compress(job: tuple[Path, bytes]) -> int:
    """Write tokens xz-compressed; return the bytes on disk."""
    path, raw = job
    path.write_bytes(lzma.compress(raw, preset=4))
    return path.stat().st_size


def write_tokens(corpus: Corpus, tokenizer: Tokenizer, out: Path, rng: random.Random) -> None:
    """Write every stream's tokens and the list of sources."""
    jobs, counts = [], {}
    for stream, documents in corpus.train.items():
        tokens = encode(tokenizer, documents, rng)
        counts[stream] = {"documents": len(documents), "tokens": len(tokens)}
        jobs.append((out / f"{stream}.u16.xz", tokens.tobytes()))
        logger.info("%-8s %7d documents %10d tokens", stream, len(documents), len(tokens))
    with ProcessPoolExecutor(2) as pool:
        sizes = list(pool.map(compress, sorted(jobs, key=lambda job: -len(job[1]))))
    logger.info("compressed tokens: %d bytes", sum(sizes))
    report = {"streams": counts, "sources": list(corpus.report.values())}
    (out / "sources.json").write_text(json.dumps(report, indent=1) + "\n")


def build(work: Path, heldout: Path, seed: int) -> None:
    """Write the tokenizer, the tokens and the list of sources to `work`; held-out text apart."""
    corpus, rng = Corpus(), random.Random(seed)
    library = add_docs(corpus, work / "docs")
    add_stdlib_code(corpus)
    add_stdlib_chat(corpus, library, rng)
    add_packages(corpus, work / "site", rng)
    add_math(corpus)
    for stream, documents in corpus.train.items():
        logger.info(
            "%-8s %7d documents %10d bytes", stream, len(documents), sum(map(len, documents))
        )
    write_heldout(corpus, heldout, rng)
    out = work / "tokens"
    out.mkdir(parents=True, exist_ok=True)
    tokenizer = bpe.train(tokenizer_sample(corpus, rng))
    bpe.save(tokenizer, out, 2048)
    write_tokens(corpus, tokenizer, out, rng)


def main(argv: Iterable[str] | None = None) -> None:
    """Fetch the sources, or build the corpus from what was fetched."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("step", choices=("fetch", "build"))
    parser.add_argument("--work", type=Path, default=Path(".train"))
    parser.add_argument("--heldout", type=Path, default=Path("tests/data/heldout"))
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(None if argv is None else list(argv))
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if options.step == "fetch":
        sources.fetch(options.work)
    else:
        build(options.work, options.heldout, options.seed)


if __name__ == "__main__":
    main()
