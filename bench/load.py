"""Loads a server with streaming clients: `python bench/load.py [OPTIONS] [-- SERVE OPTIONS]`.

Starts `mlx-flash serve` with the options after `--`, and locust against it (pip install locust).
Prints errors, answers that differ from those given alone, time to first token, tokens per second,
what was read and waited for per token, and the memory of both processes over time; ends with one
JSON line.
"""

import argparse
import csv
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from questions import answered_alone

HERE = Path(__file__).parent
PORT = 8123


def start(options: list[str]) -> "subprocess.Popen[bytes]":
    """Start a server and wait until it answers."""
    command = [str(Path(sys.executable).parent / "mlx-flash"), "serve", "--port", str(PORT)]
    server = subprocess.Popen([*command, "--prompt-cache-gb", "0", *options])
    while server.poll() is None:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{PORT}/health", timeout=5):
                return server
        except OSError:
            time.sleep(0.5)
    raise SystemExit("the server does not start.")


@dataclass(frozen=True)
class Sample:
    """What a server has done so far, and the memory that its two processes hold, in bytes."""

    at_s: float
    tokens: float
    hits: float
    misses: float
    bytes_read: float
    stall_s: float
    gateway: int
    worker: int


COUNTERS = (
    "vllm:generation_tokens_total",
    "mlx_flash_expert_hits_total",
    "mlx_flash_expert_misses_total",
    "mlx_flash_expert_bytes_read_total",
    "mlx_flash_expert_stall_seconds_total",
)


def sample(server: "psutil.Process") -> Sample:
    """Read /metrics, values summed over their labels, and the memory of both processes."""
    with urllib.request.urlopen(f"http://127.0.0.1:{PORT}/metrics", timeout=30) as response:
        lines = [line for line in response.read().decode().splitlines() if line[:1] != "#"]
    values = [
        sum(float(line.rsplit(" ", 1)[1]) for line in lines if re.split("[ {]", line)[0] == name)
        for name in COUNTERS
    ]
    worker = server.children()[0]
    return Sample(time.monotonic(), *values, server.memory_info().rss, worker.memory_info().rss)


def watch(server: int, seen: list[Sample], stop: threading.Event) -> None:
    """Take a sample every two seconds."""
    gateway = psutil.Process(server)
    while not stop.wait(2):
        seen.append(sample(gateway))


def measure(users: int, minutes: float, server: int, alone: dict[str, str]) -> dict[str, Any]:
    """Run locust, whose users know the answers given `alone`; return what it and we saw."""
    seen: list[Sample] = []
    stop = threading.Event()
    watching = threading.Thread(target=watch, args=(server, seen, stop))
    with tempfile.TemporaryDirectory() as folder:
        command = [
            *(str(Path(sys.executable).parent / "locust"), "-f", str(HERE / "locustfile.py")),
            *("--headless", "--users", str(users), "--spawn-rate", str(users)),
            *("--run-time", f"{int(60 * minutes)}s", "--stop-timeout", "120"),
            *("--host", f"http://127.0.0.1:{PORT}", "--csv", f"{folder}/run", "--only-summary"),
        ]
        expected = Path(folder, "expected.json")
        expected.write_text(json.dumps(alone))
        environment = {**os.environ, "LOAD_EXPECTED": str(expected)}
        watching.start()
        done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment)
        stop.set()
        watching.join()
        with open(f"{folder}/run_stats.csv") as file:
            rows = {row["Name"]: row for row in csv.DictReader(file)}
        with open(f"{folder}/run_failures.csv") as file:
            failures = [f"{row['Error']}: {row['Occurrences']}" for row in csv.DictReader(file)]
    if "answer" not in rows:
        sys.stderr.write(done.stderr)
        raise SystemExit("locust saw no answer.")
    return {
        "users": users,
        "minutes": minutes,
        "answers": int(rows["answer"]["Request Count"]),
        "failures": failures,
        "ttft_p50_s": float(rows["first token"]["50%"]) / 1e3,
        "ttft_p99_s": float(rows["first token"]["99%"]) / 1e3,
        **rates(under_load(seen, 60 * minutes)),
        "gateway_rss_mb": thirds([s.gateway for s in seen]),
        "worker_rss_mb": thirds([s.worker for s in seen]),
    }


def under_load(seen: list[Sample], seconds: float) -> tuple[Sample, Sample]:
    """Return the first and the last sample while all users were there.

    Users come with the first token and leave, each after its answer, when the time is up.
    """
    first = next((s for s in seen if s.tokens > seen[0].tokens), seen[0])
    return first, max((s for s in seen if s.at_s <= first.at_s + seconds), key=lambda s: s.at_s)


def rates(window: tuple[Sample, Sample]) -> dict[str, float]:
    """Return what a second and a token took between two samples."""
    first, last = window
    tokens = max(1.0, last.tokens - first.tokens)
    hits, misses = last.hits - first.hits, last.misses - first.misses
    return {
        "tokens_per_s": round(tokens / (last.at_s - first.at_s), 2),
        "hit_rate": round(hits / max(1.0, hits + misses), 3),
        "mb_read_per_token": round((last.bytes_read - first.bytes_read) / tokens / 1e6, 1),
        "stall_ms_per_token": round(1e3 * (last.stall_s - first.stall_s) / tokens, 1),
    }


def thirds(values: list[int]) -> list[float]:
    """Return the most, in MB, that each third of a run saw."""
    third = -(-len(values) // 3)
    parts = [values[at : at + third] for at in range(0, len(values), third)]
    return [round(max(part) / 1e6, 1) for part in parts]


def main() -> None:
    """Measure each number of users against one server."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--users", type=int, nargs="+", default=[32])
    options.add_argument("--minutes", type=float, default=10.0)
    own, serve = sys.argv[1:], []
    if "--" in own:
        place = own.index("--")
        own, serve = own[:place], own[place + 1 :]
    given = options.parse_args(own)
    server = start(serve)
    try:
        alone = answered_alone(f"http://127.0.0.1:{PORT}")
        runs = [measure(users, given.minutes, server.pid, alone) for users in given.users]
    finally:
        server.terminate()
        server.wait(60)
    for run in runs:
        for name, value in run.items():
            sys.stdout.write(f"{name:18} {value}\n")
    sys.stdout.write(json.dumps({"serve": serve, "runs": runs}) + "\n")


if __name__ == "__main__":
    main()
