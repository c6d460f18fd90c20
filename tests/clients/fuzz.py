"""Sends a server nonsense: `fuzz.py BASE_URL [REQUESTS]`. No request may stop the next one.

Sound bodies are changed at random (values of other types, extremes, cut JSON, other bytes) and
sent to every route, eight at a time; half of the streams are left early. Now and then a sound
question is asked, whose answer must stay what it was at the start. Answers of 5xx are counted but
for 501, which says that something is not there.
"""

import collections
import concurrent.futures
import copy
import json
import random
import socket
import sys
import urllib.error
import urllib.request
from typing import Any
from urllib.parse import urlsplit

CHAT = {
    "messages": [{"role": "user", "content": "os.path.join"}],
    "max_tokens": 8,
    "temperature": 0,
}
BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {
        **CHAT,
        "tools": [
            {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
        ],
        "stop": ["\n"],
        "n": 2,
        "seed": 1,
        "logprobs": True,
        "top_logprobs": 2,
        "logit_bias": {"5": 1},
        "response_format": {"type": "json_object"},
        "stream_options": {"include_usage": True},
    },
    "/v1/completions": {"prompt": ["a", "b"], "max_tokens": 4, "echo": True, "logprobs": 1},
    "/v1/responses": {"input": [{"role": "user", "content": "hi"}], "max_output_tokens": 4},
    "/v1/messages": {**CHAT, "system": [{"type": "text", "text": "s"}]},
    "/v1/messages/count_tokens": CHAT,
    "/api/chat": {**CHAT, "options": {"num_predict": 4}, "format": "json"},
    "/api/generate": {"prompt": "hi", "options": {"num_predict": 4}},
    "/tokenize": {"content": "hi", "with_pieces": True},
    "/detokenize": {"tokens": [5, 6]},
    "/apply-template": CHAT,
    "/completion": {"prompt": "hi", "n_predict": 4},
}
ODD: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2**31, 2**63, 2**64, -(2**63), 1e308, 1e-320, 10**30),
    *("", "\x00", "\ud800", "🙂" * 50, "x" * 5000, "../../etc/passwd", "{{ 7*7 }}", "<think>"),
    *([], [[]], [None], {}, {"": {}}, [[[[[[[[]]]]]]]], "<tool_call>", "</tool_call>"),
)


def mutated(rng: random.Random, body: Any) -> Any:
    """Return a body with a few places changed."""
    body = json.loads(json.dumps(body))
    for _ in range(rng.randint(0, 3)):
        holder = body
        while True:
            keys = list(holder) if isinstance(holder, dict) else list(range(len(holder)))
            if not keys:
                break
            key = rng.choice(keys)
            if isinstance(holder[key], (dict, list)) and holder[key] and rng.random() < 0.6:
                holder = holder[key]
                continue
            if rng.random() < 0.15:
                del holder[key]
            else:
                holder[key] = copy.deepcopy(rng.choice(ODD))
            break
    if rng.random() < 0.3:
        body[rng.choice(("stream", "model", "tool_choice", "top_p", "x" * 100))] = copy.deepcopy(
            rng.choice(ODD)
        )
    return body


def encoded(rng: random.Random, body: Any) -> bytes:
    """Return a body as bytes, at times damaged."""
    content = json.dumps(body).encode()
    kind = rng.random()
    if kind < 0.08:
        return content[: rng.randint(0, len(content))]
    if kind < 0.14:
        place = rng.randint(0, len(content))
        return content[:place] + bytes(rng.randrange(256) for _ in range(8)) + content[place:]
    if kind < 0.16:
        return b"[" * 100_000
    return content


def send(base_url: str, path: str, content: bytes, leave: bool) -> int:
    """Return the status of one request; 0 when the connection was left or closed."""
    if leave:
        host = urlsplit(base_url)
        with socket.create_connection((host.hostname, host.port), timeout=60) as connection:
            head = (
                f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(content)}\r\n\r\n"
            )
            connection.sendall(head.encode() + content)
            connection.settimeout(0.3)
            try:
                connection.recv(200)
            except OSError:
                return 0
        return 0
    try:
        with urllib.request.urlopen(base_url + path, content, timeout=120) as response:
            response.read()
            return int(response.status)
    except urllib.error.HTTPError as error:
        error.read()
        return error.code


def answer(base_url: str) -> str:
    """Return the answer to a sound question."""
    content = json.dumps(CHAT).encode()
    with urllib.request.urlopen(
        f"{base_url}/v1/chat/completions", content, timeout=120
    ) as response:
        return str(json.load(response)["choices"][0]["message"]["content"])


def main() -> int:
    """Send the requests; print how many got which status."""
    base_url = sys.argv[1].rstrip("/")
    count = int(sys.argv[2]) if len(sys.argv) > 2 else 1000
    rng = random.Random(1)
    expected = answer(base_url)
    statuses: collections.Counter[int] = collections.Counter()
    faults = []
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        for start in range(0, count, 50):
            sent = []
            for _ in range(min(50, count - start)):
                path = rng.choice(list(BODIES))
                content = encoded(rng, mutated(rng, BODIES[path]))
                sent.append(
                    (path, content, pool.submit(send, base_url, path, content, rng.random() < 0.15))
                )
            for path, content, future in sent:
                status = future.result()
                statuses[status] += 1
                if status >= 500 and status != 501:
                    faults.append((status, path, content[:300]))
            if answer(base_url) != expected:
                sys.stderr.write(
                    f"after {start + 50} requests a sound question is answered otherwise\n"
                )
                return 1
    for fault in faults:
        sys.stderr.write(f"{fault}\n")
    sys.stdout.write(
        json.dumps({"requests": count, "statuses": dict(sorted(statuses.items()))}) + "\n"
    )
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main())
