"""Users of a server who stream chats, for locust; `bench/load.py` starts the server and this.

Before they come, every question is asked alone; each answer must then equal that one. What a user
waits for its first token is the response time that locust reports as `first token`.
"""

import json
import random
import time
from typing import Any

from locust import HttpUser, constant, events, task

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

expected: dict[str, str] = {}


def body_of(question: str, max_tokens: int) -> dict[str, Any]:
    """Return the request for a question."""
    return {
        "messages": [{"role": "user", "content": question}],
        "max_tokens": max_tokens,
        "temperature": 0,
        "stream": True,
    }


@events.test_start.add_listener
def ask_alone(environment: Any, **_: Any) -> None:
    """Ask every question once, one after the other."""
    import requests

    for question, max_tokens in QUESTIONS:
        url = f"{environment.host}/v1/chat/completions"
        with requests.post(url, json=body_of(question, max_tokens), stream=True) as response:
            response.raise_for_status()
            expected[question] = said(response.iter_lines())[0]


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


class Streamer(HttpUser):
    """Asks one question after the other."""

    wait_time = constant(0)

    @task
    def ask(self) -> None:
        """Stream one answer, and compare it."""
        question, max_tokens = random.choice(QUESTIONS)
        start_s = time.perf_counter()
        body = body_of(question, max_tokens)
        with self.client.post(
            "/v1/chat/completions", json=body, stream=True, catch_response=True, name="answer"
        ) as response:
            if response.status_code != 200:
                response.failure(f"status {response.status_code}")
                return
            text, first_s, wrong = said(response.iter_lines())
            if wrong is not None:
                response.failure(wrong)
            elif text != expected[question]:
                response.failure(f"another answer than alone to {question[:20]!r}")
            else:
                response.success()
        self.environment.events.request.fire(
            request_type="SSE",
            name="first token",
            response_time=1e3 * ((first_s or time.perf_counter()) - start_s),
            response_length=0,
            exception=None,
        )
