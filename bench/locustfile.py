"""Users of a server who stream chats, for locust; `bench/load.py` starts the server and this.

Each answer must equal the one that was given alone, which `LOAD_EXPECTED`, a JSON file, has. What a
user waits for its first token is the response time that locust reports as `first token`.
"""

import itertools
import json
import os
import random
import time
from pathlib import Path

from locust import HttpUser, constant, task
from questions import QUESTIONS, body_of, said

expected: dict[str, str] = json.loads(Path(os.environ["LOAD_EXPECTED"]).read_text())


class Streamer(HttpUser):
    """Asks one question after the other, all of them as often, in an order of its own."""

    wait_time = constant(0)

    def on_start(self) -> None:
        """Shuffle the questions."""
        self.questions = itertools.cycle(random.sample(QUESTIONS, len(QUESTIONS)))

    @task
    def ask(self) -> None:
        """Stream one answer, and compare it."""
        question, max_tokens = next(self.questions)
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
