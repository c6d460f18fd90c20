"""Measures how fast a server answers /health while it computes a prompt of 4,000 tokens.

`python bench/health.py URL`: the server must have room for the prompt (`--max-context 8192`).
"""

import http.client
import json
import random
import statistics
import sys
import threading
import time
import urllib.request
from urllib.parse import urlsplit


def main() -> None:
    """Ask for /health until the long prompt is answered; print the times."""
    base_url = sys.argv[1].rstrip("/")
    tokens = random.sample(range(100, 8000), 4000)
    body = json.dumps({"prompt": tokens, "max_tokens": 1}).encode()
    took: list[float] = []

    def compute() -> None:
        start_s = time.perf_counter()
        with urllib.request.urlopen(f"{base_url}/v1/completions", body, timeout=600) as response:
            response.read()
        took.append(time.perf_counter() - start_s)

    computing = threading.Thread(target=compute)
    computing.start()
    address = urlsplit(base_url)
    connection = http.client.HTTPConnection(address.hostname or "", address.port)
    times = []
    while computing.is_alive():
        start_s = time.perf_counter()
        connection.request("GET", "/health")
        connection.getresponse().read()
        times.append(1e3 * (time.perf_counter() - start_s))
        time.sleep(0.01)
    computing.join()
    times.sort()
    found = {
        "prompt_s": round(took[0], 2),
        "asked": len(times),
        "p50_ms": round(statistics.median(times), 2),
        "p99_ms": round(times[int(0.99 * (len(times) - 1))], 2),
        "max_ms": round(times[-1], 2),
    }
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
