"""`mlx-flash chat`: a conversation on a terminal, or with the lines of a pipe."""

import contextlib
import sys
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import typer
from rich.console import Console
from rich.status import Status

from ..config import (
    CHAT_CONTEXT_TOKENS,
    CacheOptions,
    KernelOptions,
    MemoryLimit,
    ReadOptions,
    check_either,
)
from ..errors import MemoryPlanError
from ..folders import chat_history, warm_start_folder
from .loading import read_profile, show_compiling
from .options import (
    Capacity,
    Kernels,
    Markdown,
    MaxContext,
    MaxTokens,
    Memory,
    Model,
    Policy,
    Profile,
    Seed,
    System,
    Temperature,
    WarmStart,
)
from .remarks import remarks

if TYPE_CHECKING:
    from ..engine.conversation import Conversation
    from ..engine.generate import GenerateOptions
    from .answer_view import AnswerView


def command(
    model: Model = None,
    max_tokens: MaxTokens = 1024,
    memory: Memory = None,
    temperature: Temperature = 0.0,
    seed: Seed = None,
    capacity: Capacity = None,
    policy: Policy = CacheOptions.policy,
    kernels: Kernels = None,
    warm_start: WarmStart = True,
    profile: Profile = None,
    system: System = "",
    max_context: MaxContext = None,
    markdown: Markdown = True,
) -> None:
    """Talk with a model; most experts may stay on disk."""
    limit = MemoryLimit.parse(memory)
    folder = warm_start_folder() if warm_start and profile is None else None
    cache_options = CacheOptions(policy=policy, capacity=capacity, warm_start=folder)
    kernel_options = KernelOptions(kernels=kernels)
    check_either(limit, cache_options)
    notes = Console(stderr=True, highlight=False, markup=False)
    loading = notes.status("loading the model") if notes.is_terminal else None
    with loading or contextlib.nullcontext():
        from ..engine.generate import GenerateOptions, check_text

        check_text(system)
        options = GenerateOptions(max_tokens=max_tokens, temperature=temperature, seed=seed)
        conversation = _open(
            model, options, limit, cache_options, kernel_options, system, max_context, loading
        )
        if profile is not None:
            read_profile(conversation.loaded, profile, loading)
    with contextlib.closing(conversation.loaded):
        for line in remarks(conversation.loaded, cache_options, ReadOptions(), profile):
            notes.print(line, soft_wrap=True)
        if max_context is not None and max_context > conversation.context_tokens:
            notes.print(f"The model's context holds {conversation.context_tokens} tokens.")
        exit_code = _talk(conversation, markdown)
    if exit_code:
        raise typer.Exit(exit_code)


def _open(
    model: str | None,
    options: "GenerateOptions",
    limit: MemoryLimit,
    cache_options: CacheOptions,
    kernel_options: KernelOptions,
    system: str,
    max_context: int | None,
    loading: Status | None,
) -> "Conversation":
    """Return a conversation with a model that was loaded for it."""
    from ..engine.conversation import Conversation
    from ..engine.load import ModelFiles, load_model

    files = ModelFiles.open(model)
    context = max_context or CHAT_CONTEXT_TOKENS
    context = min(context, files.checkpoint.context_tokens or context)
    try:
        loaded = load_model(
            files.checkpoint,
            limit,
            cache_options,
            context_tokens=context,
            kernel_options=kernel_options,
            on_compile=partial(show_compiling, loading),
        )
    except MemoryPlanError as error:
        raise error.advised("A smaller --max-context takes less.") from error
    return Conversation(loaded, files.tokenizer, options, context, system)


def _talk(conversation: "Conversation", markdown: bool) -> int:
    """Talk until the user leaves or the lines end; return the exit code."""
    from .chat_session import Chat, answer_lines

    on_terminal = bool(sys.stdin and sys.stdin.isatty() and sys.stdout.isatty())
    chat = Chat(conversation, _view(markdown), interactive=on_terminal)
    if not on_terminal:
        answer_lines(chat)
        return chat.exit_code
    from ..engine.find import model_name
    from .chat_commands import status_of
    from .chat_prompt import converse

    name = model_name(conversation.loaded.checkpoint.folder)
    chat.notes.print("/help lists the commands, Ctrl-D leaves.")
    converse(chat, chat_history(), partial(status_of, conversation, name))
    return 0


def _view(markdown: bool) -> "Callable[[], AnswerView]":
    """Return what shows an answer where standard output leads."""
    from .answer_view import PlainView, TerminalView

    if not sys.stdout.isatty():
        return PlainView
    return partial(TerminalView, Console(highlight=False, markup=False), markdown=markdown)
