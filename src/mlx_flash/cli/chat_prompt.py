"""The prompt of a chat on a terminal: keys, history, completion and the status bar."""

import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

from prompt_toolkit import PromptSession
from prompt_toolkit.application.current import get_app
from prompt_toolkit.completion import (
    CompleteEvent,
    Completer,
    Completion,
    PathCompleter,
    WordCompleter,
)
from prompt_toolkit.document import Document
from prompt_toolkit.enums import DEFAULT_BUFFER
from prompt_toolkit.filters import has_focus
from prompt_toolkit.history import FileHistory, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

from ..config import TASKS
from .chat_commands import COMMANDS
from .chat_session import Chat


def converse(chat: Chat, history: Path | None, status: Callable[[], str]) -> None:
    """Ask for lines and let the chat take them, until the user leaves."""
    session: PromptSession[str] = PromptSession(
        "> ",
        multiline=True,
        prompt_continuation="  ",
        history=InMemoryHistory() if history is None else LenientHistory(history),
        completer=CommandCompleter(),
        key_bindings=_keys(),
        bottom_toolbar=status,
    )
    while True:
        try:
            line = session.prompt()
            if line.strip() and not chat.take(line):
                return
        except KeyboardInterrupt:
            chat.notes.print("Ctrl-D or /quit leaves the chat.")
        except EOFError:
            return


class LenientHistory(FileHistory):
    """A history file, readable by its owner alone; without one where the disk refuses."""

    def __init__(self, path: Path) -> None:
        """Make the file unless it is there."""
        super().__init__(str(path))
        with suppress(OSError):
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            os.close(os.open(path, os.O_CREAT | os.O_RDONLY, 0o600))

    def load_history_strings(self) -> Iterable[str]:
        """Return what was typed before, the newest first."""
        try:
            return list(super().load_history_strings())
        except OSError:
            return []

    def store_string(self, string: str) -> None:
        """Add a line to the file."""
        with suppress(OSError, ValueError):  # the latter for half a character
            super().store_string(string)


class CommandCompleter(Completer):
    """Completes commands, and the names of files and profiles behind them."""

    def __init__(self) -> None:
        """Know the commands."""
        files = PathCompleter(expanduser=True)
        self._arguments: dict[str, Completer] = {
            "/save": files,
            "/save!": files,
            "/load": files,
            "/profile": WordCompleter(list(TASKS)),
        }

    def get_completions(
        self, document: Document, complete_event: CompleteEvent
    ) -> Iterable[Completion]:
        """Yield what may stand at the cursor."""
        text = document.text_before_cursor
        name, space, argument = text.partition(" ")
        if space and name in self._arguments:
            yield from self._arguments[name].get_completions(Document(argument), complete_event)
        elif not space and text.startswith("/"):
            for command, about in COMMANDS.items():
                if command.startswith(text):
                    yield Completion(command, -len(text), display_meta=about.help)


def _keys() -> KeyBindings:
    """Return the keys that do something else than prompt_toolkit lets them do."""
    keys = KeyBindings()
    typing = has_focus(DEFAULT_BUFFER)

    @keys.add("escape", "enter", filter=typing)
    def _new_line(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    @keys.add("enter", filter=typing)
    def _send_or_go_on(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        if buffer.document.is_cursor_at_the_end and buffer.text.endswith("\\"):
            buffer.delete_before_cursor()
            buffer.insert_text("\n")
        else:
            buffer.validate_and_handle()

    @keys.add("c-c", filter=typing)
    def _forget_or_leave(event: KeyPressEvent) -> None:
        if event.current_buffer.text:
            event.current_buffer.reset()
        else:
            get_app().exit(exception=KeyboardInterrupt())

    return keys
