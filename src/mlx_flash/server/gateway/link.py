"""The gateway's link to the worker: it starts it, asks it, and starts another when it dies."""

import asyncio
import itertools
import logging
import time
from collections.abc import Callable, Sequence
from typing import Literal

import msgspec

from ..channel import framed
from ..messages import (
    Accepted,
    Cancel,
    ChatPrompt,
    Count,
    Counted,
    Detokenize,
    Failed,
    FailureKind,
    Finished,
    FromWorker,
    Generate,
    LoadFailed,
    Loading,
    ModelCard,
    Piece,
    Prefilled,
    Prompt,
    Ready,
    Render,
    Rendered,
    Snapshot,
    Started,
    Stop,
    Tokenize,
    Tokenized,
    ToolCall,
)
from ..options import QueueOptions, WorkerOptions
from .answers import LiveAnswer, numbered, unspeakable
from .backend import RequestError, Watched
from .process import WORKER, WorkerProcess
from .questions import Question, Questions, R
from .reports import Reports

_log = logging.getLogger(__name__)

_SILENCE_S = 120.0  # a worker reports twice a second, whatever it computes
_BACK_OFF_S = (0.0, 1.0, 5.0, 15.0, 30.0)  # before another worker, by how many died in a row
_GIVE_UP_AFTER = 3
_ATTEMPTS = 2  # a request that was on two workers when they died does not get a third

State = Literal["loading", "ready", "failed", "stopping"]


