"""A stand-in for the worker: it answers from a script, so that tests see what routes make of it."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any, Literal

import msgspec
from fastapi import FastAPI

from mlx_flash.server.gateway.app import create_app
from mlx_flash.server.gateway.backend import RequestError, Watched
from mlx_flash.server.gateway.reports import Reports
from mlx_flash.server.messages import (
    Accepted,
    Cancel,
    ChatPrompt,
    Counted,
    Event,
    Failed,
    Finished,
    Generate,
    ModelCard,
    Piece,
    Prompt,
    Rendered,
    Snapshot,
    Started,
    Tokenized,
    ToolCall,
)
from mlx_flash.server.options import AccessOptions

CARD = ModelCard(
    name="tiny-moe",
    model_type="qwen3_moe",
    context_tokens=4096,
    trained_context_tokens=2048,
    num_parameters=40_000_000,
    size_bytes=46_000_000,
    quantization="4 bits",
    chat_template="{{ messages }}",
    has_tools=True,
    has_thinking=True,
    layers=10,
    experts_per_layer=48,
    top_k=4,
    capacity=12,
    memory_limit_bytes=60_000_000,
    resident_bytes=12_000_000,
    slot_bytes=10_000_000,
    kv_bytes=20_000_000,
    backend="cpu",
    kernels="cpu",
    max_batch=16,
)


def finished(**changes: Any) -> Finished:
    """Return the end of an answer of two tokens to a prompt of seven, four of them remembered."""
    end = Finished(
        request=0,
        reason="stop",
        stop_text=None,
        prompt_tokens=7,
        cached_tokens=4,
        completion_tokens=2,
        reasoning_tokens=0,
        queue_s=0.001,
        prefill_s=0.02,
        decode_s=0.03,
    )
    return msgspec.structs.replace(end, **changes)


def said(*texts: str) -> list[Piece | ToolCall | Finished | Failed]:
    """Return the script of an answer that says these pieces of text."""
    return [*(Piece(0, "text", text) for text in texts), finished(completion_tokens=len(texts))]


class ScriptedAnswer:
    """An answer of `FakeBackend`. `None` in its script is a pause, seen as an idle moment."""

    def __init__(
        self, script: Iterable[Event | None], backend: "FakeBackend", wanted: Generate
    ) -> None:
        self._script = list(script)
        self._backend = backend
        self._wanted = wanted
        self._ended = False
        self._watch(wanted)

    def _watch(self, event: Watched) -> None:
        self._backend.watch(self._wanted, event)

    async def __aenter__(self) -> "ScriptedAnswer":
        return self

    async def __aexit__(self, *exc: object) -> None:
        if not self._ended:
            self._backend.cancelled += 1
            self._watch(Cancel(self._wanted.request))

    async def accepted(self, within_s: float) -> int | None:
        first = next((event for event in self._script if event is not None), None)
        if isinstance(first, Failed):
            self._ended = True
            self._watch(first)
            raise RequestError(first.kind, first.message)
        return 7

    async def events(self, idle_s: float) -> AsyncIterator[Event | None]:
        yield Accepted(0, 7)
        yield Started(0, 4)
        for event in self._script:
            await asyncio.sleep(0)
            if event is not None:
                self._watch(event)
            if isinstance(event, Failed):
                self._ended = True
                raise RequestError(event.kind, event.message)
            self._ended = self._ended or isinstance(event, Finished)
            yield event
        if not self._ended:
            await asyncio.Event().wait()  # goes on until it is cancelled


class FakeBackend:
    """Gives every request `script`; notes what was asked in `asked`, and what was `cancelled`."""

    def __init__(self, script: Iterable[Event | None] = ()) -> None:
        self.script = list(script) or said("Hel", "lo")
        self.asked: list[Generate] = []
        self.cancelled = 0
        self.card: ModelCard | None = CARD
        self.state: Literal["loading", "ready", "failed", "stopping"] = "ready"
        self.snapshot: Snapshot | None = None
        self.reports = Reports()
        self.restarts = 0
        self.watch: Callable[[Generate, Watched], None] = lambda wanted, event: None

    def report(self, snapshot: Snapshot) -> None:
        """Do as the link does when the worker reports."""
        self.snapshot = snapshot
        self.reports.add(snapshot)

    def submit(self, wanted: Generate) -> ScriptedAnswer:
        self.asked.append(wanted)
        numbered = msgspec.structs.replace(wanted, request=len(self.asked))
        return ScriptedAnswer(self.script, self, numbered)

    async def count(self, prompt: Prompt) -> Counted:
        return Counted(0, len(str(prompt)))

    async def tokenize(self, prompt: Prompt, add_special: bool = False) -> Tokenized:
        data = str(getattr(prompt, "text", prompt)).encode("utf-8", "replace")
        return Tokenized(0, list(data), [bytes([one]) for one in data])

    async def detokenize(self, tokens: list[int]) -> Rendered:
        return Rendered(0, bytes(token % 128 for token in tokens).decode())

    async def render(self, prompt: ChatPrompt) -> Rendered:
        return Rendered(0, "\n".join(f"{m['role']}: {m['content']}" for m in prompt.messages))


class InTurn(FakeBackend):
    """Gives each request the next script, and the last one to all that follow."""

    def __init__(self, *scripts: Iterable[Event | None]) -> None:
        super().__init__(scripts[0])
        self._scripts = [list(script) for script in scripts]

    def submit(self, wanted: Generate) -> ScriptedAnswer:
        self.script = self._scripts.pop(0) if len(self._scripts) > 1 else self._scripts[0]
        return super().submit(wanted)


def app_of(backend: FakeBackend, **access: Any) -> FastAPI:
    """Return the application in front of a stand-in."""
    return create_app(backend, AccessOptions(**access))


@contextlib.asynccontextmanager
async def client_of(backend: FakeBackend, **access: Any) -> AsyncIterator[Any]:
    """Yield an httpx client of the application, without a socket; a response comes whole."""
    import httpx

    transport = httpx.ASGITransport(app=app_of(backend, **access), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:8080") as client:
        yield client
