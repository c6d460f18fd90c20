"""Records the routing of a model: of texts that it reads, or of what it generates."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import PromptError, UnsupportedModelError
from ..streaming.install import record_routing
from ..streaming.tokens import TokenizerWrapper, read_tokens
from ..telemetry.trace import Routing, Trace, merged
from ..telemetry.trace_file import TraceWriter
from .find import model_name
from .load import LoadedModel

WINDOW_TOKENS = 1024
"""Tokens that a model reads in one go: each window starts with an empty context."""


LEAST_TOKENS = 64
"""Tokens below which what a text asks for is chance."""

Pass = tuple[str, npt.NDArray[Any], npt.NDArray[Any]]
"""A forward pass: its domain, experts `[T, L, K]`, weights `[T, L, K]`."""


@dataclass(frozen=True)
class Text:
    """Something to read, with the domain that its routing is recorded under."""

    domain: str
    content: str


def read_text(path: Path, domain: str | None = None) -> Text:
    """Return a file as a text; its domain is the file's name unless one is given.

    Raises:
        PromptError: it cannot be read, is empty, or is not UTF-8.
    """
    try:
        content = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise PromptError(
            f"{path} is not UTF-8 text (byte {error.start}): convert it first."
        ) from error
    except OSError as error:
        raise PromptError(
            f"cannot read {path}: {error.strerror or error}: give a file with text."
        ) from error
    if not content.strip():
        raise PromptError(f"{path} is empty: give a file with text.")
    return Text(domain or path.stem, content)


def routing_of(loaded: LoadedModel) -> Routing:
    """Return what a trace of a streamed model says of it.

    Raises:
        UnsupportedModelError: it has no experts.
    """
    if loaded.stream is None:
        raise UnsupportedModelError("the model has no experts: there is no routing to record.")
    layouts = loaded.layouts
    return Routing(
        model_name(loaded.checkpoint.folder),
        tuple(layout.num_experts for layout in layouts),
        tuple(layout.expert_bytes for layout in layouts),
        loaded.top_k,
    )


def encode_texts(
    tokenizer: TokenizerWrapper, texts: Sequence[Text], max_tokens: int | None
) -> list[tuple[str, list[int]]]:
    """Return each text's domain and tokens, at most `max_tokens` of each.

    Raises:
        PromptError: the tokenizer leaves nothing of a text.
    """
    encoded = []
    for text in texts:
        tokens = list(tokenizer.encode(text.content))[:max_tokens]
        if not tokens:
            raise PromptError(f"the text of {text.domain} has no tokens: give other text.")
        encoded.append((text.domain, tokens))
    return encoded


def check_enough(texts: Sequence[tuple[str, Sequence[int]]]) -> None:
    """Raise PromptError where texts have too few tokens, all together, to learn from."""
    num_tokens = sum(len(tokens) for _, tokens in texts)
    if num_tokens < LEAST_TOKENS:
        found = "1 token" if num_tokens == 1 else f"{num_tokens} tokens"
        raise PromptError(f"the text is too short ({found}): give {LEAST_TOKENS} tokens or more.")


def record(
    loaded: LoadedModel,
    texts: Sequence[tuple[str, Sequence[int]]],
    on_pass: Callable[[str, npt.NDArray[Any], npt.NDArray[Any]], None],
    on_tokens: Callable[[int], None] = lambda tokens: None,
) -> None:
    """Let a model read tokens of domains; hand each pass to `on_pass(domain, experts, weights)`."""
    window = min(WINDOW_TOKENS, loaded.checkpoint.context_tokens or WINDOW_TOKENS)
    for domain, tokens in texts:
        with recording(loaded, partial(on_pass, domain)):
            for start in range(0, len(tokens), window):
                part = tokens[start : start + window]
                for done in read_tokens(loaded.model, part, loaded.prefill_step):
                    on_tokens(done)


def trace_of(
    loaded: LoadedModel,
    texts: Sequence[tuple[str, Sequence[int]]],
    on_tokens: Callable[[int], None] = lambda tokens: None,
) -> Trace:
    """Return the trace of what a model reads, without a file."""
    passes: list[Pass] = []
    record(loaded, texts, lambda *of_pass: passes.append(of_pass), on_tokens)
    return trace_of_passes(routing_of(loaded), passes)


def trace_of_passes(routing: Routing, passes: Sequence[Pass]) -> Trace:
    """Return forward passes, of which there are some, as a trace."""
    return Trace(
        routing,
        np.concatenate([experts for _, experts, _ in passes]).astype(np.uint16),
        np.concatenate([weights for _, _, weights in passes]).astype(np.float16),
        np.array([len(experts) for _, experts, _ in passes], np.int64),
        merged((domain, len(experts)) for domain, experts, _ in passes),
    )


@contextlib.contextmanager
def recording(
    loaded: LoadedModel, on_pass: Callable[[npt.NDArray[Any], npt.NDArray[Any]], None]
) -> Iterator[None]:
    """Hand every forward pass to `on_pass` while the block runs."""
    routing_of(loaded)
    assert loaded.stream is not None
    record_routing(loaded.model, loaded.stream, on_pass)
    try:
        yield
    finally:
        record_routing(loaded.model, loaded.stream, None)


@contextlib.contextmanager
def recording_to(loaded: LoadedModel, path: Path, domain: str) -> Iterator[None]:
    """Append every forward pass to a trace file while the block runs.

    Raises:
        TraceError: the file is of another model, or cannot be written.
        UnsupportedModelError: the model has no routing that can be recorded.
    """
    with (
        contextlib.closing(TraceWriter(path, routing_of(loaded))) as writer,
        recording(loaded, partial(writer.add, domain)),
    ):
        yield
