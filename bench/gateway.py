"""Measures what the gateway adds to each token: `python bench/gateway.py [--streams 32]`.

A stand-in for the worker sends every stream a token at once, as a batch does, at a steady pace; the
text of a token is the time at which it was sent. Clients in a process of their own read them over
HTTP. All clocks are the machine's monotonic one.
"""

import argparse
import asyncio
import json
import os
import socket
import statistics
import subprocess
import sys
import threading
import time

import msgspec
import uvicorn

from mlx_flash.server.channel import WorkerEnd
from mlx_flash.server.gateway.app import create_app
from mlx_flash.server.gateway.link import WorkerLink
from mlx_flash.server.messages import (
    Accepted,
    Finished,
    Generate,
    ModelCard,
    Piece,
    Ready,
    Started,
    Stop,
)
from mlx_flash.server.options import AccessOptions, QueueOptions, WorkerOptions

_NOTHING = {int: 0, str: "", bool: False, int | None: None}
CARD = ModelCard(
    **{
        field.name: 4096 if field.name == "context_tokens" else _NOTHING[field.type]
        for field in msgspec.structs.fields(ModelCard)
        if field.default is msgspec.NODEFAULT and field.default_factory is msgspec.NODEFAULT
    }
)


def pace(descriptor: int, tokens: int, per_s: float) -> None:
    """Be a worker: send every open stream a token, `per_s` times a second."""
    end = WorkerEnd(socket.socket(fileno=descriptor))
    left: dict[int, int] = {}
    end.send([Ready(CARD)])

    def listen() -> None:
        for message in end.received():
            if isinstance(message, Generate):
                end.send([Accepted(message.request, 7), Started(message.request, 0)])
                left[message.request] = tokens
            elif isinstance(message, Stop):
                break
        os._exit(0)

    threading.Thread(target=listen, daemon=True).start()
    next_s = time.monotonic()
    while True:
        next_s += 1 / per_s
        time.sleep(max(0.0, next_s - time.monotonic()))
        events = []
        now = f"{time.monotonic():.7f} "
        for request in list(left):
            left[request] -= 1
            events.append(Piece(request, "text", now))
            if left[request] == 0:
                del left[request]
                events.append(
                    Finished(
                        request=request,
                        reason="length",
                        stop_text=None,
                        prompt_tokens=7,
                        cached_tokens=0,
                        completion_tokens=tokens,
                        reasoning_tokens=0,
                        queue_s=0.0,
                        prefill_s=0.0,
                        decode_s=0.0,
                    )
                )
        end.send(events)


async def read_streams(port: int, streams: int) -> None:
    """Read so many streams; print the latency of every token, in seconds, as JSON."""
    latencies: list[float] = []

    async def one() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        body = json.dumps({"messages": [{"role": "user", "content": "x"}], "stream": True}).encode()
        writer.write(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"
            b"Content-Length: %d\r\n\r\n" % len(body) + body
        )
        while line := await reader.readline():
            now = time.monotonic()
            if line.startswith(b"data: [DONE]"):
                break
            if b'"content":"' in line:
                sent = line.split(b'"content":"', 1)[1].split(b'"', 1)[0]
                if sent:
                    latencies.append(now - float(sent))
        writer.close()

    await asyncio.gather(*(one() for _ in range(streams)))
    sys.stdout.write(json.dumps(latencies))


async def measure(streams: int, tokens: int, per_s: float) -> dict[str, float]:
    """Return the median, P99 and maximum of the latency, in ms, of all but the first tokens."""
    command = (sys.executable, __file__, "--pace", str(tokens), str(per_s))
    link = WorkerLink(WorkerOptions(), QueueOptions(), command=command)
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listening.bind(("127.0.0.1", 0))
    config = uvicorn.Config(create_app(link, AccessOptions()), log_level="warning")
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve(sockets=[listening]))
    link.start()
    await link.loaded.wait()
    port = listening.getsockname()[1]
    clients = await asyncio.create_subprocess_exec(
        sys.executable, __file__, "--read", str(port), str(streams), stdout=subprocess.PIPE
    )
    output, _ = await clients.communicate()
    server.should_exit = True
    await serving
    await link.stop()
    latencies = sorted(json.loads(output)[streams * 5 :])
    at = {"p50": 0.5, "p90": 0.9, "p99": 0.99}
    found = {name: latencies[int(share * (len(latencies) - 1))] for name, share in at.items()}
    found["max"], found["mean"] = latencies[-1], statistics.fmean(latencies)
    return {f"{name}_ms": round(1e3 * value, 3) for name, value in found.items()}


def main() -> None:
    """Measure three times; print each run, then one JSON line."""
    if sys.argv[1:2] == ["--pace"]:
        pace(int(sys.argv[4]), int(sys.argv[2]), float(sys.argv[3]))
    if sys.argv[1:2] == ["--read"]:
        asyncio.run(read_streams(int(sys.argv[2]), int(sys.argv[3])))
        return
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--streams", type=int, default=32)
    options.add_argument("--tokens", type=int, default=200, help="of each stream")
    options.add_argument("--per-s", type=float, default=20.0, help="tokens a second of a stream")
    given = options.parse_args()
    runs = [asyncio.run(measure(given.streams, given.tokens, given.per_s)) for _ in range(3)]
    for run in runs:
        sys.stdout.write("  ".join(f"{name} {value}" for name, value in run.items()) + "\n")
    line = {"streams": given.streams, "per_s": given.per_s, "runs": runs}
    sys.stdout.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
