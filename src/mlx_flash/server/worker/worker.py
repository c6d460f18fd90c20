"""The worker: loads the model, takes requests from the gateway, and computes their answers."""

import contextlib
import logging
import os
import queue
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ...engine.reply_text import ReplyText, opens_reasoning
from ...engine.sampling import SamplingOptions, make_draw, make_processors
from ...engine.trace import recording_to
from ...errors import MLXFlashError, PromptError
from ..channel import WorkerEnd
from ..messages import (
    Accepted,
    Cancel,
    ChatPrompt,
    Count,
    Counted,
    Detokenize,
    Failed,
    FailureKind,
    FromWorker,
    Generate,
    Grammar,
    LoadFailed,
    Loading,
    Ready,
    Render,
    Rendered,
    Sampling,
    Stop,
    Tokenize,
    Tokenized,
    ToWorker,
)
from ..options import WorkerOptions
from .grammar import Grammars
from .loading import Served, load_served
from .prompts import ContextError, Prompts, forced_call_schema
from .report import Reporter
from .scheduler import Scheduler
from .sequence import Answering, token_text

_log = logging.getLogger(__name__)

_REPORT_S = 0.5
_IDLE_S = 5.0
_GRACE_S = 3.0  # for the step under way, once the gateway has gone


class Worker:
    """Owns the model. The main thread computes; one thread listens, one reports."""

    def __init__(self, end: WorkerEnd, options: WorkerOptions) -> None:
        self._end = end
        self._options = options
        self._inbox: queue.SimpleQueue[Answering | Cancel | Stop] = queue.SimpleQueue()
        self._listener: Listener | None = None
        self._stopping = False

    def run(self) -> None:
        """Load the model and answer until the gateway says stop, or goes."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        self._start(self._listen)
        with contextlib.ExitStack() as open_things:
            served = self._load(open_things)
            if served is not None:
                self._serve(served)

    def _load(self, open_things: contextlib.ExitStack) -> Served | None:
        """Return the model, which `open_things` closes; None when it cannot be loaded."""
        try:
            served = load_served(self._options, lambda what: self._send([Loading(what)]))
            open_things.enter_context(contextlib.closing(served))
            open_things.enter_context(_recording(served, self._options))
        except MLXFlashError as error:
            self._send([LoadFailed(str(error), True)])
            return None
        except Exception as error:
            _log.exception("the model cannot be loaded")
            self._send([LoadFailed(f"{type(error).__name__}: {error}", False)])
            raise
        return served

    def _serve(self, served: Served) -> None:
        """Answer with a model until there is nobody to answer to."""
        scheduler = Scheduler(
            served.loaded.model, served.tokenizer, served.limits, served.store, self._send
        )
        reporter = Reporter(served.loaded, scheduler, served.limits.kv_bytes)
        self._listener = Listener(served, self._inbox, self._send)
        self._send([Ready(served.card, served.remarks), reporter.snapshot()])
        self._start(self._report, reporter)
        self._compute(scheduler)
        scheduler.save()

    def _start(self, target: Callable[..., None], *arguments: Any) -> None:
        threading.Thread(target=target, args=arguments, daemon=True).start()

    def _compute(self, scheduler: Scheduler) -> None:
        """Take steps while there are answers to compute, and wait while there are none."""
        while not self._stopping:
            for message in self._arrived(wait=scheduler.idle):
                if isinstance(message, Stop):
                    return
                if isinstance(message, Cancel):
                    scheduler.cancel(message.request)
                else:
                    scheduler.add(message)
            if scheduler.idle:
                scheduler.rest()
            else:
                scheduler.step()

    def _arrived(self, wait: bool) -> Iterator[Answering | Cancel | Stop]:
        with contextlib.suppress(queue.Empty):
            yield self._inbox.get(wait, _IDLE_S if wait else None)
            while True:
                yield self._inbox.get_nowait()

    def _listen(self) -> None:
        """Hear the gateway, which asks once it is told `Ready`; before, it only says stop.

        When it goes, also while the model is being loaded, end: nobody is left to answer to.
        """
        try:
            for message in self._end.received():
                if self._listener is None:
                    break
                self._listener.take(message)
        finally:  # whatever happens: a worker that hears nobody must not stay
            self._stopping = True
            self._inbox.put(Stop())
            time.sleep(_GRACE_S)
            os._exit(1)

    def _report(self, reporter: Reporter) -> None:
        while True:
            time.sleep(_REPORT_S)
            self._send([reporter.snapshot()])

    def _send(self, messages: Sequence[FromWorker]) -> None:
        """Tell the gateway; if it has gone, the listening thread is about to notice."""
        with contextlib.suppress(OSError):
            self._end.send(messages)


def _recording(served: Served, options: WorkerOptions) -> contextlib.AbstractContextManager[object]:
    """Record the routing of all answers while the block runs, where the options ask for it."""
    if options.trace is None:
        return contextlib.nullcontext()
    return recording_to(served.loaded, Path(options.trace), options.profile or "served")


class Listener:
    """Answers the gateway's questions, and makes what its requests need to be computed."""

    def __init__(self, served: Served, inbox: Any, send: Any) -> None:
        self._served = served
        self._inbox = inbox
        self._send = send
        tokenizer, vocabulary = served.tokenizer, served.vocabulary
        self._prompts = Prompts(tokenizer, vocabulary, served.card.context_tokens)
        self._grammars = Grammars(tokenizer, vocabulary)

    def take(self, message: ToWorker) -> None:
        """Do what a message asks for, as far as it needs no model."""
        if isinstance(message, (Cancel, Stop)):
            self._inbox.put(message)
            return
        kind: FailureKind = "invalid"
        try:
            if isinstance(message, Generate):
                self._accept(message)
            else:
                self._send([self._reply(message)])
            return
        except ContextError as error:
            kind, why = "context_length", str(error)
        except PromptError as error:
            why = str(error)
        except Exception:  # noqa: BLE001 - one request's trouble is not the others'
            _log.exception("request %d failed", message.request)
            kind, why = "internal", "the request could not be read; the server's log says more."
        self._send([Failed(message.request, kind, why)])

    def _accept(self, wanted: Generate) -> None:
        """Say so first: once it is in the inbox, its answer may overtake what is said here."""
        answering = self._answering(wanted)
        self._send([Accepted(answering.key, answering.prompt_tokens)])
        self._inbox.put(answering)

    def _reply(
        self, message: Count | Tokenize | Detokenize | Render
    ) -> Counted | Tokenized | Rendered:
        request = message.request
        if isinstance(message, Count):
            return Counted(request, len(self._prompts.tokens(message.prompt)[0]))
        if isinstance(message, Tokenize):
            tokens, _ = self._prompts.tokens(message.prompt, message.add_special)
            pieces = [token_text(token, self._served.tokenizer)[1] for token in tokens]
            return Tokenized(request, tokens, pieces)
        if isinstance(message, Detokenize):
            return Rendered(request, self._prompts.decoded(message.tokens))
        return Rendered(request, self._prompts.rendered(message.prompt))

    def _answering(self, wanted: Generate) -> Answering:
        """Return a request with all that computing it needs.

        Raises:
            PromptError: it cannot be answered as it is.
        """
        served = self._served
        tokens, text = self._prompts.checked(wanted)
        prompt = wanted.prompt
        tools = prompt.tools if isinstance(prompt, ChatPrompt) else []
        forced = bool(wanted.tool_choice == "required" or wanted.tool_choice.startswith("="))
        reasoning = isinstance(prompt, ChatPrompt) and opens_reasoning(served.tokenizer, text)
        sampling = _sampling(wanted.sampling, served.sampling)
        processors = make_processors(sampling, len(tokens), served.vocabulary)
        grammar = wanted.grammar
        if forced:
            schema = forced_call_schema(tools, wanted.tool_choice)
            grammar = Grammar(kind="schema", text=schema, compact=True)
        if grammar is not None:
            after = served.tokenizer.think_end_tokens if reasoning else ()
            processors.append(self._grammars.processor(grammar, len(tokens), after or ()))
        room = served.card.context_tokens - len(tokens)
        return Answering(
            wanted=wanted,
            tokens=tokens,
            prompt_tokens=len(tokens),
            max_tokens=room if wanted.max_tokens is None else wanted.max_tokens,
            reply=ReplyText(
                served.tokenizer,
                wanted.stop,
                tools,
                plain=not isinstance(prompt, ChatPrompt),
                reasoning_first=reasoning,
                after=None if isinstance(prompt, ChatPrompt) else tokens[-1],
            ),
            draw=make_draw(sampling, served.vocabulary),
            processors=processors,
            forced_call=forced,
            context_tokens=served.card.context_tokens,
        )


def _sampling(wanted: Sampling, default: SamplingOptions) -> SamplingOptions:
    """Return how to draw, where the request says nothing as the server does."""

    def of(value: Any, otherwise: Any) -> Any:
        return otherwise if value is None else value

    return SamplingOptions(
        temperature=of(wanted.temperature, default.temperature),
        top_p=of(wanted.top_p, default.top_p),
        top_k=of(wanted.top_k, default.top_k),
        min_p=of(wanted.min_p, default.min_p),
        repetition_penalty=of(wanted.repetition_penalty, 1.0),
        presence_penalty=of(wanted.presence_penalty, 0.0),
        frequency_penalty=of(wanted.frequency_penalty, 0.0),
        logit_bias=wanted.logit_bias,
        seed=wanted.seed,
    )
