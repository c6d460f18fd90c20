"""What an answer says: text, reasoning and tool calls, told apart while tokens come."""

from typing import Any

import pytest

from mlx_flash.engine.reply_text import (
    Called,
    ReplyText,
    Said,
    StopTexts,
    opens_reasoning,
)


class LetterTokenizer:
    """A tokenizer whose tokens are letters, with the marks that Qwen's models have."""

    has_thinking = True
    think_start, think_end = "<think>", "</think>"
    has_tool_calling = True
    tool_call_start, tool_call_end = "<tool_call>", "</tool_call>"
    structural_markers: tuple[str, ...] = ()
    response_transitions: dict[str, Any] = {}  # noqa: RUF012
    response_initial_state = None

    class Detokenizer:
        def __init__(self) -> None:
            self.last_segment = ""

        def add_token(self, token: int) -> None:
            self.last_segment = chr(token)

        def finalize(self) -> None:
            self.last_segment = ""

    @property
    def detokenizer(self) -> "LetterTokenizer.Detokenizer":
        return self.Detokenizer()

    @staticmethod
    def tool_parser(text: str, tools: Any) -> Any:
        from mlx_lm.tool_parsers.json_tools import parse_tool_call

        return parse_tool_call(text, tools)


def replies(answer: str, **options: Any) -> tuple[list[Said | Called], ReplyText]:
    """Return what an answer says, neighbouring pieces of one kind joined."""
    reply = ReplyText(LetterTokenizer(), **options)  # type: ignore[arg-type]
    said: list[Said | Called] = []
    pieces = [piece for letter in answer for piece in reply.add(ord(letter))] + list(reply.end())
    for piece in pieces:
        last = said[-1] if said else None
        if isinstance(piece, Said) and isinstance(last, Said) and piece.kind == last.kind:
            said[-1] = Said(piece.kind, last.text + piece.text)
        else:
            said.append(piece)
    return said, reply


def test_text_comes_through_as_it_is() -> None:
    assert replies("a < b, and <b>bold</b>")[0] == [Said("text", "a < b, and <b>bold</b>")]


def test_reasoning_is_told_from_text() -> None:
    said, _ = replies("<think>Hm. 1 < 2.</think>Yes.")
    assert said == [Said("reasoning", "Hm. 1 < 2."), Said("text", "Yes.")]


def test_an_answer_may_begin_inside_a_thought() -> None:
    said, _ = replies("so it is</think>Yes.", reasoning_first=True)
    assert said == [Said("reasoning", "so it is"), Said("text", "Yes.")]


def test_a_thought_that_never_ends_is_reasoning() -> None:
    assert replies("<think>on and on")[0] == [Said("reasoning", "on and on")]


def test_tool_calls_come_one_by_one() -> None:
    said, _ = replies(
        'Two.<tool_call>{"name": "a", "arguments": {"x": "<b>"}}</tool_call>'
        '<tool_call>\n{"name": "b", "arguments": {}}\n</tool_call>'
    )
    assert said == [Said("text", "Two."), Called("a", '{"x": "<b>"}'), Called("b", "{}")]


@pytest.mark.parametrize("call", ["{broken", '{"arguments": {}}', '{"name": ""}', "[1]", '"text"'])
def test_a_call_that_cannot_be_parsed_is_text(call: str) -> None:
    said, _ = replies(f"<tool_call>{call}</tool_call>")
    assert said == [Said("text", f"<tool_call>{call}</tool_call>")]


def test_a_call_that_is_cut_off_is_still_tried() -> None:
    assert replies('<tool_call>{"name": "a", "arguments": {}}')[0] == [Called("a", "{}")]


def test_plain_text_has_no_marks() -> None:
    said, _ = replies("<think>no</think>", plain=True)
    assert said == [Said("text", "<think>no</think>")]


def test_an_answer_ends_before_the_first_stop_text() -> None:
    reply = ReplyText(LetterTokenizer(), ["END", "\n\n"])  # type: ignore[arg-type]
    said = ""
    for letter in "one E EN two\n\nthree END":
        said += "".join(piece.text for piece in reply.add(ord(letter)) if isinstance(piece, Said))
        if reply.stop_text is not None:
            break
    assert (said, reply.stop_text) == ("one E EN two", "\n\n")
    assert list(reply.end()) == []


def test_what_might_have_become_a_stop_text_is_said_in_the_end() -> None:
    assert replies("the EN", stops=["END"])[0] == [Said("text", "the EN")]


def test_stop_texts_inside_a_thought_do_not_count() -> None:
    said, reply = replies("<think>a STOP b</think>c", stops=["STOP"])
    assert (said, reply.stop_text) == ([Said("reasoning", "a STOP b"), Said("text", "c")], None)


@pytest.mark.parametrize("cut", range(1, 9))
def test_stop_texts_are_found_across_any_cut(cut: int) -> None:
    stops = StopTexts(["aab"])
    text = "xxaaabyy"
    assert stops.pass_on(text[:cut]) + stops.pass_on(text[cut:]) == "xxa"
    assert stops.found == "aab"


def test_a_prompt_that_opens_a_thought_is_seen() -> None:
    tokenizer: Any = LetterTokenizer()
    assert opens_reasoning(tokenizer, "<think>a</think><|assistant|><think>\n")
    assert not opens_reasoning(tokenizer, "<think>a</think><|assistant|>")
    assert not opens_reasoning(tokenizer, "no marks")
