"""What may be typed in a chat beside messages: commands that begin with a slash."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..config import TASKS
from ..errors import OptionError
from ..planner.memory import gigabytes
from .loading import ranking_of_profile

if TYPE_CHECKING:
    from ..engine.conversation import Conversation
    from ..engine.turns import MemoryNow, TurnStats


@dataclass(frozen=True)
class Command:
    """A command: what follows it, what it is good for, and what it does.

    `run` takes the conversation and what follows, and returns a text to show; None ends the chat.
    """

    argument: str
    help: str
    run: "Callable[[Conversation, str], str | None]"


def follow(conversation: "Conversation", line: str) -> str | None:
    """Follow the command in a line; return a text to show, or None where it ends the chat.

    Raises:
        MLXFlashError: there is no such command, or it cannot be followed.
    """
    name, _, argument = line.strip().partition(" ")
    if name not in COMMANDS:
        raise OptionError(
            f"there is no command {name}: /help lists them, and a space before a slash makes it a "
            "message."
        )
    return COMMANDS[name].run(conversation, argument.strip())


def status_of(conversation: "Conversation", model: str) -> str:
    """Return the line under the prompt: memory, slots, hit rate, speed, and the model's name."""
    now, last = conversation.memory(), conversation.last
    parts = [f"{gigabytes(now.used_bytes)} of {gigabytes(now.limit_bytes)}", _slots(now)]
    if last.turns:
        parts += [f"hit rate {last.counters.hit_rate:.1%}"] if now.streamed else []
        parts += [f"{last.generation_tps:.1f} tokens/s"]
    return " · ".join([*parts, model])


def _help(conversation: "Conversation", argument: str) -> str:
    names = {f"{name} {command.argument}": command.help for name, command in COMMANDS.items()}
    width = max(map(len, names))
    lines = [f"{name:{width}} {text}" for name, text in names.items()]
    keys = "Alt-Enter, or a backslash at its end, begins a new line. Ctrl-C stops an answer."
    return "\n".join([*lines, keys])


def _system(conversation: "Conversation", argument: str) -> str:
    if argument:
        conversation.system = "" if argument == "-" else argument
    if not conversation.system:
        return "There is no system message."
    return f"The system message: {conversation.system}"


def _save(conversation: "Conversation", argument: str, overwrite: bool = False) -> str:
    from ..engine.find import model_name
    from ..engine.transcript import save_transcript
    from ..errors import TranscriptError

    path = _path(argument)
    model = model_name(conversation.loaded.checkpoint.folder)
    try:
        save_transcript(
            path, model, conversation.system, conversation.messages, overwrite=overwrite
        )
    except TranscriptError as error:
        if isinstance(error.__cause__, FileExistsError):
            raise TranscriptError(f"{error} /save! {argument} overwrites it.") from error
        raise
    return f"{len(conversation.messages)} messages saved in {path}."


def _overwrite(conversation: "Conversation", argument: str) -> str:
    return _save(conversation, argument, overwrite=True)


def _load(conversation: "Conversation", argument: str) -> str:
    from ..engine.transcript import load_transcript

    path = _path(argument)
    system, messages = load_transcript(path)
    conversation.restore(system, messages)
    return f"{len(messages)} messages loaded from {path}."


def _path(argument: str) -> Path:
    """Return the file that a command names.

    Raises:
        OptionError: it names none.
    """
    if not argument:
        raise OptionError("which file? Give its name after the command.")
    try:
        return Path(argument).expanduser()
    except RuntimeError as error:
        raise OptionError(
            f"{argument} is in a home that is not known: give a whole path."
        ) from error


def _stats(conversation: "Conversation", argument: str) -> str:
    if not conversation.session.turns:
        return "Nothing was answered yet."
    streamed = conversation.loaded.stream is not None
    last, session = conversation.last, conversation.session
    return (
        f"last answer: {_took(last, streamed)}\n"
        f"session, {session.turns} answer{'s' * (session.turns > 1)}: {_took(session, streamed)}"
    )


def _took(stats: "TurnStats", streamed: bool) -> str:
    """Return in words what answers took."""
    text = (
        f"{stats.generation_tokens} tokens at {stats.generation_tps:.1f} tokens/s, the first after "
        f"{stats.mean_ttft_s:.2f} s; {stats.prompt_tokens} prompt tokens, {stats.cached_tokens} of "
        "them known from before"
    )
    if not streamed:
        return f"{text}; resident, nothing was read"
    counters = stats.counters
    return f"{text}; hit rate {counters.hit_rate:.1%}, {gigabytes(counters.bytes_read)} read"


def _memory(conversation: "Conversation", argument: str) -> str:
    now = conversation.memory()
    experts = f" for {now.experts_per_layer} experts" if now.streamed else ""
    return "\n".join(
        [
            f"limit      {gigabytes(now.limit_bytes)}, {gigabytes(now.used_bytes)} of it used",
            f"resident   {gigabytes(now.resident_bytes)}",
            f"slots      {gigabytes(now.slot_bytes)}, {_slots(now)}{experts}",
            f"KV cache   {gigabytes(now.kv_bytes)}, {conversation.context_tokens} tokens at most",
            f"process    {gigabytes(now.rss_bytes)} with Python and the libraries",
        ]
    )


def _slots(now: "MemoryNow") -> str:
    if not now.streamed:
        return "all experts resident" if now.experts_per_layer else "no experts"
    return f"{now.capacity} slots per layer"


def _profile(conversation: "Conversation", argument: str) -> str:
    from ..engine.profiles import bring_in

    if not argument:
        raise OptionError(f"which profile? {', '.join(TASKS)}, or one of your own.")
    ranking = ranking_of_profile(conversation.loaded, argument)
    if conversation.loaded.stream is None:
        return "All experts are in memory: there is nothing to read."
    return f"{bring_in(conversation.loaded.stream, ranking)} experts of {argument} read."


def _clear(conversation: "Conversation", argument: str) -> str:
    conversation.clear()
    return "The conversation begins anew."


def _quit(conversation: "Conversation", argument: str) -> None:
    return None


COMMANDS = {
    "/help": Command("", "this list", _help),
    "/system": Command("TEXT", "set the system message; - removes it, no text shows it", _system),
    "/save": Command("FILE", "write the conversation to a file, as JSON", _save),
    "/save!": Command("FILE", "the same, over a file that is there", _overwrite),
    "/load": Command("FILE", "go on with a conversation that was saved", _load),
    "/stats": Command("", "tokens, speed and reads of the last answer and of the session", _stats),
    "/memory": Command("", "what takes how much memory now", _memory),
    "/profile": Command("NAME", "read the experts of a task now, in the place of others", _profile),
    "/clear": Command("", "forget the conversation; the system message stays", _clear),
    "/quit": Command("", "leave; so does Ctrl-D", _quit),
}
"""Every command by its name."""
