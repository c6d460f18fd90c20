"""Loads a server with streaming clients: `python bench/load.py [OPTIONS] [-- SERVE OPTIONS]`.

Starts `mlx-flash serve` with the options after `--`, and locust against it (pip install locust).
Prints errors, answers that differ from those given alone, time to first token, tokens per second,
and the memory of both processes over time; ends with one JSON line.
"""

import argparse
import csv
import json
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from pathlib import Path
from typing import Any

import psutil

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


def counter(name: str) -> float:
    """Return a value of /metrics, summed over its labels."""
    with urllib.request.urlopen(f"http://127.0.0.1:{PORT}/metrics", timeout=30) as response:
        lines = response.read().decode().splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name))


def watch(server: int, seen: list[tuple[float, int, int]], stop: threading.Event) -> None:
    """Note the memory of the gateway and of the worker every five seconds."""
    start_s = time.monotonic()
    gateway = psutil.Process(server)
    while not stop.wait(5):
        worker = gateway.children()[0]
        seen.append(
            (time.monotonic() - start_s, gateway.memory_info().rss, worker.memory_info().rss)
        )


def measure(users: int, minutes: float, server: int) -> dict[str, Any]:
    """Run locust; return what it and we saw."""
    seen: list[tuple[float, int, int]] = []
    stop = threading.Event()
    watching = threading.Thread(target=watch, args=(server, seen, stop))
    with tempfile.TemporaryDirectory() as folder:
        command = [
            *(str(Path(sys.executable).parent / "locust"), "-f", str(HERE / "locustfile.py")),
            *("--headless", "--users", str(users), "--spawn-rate", str(users)),
            *("--run-time", f"{int(60 * minutes)}s", "--stop-timeout", "120"),
            *("--host", f"http://127.0.0.1:{PORT}", "--csv", f"{folder}/run", "--only-summary"),
        ]
        watching.start()
        before, start_s = counter("vllm:generation_tokens_total"), time.monotonic()
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        tokens = counter("vllm:generation_tokens_total") - before
        seconds = time.monotonic() - start_s
        stop.set()
        watching.join()
        with open(f"{folder}/run_stats.csv") as file:
            rows = {row["Name"]: row for row in csv.DictReader(file)}
        with open(f"{folder}/run_failures.csv") as file:
            failures = [f"{row['Error']}: {row['Occurrences']}" for row in csv.DictReader(file)]
    if "answer" not in rows:
        sys.stderr.write(done.stderr)
        raise SystemExit("locust saw no answer.")
    third = max(1, len(seen) // 3)
    return {
        "users": users,
        "minutes": minutes,
        "answers": int(rows["answer"]["Request Count"]),
        "failures": failures,
        "tokens_per_s": round(tokens / seconds, 1),
        "ttft_p50_s": float(rows["first token"]["50%"]) / 1e3,
        "ttft_p99_s": float(rows["first token"]["99%"]) / 1e3,
        "gateway_rss_mb": [
            round(max(s[1] for s in part) / 1e6, 1) for part in _thirds(seen, third)
        ],
        "worker_rss_mb": [round(max(s[2] for s in part) / 1e6, 1) for part in _thirds(seen, third)],
    }


def _thirds(seen: list[Any], third: int) -> list[list[Any]]:
    return [part for part in (seen[:third], seen[third : 2 * third], seen[2 * third :]) if part]


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
        runs = [measure(users, given.minutes, server.pid) for users in given.users]
    finally:
        server.terminate()
        server.wait(60)
    for run in runs:
        for name, value in run.items():
            sys.stdout.write(f"{name:16} {value}\n")
    sys.stdout.write(json.dumps({"serve": serve, "runs": runs}) + "\n")


if __name__ == "__main__":
    main()
