"""What `bench/load.py` and its locust users ask, and how they read the answers."""

import json
import time
from typing import Any

import httpx

QUESTIONS = (
    ("What does shutil.copytree do?", 48),
    ("How do I use itertools.chain?", 96),
    ("os.path.join", 24),
    ("Explain json.dumps with an example, please.", 80),
    ("re.sub", 64),
    ("What is a context manager? How do I write one? " * 8, 40),
    ("How do I open a file and read its lines?", 120),
    ("What does functools.lru_cache do, and when should I not use it? " * 20, 32),
)
"""Questions with the tokens that an answer may have."""


def body_of(question: str, max_tokens: int) -> dict[str, Any]:
    """Return the request for a question."""
    return {
        "messages": [{"role": "user", "content": question}],
        "max_tokens": max_tokens,
        "temperature": 0,
        "stream": True,
    }


def said(lines: Any) -> tuple[str, float | None, str | None]:
    """Return what a stream says, when its first token came, and what went wrong."""
    text, first_s = "", None
    for line in lines:
        if not line.startswith(b"data: ") or line == b"data: [DONE]":
            continue
        chunk = json.loads(line[6:])
        if "error" in chunk:
            return text, first_s, chunk["error"]["message"]
        for choice in chunk["choices"]:
            piece = choice["delta"].get("content") or ""
            if piece and first_s is None:
                first_s = time.perf_counter()
            text += piece
    return text, first_s, None


def answered_alone(host: str) -> dict[str, str]:
    """Ask every question once, one after the other; return the answers."""
    answers = {}
    for question, max_tokens in QUESTIONS:
        url, body = f"{host}/v1/chat/completions", body_of(question, max_tokens)
        with httpx.stream("POST", url, json=body, timeout=600) as response:
            response.raise_for_status()
            answers[question] = said(line.encode() for line in response.iter_lines())[0]
    return answers
