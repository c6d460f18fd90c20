"""A chat, line by line: messages are answered, commands followed, failures told in a sentence."""

import contextlib
import io
import signal
import sys
from collections.abc import Callable, Iterator
from types import FrameType
from typing import TYPE_CHECKING

from rich.console import Console

from ..errors import ExpertReadError, MLXFlashError
from .answer_view import AnswerView
from .chat_commands import follow

if TYPE_CHECKING:
    from ..engine.conversation import Conversation


class Chat:
    """What happens to the lines of a user. `exit_code` remembers the worst that did.

    Answers go to the views, what commands say to `out`, everything else to `notes`. Where the user
    is `interactive`, Ctrl-C ends an answer and not the program.
    """

    def __init__(
        self,
        conversation: "Conversation",
        new_view: Callable[[], AnswerView],
        *,
        interactive: bool,
    ) -> None:
        """Say nothing yet."""
        self.conversation = conversation
        self.exit_code = 0
        self.out = Console(highlight=False, markup=False)
        self.notes = Console(stderr=True, highlight=False, markup=False)
        self._new_view = new_view
        self._interactive = interactive

    def take(self, line: str) -> bool:
        """Answer a message or follow a command; return whether the chat goes on."""
        try:
            if not line.startswith("/"):
                self._answer(line)
                return True
            text = follow(self.conversation, line)
        except MLXFlashError as error:
            self.exit_code = self.exit_code or (1 if isinstance(error, ExpertReadError) else 2)
            self.notes.print(f"mlx-flash: {error}", soft_wrap=True)
            return True
        if text is not None:
            self.out.print(text, soft_wrap=True)
        return text is not None

    def _answer(self, message: str) -> None:
        """Show the answer to a message, and say what happened to it."""
        conversation = self.conversation
        before, left_out = len(conversation.messages), conversation.num_left_out
        pieces = conversation.say(message)
        if conversation.num_left_out > left_out:
            turns = conversation.num_left_out
            what = "turn is" if turns == 1 else f"{turns} turns are"
            self._note(f"The context is full: the oldest {what} no longer sent to the model.")
        with self._interrupts(), contextlib.closing(pieces), self._new_view() as view:
            for piece in pieces:
                view.add(piece)
        if len(conversation.messages) == before:
            self._note("Stopped before the first token: the message is not in the conversation.")
        elif len(conversation.messages[-1]) == 2 and not conversation.messages[-1]["content"]:
            self._note("The model had nothing to say.")
        elif conversation.finish_reason == "length":
            tokens = conversation.last.generation_tokens
            self._note(f"Cut off after {tokens} tokens: --max-tokens and --max-context allow more.")
        elif conversation.finish_reason == "interrupted":
            self._note("Stopped.")

    def _note(self, text: str) -> None:
        self.notes.print(text, soft_wrap=True, style="dim" if self._interactive else None)

    @contextlib.contextmanager
    def _interrupts(self) -> Iterator[None]:
        """Let Ctrl-C stop the answer after a token, a second one in the middle of it."""
        if not self._interactive:
            yield
            return
        pressed = False

        def stop(number: int, frame: FrameType | None) -> None:
            nonlocal pressed
            if pressed:
                raise KeyboardInterrupt
            pressed = True
            self.conversation.stop()

        before = signal.signal(signal.SIGINT, stop)
        try:
            yield
        except KeyboardInterrupt:
            pass
        finally:
            signal.signal(signal.SIGINT, before)


def answer_lines(chat: Chat) -> None:
    """Take each line of standard input for a message or a command, until it ends."""
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")  # it is said what is wrong with such text
    for line in sys.stdin or ():
        if line.strip() and not chat.take(line.rstrip("\n")):
            return
