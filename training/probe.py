"""Asks the exported model many questions and counts the exact answers; writes JSON."""

import argparse
import json
import logging
import random
from collections.abc import Iterable
from pathlib import Path

import arithmetic
import chat
import mlx.core as mx
from entries import Entry, stdlib_entries
from mlx_lm import batch_generate, load

logger = logging.getLogger("probe")
MODULES = (
    "os shutil json re itertools functools pathlib collections subprocess asyncio csv random math "
    "datetime string argparse statistics heapq bisect copy io glob tempfile hashlib threading"
)


def documented(library: Path, count: int, rng: random.Random) -> list[tuple[str, str]]:
    """Return questions about objects of common modules with the answers of the training text."""
    pages = {p.name: p.read_text(encoding="utf-8") for p in sorted(library.glob("*.txt"))}
    wanted = frozenset(MODULES.split())
    entries = [entry for entry in stdlib_entries(pages) if _is_plain(entry, wanted)]
    chosen = rng.sample(entries, min(count, len(entries)))
    return [(f"What does {entry.name} do?", chat.summary(entry)) for entry in chosen]


def _is_plain(entry: Entry, wanted: frozenset[str]) -> bool:
    listed = entry.origin in wanted and entry.kind in {"function", "class", "method"}
    return listed and 20 < len(chat.summary(entry)) < 600


def main(argv: Iterable[str] | None = None) -> None:
    """Ask in batches, compare, and write every question with its answer."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=Path("src/mlx_flash/assets/model"))
    parser.add_argument("--library", type=Path, required=True, help="_sources/library of the docs")
    parser.add_argument("--count", type=int, default=60)
    parser.add_argument("--max-tokens", type=int, default=220)
    parser.add_argument("--out", type=Path, default=Path(".train/probe.json"))
    options = parser.parse_args(None if argv is None else list(argv))
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    rng = random.Random(3)
    sums = list(arithmetic.problems(options.count, rng))
    asked = {"docs": documented(options.library, options.count, rng), "arithmetic": sums}
    model, tokenizer = load(str(options.model))[:2]
    model.set_dtype(mx.float32)
    report: dict[str, object] = {}
    for kind, pairs in asked.items():
        prompts = [
            tokenizer.apply_chat_template(
                [{"role": "user", "content": question}], add_generation_prompt=True
            )
            for question, _ in pairs
        ]
        texts = batch_generate(model, tokenizer, prompts, max_tokens=options.max_tokens).texts
        rows = [
            {"question": question, "expected": expected, "answer": text.strip()}
            for (question, expected), text in zip(pairs, texts, strict=True)
        ]
        exact = sum(row["expected"].strip() == row["answer"] for row in rows)
        report[kind] = {"exact": exact, "asked": len(rows), "rows": rows}
        logger.info("%s: %d of %d exact", kind, exact, len(rows))
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