class WorkerLink:
    """The `Backend` whose answers come from a worker process."""

    def __init__(
        self,
        worker: WorkerOptions,
        queue: QueueOptions,
        notice: Callable[[str], None] = _log.info,
        command: Sequence[str] = WORKER,
    ) -> None:
        """Start nothing yet. `notice` is told what whoever started the server should know.

        `command` starts a worker.
        """
        self._command = command
        self.card: ModelCard | None = None
        self.state: State = "loading"
        self.snapshot: Snapshot | None = None
        self.reports = Reports()
        self.restarts = 0
        self.failure: LoadFailed | None = None
        self.loaded = asyncio.Event()
        self.watch: Callable[[Generate, Watched], None] = lambda wanted, event: None
        self._worker_options = worker
        self._queue_options = queue
        self._notice = notice
        self._numbers = itertools.count(1)
        self._most_answers = worker.max_batch + queue.max_waiting
        self._answers: dict[int, LiveAnswer] = {}
        self._questions = Questions(self._send)
        self._process: WorkerProcess | None = None
        self._running: asyncio.Task[None] | None = None
        self._started_s = 0.0
        self._stopping = False

    def submit(self, wanted: Generate) -> LiveAnswer:
        """Begin an answer; see `Backend`."""
        if self.state == "stopping":
            why = "the server is stopping: ask again later."
            raise self._refused(wanted, "unavailable", why)
        if self.failure is not None:
            why = f"the model is not loaded: {self.failure.message}"
            raise self._refused(wanted, "unavailable", why)
        if len(self._answers) >= self._most_answers:
            why = f"the line is full with {len(self._answers)} requests: ask again later."
            raise self._refused(wanted, "overloaded", why)
        number = next(self._numbers)
        wanted, timeout_s = numbered(wanted, number), self._queue_options.timeout_s
        try:
            answer = LiveAnswer(wanted, timeout_s, self._cancel)
        except (UnicodeEncodeError, OverflowError):
            raise unspeakable() from None
        self._answers[number] = answer
        self.watch(wanted, wanted)
        if self.state == "ready":
            self._send(answer.frame)
        return answer

    def _refused(self, wanted: Generate, kind: FailureKind, message: str) -> RequestError:
        """Return the error to raise, which `watch` is told of."""
        self.watch(wanted, Failed(wanted.request, kind, message))
        return RequestError(kind, message)

    async def count(self, prompt: Prompt) -> Counted:
        """Return the number of tokens of a prompt."""
        return await self._ask(Count(next(self._numbers), prompt), Counted)

    async def tokenize(self, prompt: Prompt, add_special: bool = False) -> Tokenized:
        """Return the tokens of a prompt."""
        number = next(self._numbers)
        question = Tokenize(request=number, prompt=prompt, add_special=add_special)
        return await self._ask(question, Tokenized)

    async def detokenize(self, tokens: list[int]) -> Rendered:
        """Return the text of tokens."""
        return await self._ask(Detokenize(next(self._numbers), tokens), Rendered)

    async def render(self, prompt: ChatPrompt) -> Rendered:
        """Return a chat as the template writes it."""
        return await self._ask(Render(next(self._numbers), prompt), Rendered)

    async def _ask(self, question: Question, kind: type[R]) -> R:
        if self.state != "ready":
            raise RequestError("unavailable", "the model is being loaded: ask again later.")
        return await self._questions.ask(question, kind)

    def _send(self, frame: bytes) -> None:
        if self._process is not None:
            self._process.channel.send(frame)

    def _cancel(self, answer: LiveAnswer) -> None:
        if self._answers.pop(answer.wanted.request, None) is not None:
            self._send(framed(Cancel(answer.wanted.request)))
            self.watch(answer.wanted, Cancel(answer.wanted.request))

    @property
    def under_way(self) -> int:
        """How many requests are not answered yet."""
        return len(self._answers)

    def start(self) -> None:
        """Keep a worker running from now on."""
        self._running = asyncio.create_task(self._keep_running())

    @property
    def worker_pid(self) -> int | None:
        """The number of the worker's process, if there is one."""
        return self._process.pid if self._process else None

    @property
    def drain_s(self) -> float:
        """Seconds that answers under way have when the server stops."""
        return self._queue_options.drain_s

    async def stop(self, hurried: Callable[[], bool] = lambda: False) -> None:
        """Refuse new requests, wait for the answers under way unless `hurried`, end the worker."""
        self.state, self._stopping = "stopping", True
        deadline = time.monotonic() + self._queue_options.drain_s
        while self._answers and time.monotonic() < deadline and self._process is not None:
            if hurried():
                break
            await asyncio.sleep(0.05)
        self._fail_all("the server is stopping: ask again later.")
        self._send(framed(Stop()))
        if self._running is not None and self._process is not None:
            await asyncio.wait({self._running}, timeout=self._queue_options.drain_s)
        if self._running is not None:
            self._running.cancel()
            await asyncio.gather(self._running, return_exceptions=True)

    async def _keep_running(self) -> None:
        died = 0  # in a row, without having been ready
        while not self._stopping:
            await asyncio.sleep(_BACK_OFF_S[min(died, len(_BACK_OFF_S) - 1)])
            was_ready, how = await self._run_worker()
            if self._stopping:
                return
            self.state, self.snapshot = "loading", None
            self.reports.clear()
            self.restarts += 1
            if was_ready:  # else nobody was asked
                self._recover()
            died = 0 if was_ready else died + 1
            if self.card is None and self._is_hopeless(died, how):
                return
            self._notice(f"the worker died ({how}): starting another.")

    async def _run_worker(self) -> tuple[bool, str]:
        """Start a worker and hear it out; return whether it was ever ready, and how it ended."""
        try:
            process = await WorkerProcess.start(self._worker_options, self._command)
        except OSError as error:
            return False, f"it cannot be started: {error.strerror or error}"
        self._process, self._started_s = process, time.monotonic()
        was_ready = False
        try:
            while messages := await self._next_messages(process):
                for message in messages:
                    was_ready = was_ready or isinstance(message, Ready)
                    self._take(message)
        except msgspec.MsgspecError as error:
            self._notice(f"the worker says what makes no sense: {error}.")
        finally:
            self._process = None
            how = await process.end()
        return was_ready, how

    async def _next_messages(self, process: WorkerProcess) -> list[FromWorker] | None:
        try:
            return await asyncio.wait_for(process.channel.receive(), _SILENCE_S)
        except asyncio.TimeoutError:
            self._notice(f"the worker has been silent for {_SILENCE_S:.0f} s: ending it.")
            return None

    def _is_hopeless(self, died: int, how: str) -> bool:
        """Give up on a model that was never loaded, when trying again would end in the same way."""
        if died >= _GIVE_UP_AFTER and self.failure is None:
            why = f"the worker died {died} times while it loaded the model ({how}); if memory was "
            self.failure = LoadFailed(f"{why}out, give --memory.", False)
        if self.failure is None or not (self.failure.users_fault or died >= _GIVE_UP_AFTER):
            return False
        self.state = "failed"
        self._fail_all(f"the model cannot be loaded: {self.failure.message}")
        self.loaded.set()
        return True

    def _take(self, message: FromWorker) -> None:
        """Do what one message of the worker asks for."""
        if isinstance(message, (Accepted, Started, Prefilled, Piece, ToolCall, Finished)):
            self._hand_out(message)
        elif isinstance(message, (Failed, Counted, Tokenized, Rendered)):
            if not self._questions.take(message) and isinstance(message, Failed):
                self._hand_out(message)
        elif isinstance(message, Snapshot):
            self.snapshot = message
            self.reports.add(message)
        elif isinstance(message, Ready):
            self._become_ready(message)
        elif isinstance(message, LoadFailed):
            self.failure = message
        elif isinstance(message, Loading):
            self._notice(message.what)

    def _hand_out(
        self, event: Accepted | Started | Prefilled | Piece | ToolCall | Finished | Failed
    ) -> None:
        answer = self._answers.get(event.request)
        if answer is None:
            return
        self.watch(answer.wanted, event)
        answer.put(event)
        if answer.ended:
            del self._answers[event.request]

    def _become_ready(self, ready: Ready) -> None:
        self.card, self.failure = ready.card, None
        if not self._stopping:
            self.state = "ready"
        seconds = time.monotonic() - self._started_s
        for remark in ready.remarks:
            self._notice(remark)
        self._notice(f"ready after {seconds:.1f} s.")
        self.loaded.set()
        for answer in self._answers.values():
            self._send(answer.frame)

    def _recover(self) -> None:
        """Fail what clients have seen a part of; keep the rest for the next worker."""
        for answer in list(self._answers.values()):
            if answer.said or answer.attempts >= _ATTEMPTS:
                failed = Failed(answer.wanted.request, "unavailable", "the worker died: ask again.")
                self._hand_out(failed)
            else:
                answer.attempts += 1
        self._questions.fail_all("the worker died: ask again.")

    def _fail_all(self, why: str) -> None:
        for number in list(self._answers):
            self._hand_out(Failed(number, "unavailable", why))
        self._questions.fail_all(why)
