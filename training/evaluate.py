"""Evaluates an exported folder with mlx-lm: held-out loss per domain, and greedy answers."""

import argparse
import json
import logging
import math
import time
from collections.abc import Iterable
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
from mlx_lm import load, stream_generate
from mlx_lm.tokenizer_utils import TokenizerWrapper

logger = logging.getLogger("evaluate")
QUESTIONS = (
    "What does shutil.copytree do?",
    "What does os.path.join do?",
    "What does json.dumps do?",
    "What does re.sub do?",
    "Explain itertools.chain.",
    "How do I use functools.lru_cache?",
    "What does pathlib.Path.mkdir do?",
    "What is collections.Counter?",
    "Explain subprocess.run.",
    "What does asyncio.gather do?",
    "How do I use csv.reader?",
    "What does random.shuffle do?",
    "What are the parameters of shutil.copytree?",
    "What does os.listdir return?",
    "Which function can create a temporary directory?",
    "What is the heapq module?",
    "Show an example of zip.",
    "What does str.split do?",
    "What is 37 * 24?",
    "What is 128 + 457?",
    "Solve 3x + 7 = 25.",
    "What is 15% of 240?",
    "What is the weather today?",
    "Who are you?",
    "hi",
    "thanks",
    "How do I cook rice?",
    "What does math.gcd return?",
)


def losses(
    model: nn.Module, tokenizer: TokenizerWrapper, folder: Path, length: int, windows: int
) -> dict[str, dict[str, float]]:
    """Return loss (nats a token), perplexity and tokens of each file's first `windows` windows."""
    found = {}
    for path in sorted(folder.glob("*.txt")):
        ids = tokenizer.encode(path.read_text(encoding="utf-8"), add_special_tokens=False)
        count = min((len(ids) - 1) // length, windows)
        total = 0.0
        for number in range(count):
            window = mx.array([ids[number * length : (number + 1) * length + 1]])
            logits = model(window[:, :-1])
            total += nn.losses.cross_entropy(logits, window[:, 1:], reduction="sum").item()
        loss = total / (count * length)
        found[path.stem] = {
            "loss": round(loss, 4),
            "perplexity": round(math.exp(loss), 3),
            "tokens": count * length,
        }
        logger.info("%-8s %s", path.stem, found[path.stem])
    return found


def answer(
    model: nn.Module, tokenizer: TokenizerWrapper, question: str, max_tokens: int
) -> dict[str, object]:
    """Return the greedy answer to one question, why it ended, and its speed."""
    messages = [{"role": "user", "content": question}]
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True)
    started = time.perf_counter()
    text, reason, count = "", "length", 0
    for part in stream_generate(model, tokenizer, prompt, max_tokens=max_tokens):
        text += part.text
        count, reason = part.generation_tokens, part.finish_reason or reason
    seconds = time.perf_counter() - started
    logger.info("\n>>> %s\n%s\n[%s, %d tokens, %.1f s]", question, text, reason, count, seconds)
    return {"question": question, "answer": text, "ended": reason, "tokens": count}


def main(argv: Iterable[str] | None = None) -> None:
    """Write the losses and the answers as JSON; computes in float32 unless told otherwise."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=Path("src/mlx_flash/assets/model"))
    parser.add_argument("--heldout", type=Path, default=Path("tests/data/heldout"))
    parser.add_argument("--out", type=Path, default=Path(".train/evaluation.json"))
    parser.add_argument("--length", type=int, default=2048)
    parser.add_argument("--windows", type=int, default=3, help="per domain; about 40 s each")
    parser.add_argument("--max-tokens", type=int, default=400)
    parser.add_argument("--question", action="append", default=[])
    parser.add_argument("--skip-losses", action="store_true")
    options = parser.parse_args(None if argv is None else list(argv))
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    model, tokenizer = load(str(options.model))[:2]
    model.set_dtype(mx.float32)
    report: dict[str, object] = {}
    if not options.skip_losses:
        report["heldout"] = losses(
            model, tokenizer, options.heldout, options.length, options.windows
        )
    questions = options.question or list(QUESTIONS)
    report["answers"] = [answer(model, tokenizer, q, options.max_tokens) for q in questions]
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
