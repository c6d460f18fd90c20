"""Whose answer is computed when: together, within the memory for it, and as if each were alone."""

import gc
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from mlx_flash.engine.reply_text import ReplyText
from mlx_flash.errors import ExpertReadError
from mlx_flash.server.messages import (
    Cancel,
    ChatPrompt,
    Count,
    Counted,
    Detokenize,
    Failed,
    Finished,
    Generate,
    Grammar,
    Piece,
    Prefilled,
    Rendered,
    Sampling,
    Started,
    TextPrompt,
    TokenPrompt,
    ToolCall,
)
from mlx_flash.server.options import WorkerOptions
from mlx_flash.server.worker.grammar import processor_of
from mlx_flash.server.worker.loading import Served, load_served
from mlx_flash.server.worker.scheduler import Scheduler
from mlx_flash.server.worker.sequence import Answering
from mlx_flash.server.worker.worker import Listener

QUESTIONS = (
    "What does shutil.copytree do?",
    "How do I use itertools.chain?",
    "os.path.join",
    "Explain json.dumps, please, with all of its arguments and a short example for each. " * 12,
)
NUMBER = Grammar(
    kind="schema",
    text='{"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"],'
    ' "additionalProperties": false}',
)
ENDLESS = Sampling(logit_bias={4: -100.0})  # the end is forbidden
TOOL = {
    "type": "function",
    "function": {
        "name": "read",
        "description": "",
        "parameters": {
            "type": "object",
            "properties": {"path": {"type": "string", "maxLength": 8}},
            "required": ["path"],
            "additionalProperties": False,
        },
    },
}


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    options = WorkerOptions(capacity=6, prefetch=False, max_context=1024)
    model = load_served(options, lambda what: None)
    yield model
    model.close()


class Desk:
    """A scheduler with what it is asked and what it told."""

    def __init__(self, served: Served, kv_tokens: int | None = None, max_batch: int = 8) -> None:
        self.limits = replace(served.limits, max_batch=max_batch, shared_step=64)
        if kv_tokens is not None:
            kv_bytes = kv_tokens * served.limits.token_bytes
            self.limits = replace(self.limits, kv_bytes=kv_bytes)
        served.store.shrink(0)
        self.told: list[Any] = []
        self.scheduler = Scheduler(
            served.loaded.model, served.tokenizer, self.limits, served.store, self.told.extend
        )
        self.listener = Listener(served, self, self.told.extend)
        self.most_running = 0
        self.answers: dict[int, Answering] = {}

    def put(self, message: Any) -> None:
        if isinstance(message, Answering):
            self.answers[message.key] = message
            self.scheduler.add(message)
        elif isinstance(message, Cancel):
            self.scheduler.cancel(message.request)

    def ask(self, request: int, text: str, **options: Any) -> None:
        prompt = ChatPrompt(
            messages=[{"role": "user", "content": text}], tools=options.pop("tools", [])
        )
        self.listener.take(Generate(request=request, prompt=prompt, **options))

    def run(self, steps: int = 10_000) -> None:
        for _ in range(steps):
            if self.scheduler.idle:
                return
            self.scheduler.step()
            self.most_running = max(self.most_running, self.scheduler.counts[0])
            scheduler = self.scheduler
            assert scheduler.kv_bytes + scheduler.remembered_bytes <= self.limits.kv_bytes

    def of(self, request: int, kind: Any) -> list[Any]:
        return [one for one in self.told if one.request == request and isinstance(one, kind)]

    def text(self, request: int, kind: str = "text") -> str:
        return "".join(one.text for one in self.of(request, Piece) if one.kind == kind)


def alone(served: Served, text: str, **options: Any) -> str:
    desk = Desk(served)
    desk.ask(1, text, **options)
    desk.run()
    return desk.text(1)


def test_answers_together_are_those_that_each_gets_alone(served: Served) -> None:
    expected = [alone(served, question, max_tokens=12) for question in QUESTIONS]
    desk = Desk(served)
    for number, question in enumerate(QUESTIONS):
        desk.ask(number, question, max_tokens=12)
        desk.run(steps=3)
    desk.run()
    assert [desk.text(number) for number in range(len(QUESTIONS))] == expected
    assert desk.most_running >= 3


def test_one_answer_at_a_time_where_no_more_may_run(served: Served) -> None:
    expected = [alone(served, question, max_tokens=6) for question in QUESTIONS]
    desk = Desk(served, max_batch=1)
    for number, question in enumerate(QUESTIONS):
        desk.ask(number, question, max_tokens=6)
    desk.run()
    assert desk.most_running == 1
    assert [desk.text(number) for number in range(len(QUESTIONS))] == expected


def test_too_little_memory_makes_answers_wait_and_changes_none(served: Served) -> None:
    expected = [alone(served, question, max_tokens=120) for question in QUESTIONS[:3]]
    desk = Desk(served, kv_tokens=900)  # three short answers, or two that have grown
    for number, question in enumerate(QUESTIONS[:3]):
        desk.ask(number, question, max_tokens=120)
    desk.run()
    assert [desk.text(number) for number in range(3)] == expected
    assert all(len(desk.of(number, Started)) == 1 for number in range(3))


def test_a_question_that_is_asked_again_is_remembered(served: Served) -> None:
    desk = Desk(served)
    desk.ask(1, QUESTIONS[3], max_tokens=8)
    desk.run()
    desk.ask(2, QUESTIONS[3], max_tokens=8)
    desk.run()
    assert desk.text(1) == desk.text(2)
    prompt = desk.of(2, Finished)[0].prompt_tokens
    assert desk.of(2, Started)[0].cached_tokens == prompt - 1
    assert desk.of(1, Started)[0].cached_tokens == 0


def test_a_cancelled_answer_is_never_heard_of_again(served: Served) -> None:
    desk = Desk(served)
    for number in range(3):
        desk.ask(number, QUESTIONS[number], max_tokens=100)
    desk.run(steps=6)
    before = len(desk.told)
    for number in range(3):
        desk.listener.take(Cancel(number))
    desk.run()
    assert desk.scheduler.idle
    assert desk.told[before:] == []


def test_a_prompt_is_cancelled_while_it_is_computed(served: Served) -> None:
    desk = Desk(served)
    desk.ask(1, QUESTIONS[0], max_tokens=50)
    desk.run(steps=4)
    desk.ask(2, QUESTIONS[3], max_tokens=8)
    desk.run(steps=2)
    assert desk.of(2, Prefilled)
    desk.listener.take(Cancel(2))
    desk.run()
    assert desk.of(1, Finished)
    assert not desk.of(2, Finished)


def test_a_prompt_is_cancelled_while_it_waits(served: Served) -> None:
    desk = Desk(served)
    desk.ask(1, QUESTIONS[3], max_tokens=8)
    desk.listener.take(Cancel(1))
    desk.run(steps=1)
    assert not desk.of(1, Started)
    assert desk.scheduler.idle
    assert desk.scheduler.remembered_bytes == 0


def test_an_answer_joins_after_one_step_of_those_under_way(served: Served) -> None:
    desk = Desk(served)
    desk.ask(0, QUESTIONS[0], max_tokens=40, sampling=ENDLESS)
    desk.run(steps=2)
    for number in (1, 2, 3):
        desk.ask(number, QUESTIONS[number % 3], max_tokens=4, sampling=ENDLESS)
    for number in (1, 2, 3):
        assert not desk.of(number, Started)
        desk.run(steps=1)
        assert desk.scheduler.counts == (number + 1, 3 - number)


def test_a_request_is_accepted_before_it_can_be_computed(served: Served) -> None:
    heard: list[str] = []

    class Inbox:
        def put(self, message: Answering) -> None:
            heard.append("put")

    listener = Listener(served, Inbox(), lambda told: heard.append(type(told[0]).__name__))
    listener.take(Generate(request=1, prompt=TextPrompt(text="import os")))
    assert heard == ["Accepted", "put"]


def test_what_is_remembered_makes_room_for_an_answer_that_grows(served: Served) -> None:
    desk = Desk(served, kv_tokens=800)
    for number in range(3):
        desk.ask(number, f"{number} {QUESTIONS[3]}", max_tokens=60, sampling=ENDLESS)
        desk.run()
    assert desk.scheduler.remembered_bytes > 0


def test_a_conversation_of_most_of_the_memory_is_remembered(served: Served) -> None:
    desk = Desk(served, kv_tokens=1100)
    for number in (1, 2):
        desk.ask(number, QUESTIONS[3] * 2, max_tokens=4)
        desk.run()
    first, second = (desk.of(number, Finished)[0] for number in (1, 2))
    assert first.cached_tokens == 0
    assert second.cached_tokens == second.prompt_tokens - 1
    assert desk.text(1) == desk.text(2)


def test_a_prompt_that_no_longer_fits_beside_an_answer_goes_on_after_it(served: Served) -> None:
    expected = alone(served, f"2 {QUESTIONS[3]}", max_tokens=8)
    desk = Desk(served, kv_tokens=1500)
    desk.ask(1, f"1 {QUESTIONS[3]}", max_tokens=60, sampling=ENDLESS)
    desk.run(steps=8)
    desk.ask(2, f"2 {QUESTIONS[3]}", max_tokens=8)
    desk.run(steps=3)
    assert desk.of(2, Prefilled)
    desk.answers[1].tokens += [0] * 300  # as if it had grown so much meanwhile
    desk.scheduler._make_room()
    assert desk.scheduler.counts == (1, 1)
    del desk.answers[1].tokens[-300:]
    desk.run()
    assert len(desk.of(2, Started)) == 1
    assert desk.text(2) == expected
    assert desk.of(1, Finished)


def test_an_echoed_answer_that_is_interrupted_counts_its_prompt_once(served: Served) -> None:
    desk = Desk(served, kv_tokens=1024)
    before = desk.scheduler.prompt_tokens
    for number in range(3):
        prompt = TextPrompt(text=f"{number} {QUESTIONS[3]}")
        asked = Generate(request=number, prompt=prompt, max_tokens=60, echo=True, sampling=ENDLESS)
        desk.listener.take(asked)
    desk.run()
    ends = [desk.of(number, Finished)[0] for number in range(3)]
    assert all(end.cached_tokens < end.prompt_tokens for end in ends)
    assert desk.scheduler.prompt_tokens - before == sum(end.prompt_tokens for end in ends)


def test_an_answer_that_cannot_be_read_ends_alone(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = alone(served, QUESTIONS[0], max_tokens=30)
    desk = Desk(served)
    for number in (0, 1):
        desk.ask(number, QUESTIONS[number], max_tokens=30)
    add = ReplyText.add

    def failing(reply: ReplyText, token: int) -> Any:
        if reply is desk.answers[1].reply:
            raise IndexError("a token that the tokenizer does not have")
        return add(reply, token)

    monkeypatch.setattr(ReplyText, "add", failing)
    desk.run()
    assert [failed.kind for failed in desk.of(1, Failed)] == ["internal"]
    assert desk.text(0) == expected
    assert desk.scheduler.idle


def test_a_failed_read_in_a_prompt_ends_that_answer_alone(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = alone(served, QUESTIONS[0], max_tokens=30)
    desk = Desk(served)
    desk.ask(1, QUESTIONS[0], max_tokens=30)
    desk.run(steps=4)
    desk.ask(2, QUESTIONS[3], max_tokens=8)
    stream = served.loaded.stream
    assert stream is not None
    start = stream.start_reading
    path = next(iter(stream.layouts[3].files))

    def failing(layer: int, experts: Any, *rest: Any) -> Any:
        prefill = desk.scheduler._prefill
        if layer == 3 and prefill and prefill[0].key == 2 and len(experts) > 5:
            raise ExpertReadError("bad sector", layer=3, expert=0, path=path, offset=0)
        return start(layer, experts, *rest)

    monkeypatch.setattr(stream, "start_reading", failing)
    desk.run()
    (failed,) = desk.of(2, Failed)
    assert (failed.kind, "bad sector" in failed.message) == ("internal", True)
    assert desk.text(1) == expected


def test_what_is_remembered_is_all_that_stays_in_memory(served: Served) -> None:
    desk = Desk(served)
    gc.collect()  # what other tests left
    before = mx.get_active_memory()
    for number, question in enumerate(QUESTIONS):
        desk.ask(number, question, max_tokens=40 - 8 * number)  # the longest leaves first
    desk.run()
    kept = mx.get_active_memory() - before
    assert kept <= desk.scheduler.remembered_bytes + 512 * 1024


def test_an_answer_follows_its_schema(served: Served) -> None:
    desk = Desk(served)
    desk.ask(1, "A number?", max_tokens=120, grammar=NUMBER)
    desk.ask(2, QUESTIONS[0], max_tokens=10)
    desk.run()
    assert isinstance(json.loads(desk.text(1))["n"], int)
    assert desk.of(1, Finished)[0].reason == "stop"
    assert desk.text(2) == alone(served, QUESTIONS[0], max_tokens=10)


def test_an_answer_that_can_follow_its_schema_no_further_fails_alone(served: Served) -> None:
    desk = Desk(served)
    desk.ask(1, "A number?", max_tokens=120, grammar=NUMBER)
    desk.ask(2, QUESTIONS[0], max_tokens=10)
    desk.run(steps=4)
    grammar = processor_of(desk.answers[1].processors)
    assert grammar is not None
    grammar._matcher.consume_token(served.tokenizer.encode("z")[-1])
    desk.run()
    (failed,) = desk.of(1, Failed)
    assert failed.message.startswith("the schema cannot be followed any further: ")
    assert desk.text(2) == alone(served, QUESTIONS[0], max_tokens=10)


def test_a_tool_that_must_be_called_is_called(served: Served) -> None:
    desk = Desk(served)
    desk.ask(1, "Read it.", max_tokens=120, tools=[TOOL], tool_choice="=read")
    desk.run()
    (call,) = desk.of(1, ToolCall)
    assert call.name == "read"
    assert '"path"' in call.arguments
    assert desk.of(1, Finished)[0].reason == "tools"
    assert desk.text(1) == ""


def test_a_call_that_must_be_made_has_no_arguments_but_those_named(served: Served) -> None:
    function = dict(TOOL["function"], parameters={**TOOL["function"]["parameters"]})
    del function["parameters"]["additionalProperties"]
    desk = Desk(served)
    desk.ask(
        1, "Read.", max_tokens=120, tools=[{**TOOL, "function": function}], tool_choice="=read"
    )
    desk.run()
    (call,) = desk.of(1, ToolCall)
    assert json.loads(call.arguments).keys() == {"path"}


def test_a_prompt_can_be_echoed_with_its_log_probabilities(served: Served) -> None:
    desk = Desk(served)
    wanted = Generate(
        request=1, prompt=TextPrompt(text="import os"), echo=True, top_logprobs=2, max_tokens=0
    )
    desk.listener.take(wanted)
    desk.run()
    scored = [one for piece in desk.of(1, Piece) for one in piece.logprobs]
    assert desk.text(1, "prompt") == "import os"
    assert scored[0].logprob is None
    assert all(one.logprob is not None and one.logprob < 0 for one in scored[1:])
    assert all(len(one.top) == 2 for one in scored[1:])
    assert desk.of(1, Finished)[0].completion_tokens == 0


def test_log_probabilities_come_with_each_token(served: Served) -> None:
    desk = Desk(served)
    desk.ask(1, QUESTIONS[0], max_tokens=6, top_logprobs=3)
    desk.run()
    scored = [one for piece in desk.of(1, Piece) for one in piece.logprobs]
    assert len(scored) == 6
    assert "".join(one.text for one in scored) == desk.text(1)
    assert all(one.top[0][0] == one.token for one in scored)  # greedy takes the likeliest


def test_an_answer_ends_where_the_context_does(served: Served) -> None:
    desk = Desk(served)
    room = served.card.context_tokens
    desk.listener.take(
        Generate(request=1, prompt=TokenPrompt(tokens=[10] * (room - 4)), max_tokens=50)
    )
    desk.run()
    end = desk.of(1, Finished)[0]
    assert end.reason in ("context", "stop")
    assert end.completion_tokens <= 4


@pytest.mark.parametrize(
    ("wanted", "kind", "why"),
    [
        ({"prompt": TokenPrompt(tokens=[10] * 5000)}, "context_length", "5000 tokens"),
        ({"prompt": TokenPrompt(tokens=[99999])}, "invalid", "no token 99999"),
        ({"prompt": TextPrompt(text="a", suffix="b")}, "invalid", "suffix"),
        (
            {"prompt": TextPrompt(text="a"), "grammar": Grammar(kind="schema", text="{")},
            "invalid",
            "JSON",
        ),
        (
            {
                "prompt": TextPrompt(text="a"),
                "grammar": Grammar(kind="schema", text='{"type": "nonsense"}'),
            },
            "invalid",
            "nonsense",
        ),
        (
            {
                "prompt": ChatPrompt(
                    messages=[{"role": "user", "content": "a"}],
                    template_options={"chat_template": "{{ 1 }}"},
                )
            },
            "invalid",
            "chat_template",
        ),
        ({"prompt": TextPrompt(text="a"), "tool_choice": "=no"}, "invalid", "no tool 'no'"),
    ],
)
def test_a_request_that_cannot_be_answered_is_refused(
    served: Served, wanted: dict[str, Any], kind: str, why: str
) -> None:
    desk = Desk(served)
    desk.listener.take(Generate(request=1, **wanted))
    (failed,) = desk.told
    assert failed.kind == kind
    assert why in failed.message
    assert desk.scheduler.idle


@pytest.mark.parametrize("rules", [20_000, 40_000])
def test_rules_that_lead_to_rules_are_followed_or_refused(served: Served, rules: int) -> None:
    chain = "\n".join(f"r{rule}:r{rule + 1}" for rule in range(rules))
    grammar = Grammar(kind="lark", text=f'start:r0\n{chain}\nr{rules}:"a"')
    desk = Desk(served)
    desk.ask(1, QUESTIONS[0], max_tokens=4, grammar=grammar)
    desk.run()
    if rules == 20_000:
        assert desk.text(1) == "a"
    else:
        (failed,) = desk.of(1, Failed)
        assert (failed.kind, "longer than" in failed.message) == ("invalid", True)


def test_a_completion_goes_on_where_the_text_ends(served: Served) -> None:
    desk = Desk(served)
    text = "import os\n\ndef f(path):\n    return os.path"
    desk.listener.take(Generate(request=1, prompt=TextPrompt(text=text), max_tokens=8))
    desk.listener.take(Generate(request=2, prompt=TextPrompt(text="for i in"), max_tokens=1))
    desk.run()
    drawn = list(desk.answers[1].tokens)
    assert text + desk.text(1) == served.tokenizer.decode(drawn)
    assert desk.text(2).startswith(" ")


def test_a_prompt_of_nothing_is_answered(served: Served) -> None:
    desk = Desk(served)
    desk.listener.take(Generate(request=1, prompt=TextPrompt(text=""), max_tokens=3))
    desk.run()
    assert desk.of(1, Finished)


def test_a_seed_repeats_an_answer_and_another_changes_it(served: Served) -> None:
    def said(seed: int) -> str:
        sampling = Sampling(temperature=1.5, seed=seed)
        return alone(served, QUESTIONS[3], max_tokens=16, sampling=sampling)

    assert said(1) == said(1)
    assert said(1) != said(2)


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(logit_bias={5: -100.0, 8191: 5.0, 999_999: 1.0}),
        Sampling(temperature=0.7, top_p=0.5, top_k=1_000_000, min_p=0.1),
        Sampling(presence_penalty=1.0, frequency_penalty=2.0, repetition_penalty=1.3),
        Sampling(temperature=1e-9, top_p=0.0, top_k=-1),
    ],
)
def test_every_way_to_draw_works_beside_others(served: Served, sampling: Sampling) -> None:
    desk = Desk(served)
    desk.ask(1, QUESTIONS[0], max_tokens=8, sampling=sampling)
    desk.ask(2, QUESTIONS[1], max_tokens=8)
    desk.run()
    assert desk.of(1, Finished)
    assert desk.text(2) == alone(served, QUESTIONS[1], max_tokens=8)


def test_a_frequency_penalty_ends_repetition(served: Served) -> None:
    def words(**sampling: float) -> list[str]:
        desk = Desk(served)
        prompt = TextPrompt(text="x = 1\n" * 12)
        desk.listener.take(
            Generate(request=1, prompt=prompt, max_tokens=12, sampling=Sampling(**sampling))
        )
        desk.run()
        return desk.text(1).split()

    assert len(set(words(frequency_penalty=2.0))) > len(set(words()))


def test_questions_about_tokens_are_answered(served: Served) -> None:
    desk = Desk(served)
    desk.listener.take(Count(1, TextPrompt(text="import os")))
    desk.listener.take(Detokenize(2, [1168, 1411]))
    assert desk.told == [Counted(1, 2), Rendered(2, "import os")]


def test_what_was_computed_is_kept_across_restarts(tmp_path: Path) -> None:
    options = WorkerOptions(capacity=6, prefetch=False, max_context=512, prompt_cache=str(tmp_path))

    def cached(served: Served) -> Sequence[int]:
        desk = Desk(served)
        desk.ask(1, "How do I use itertools.chain? " * 40, max_tokens=4)
        desk.run()
        desk.scheduler.save()
        return [one.cached_tokens for one in desk.of(1, Started)]

    for expected in (0, 283):
        served = load_served(options, lambda what: None)
        (found,) = cached(served)
        served.close()
        assert (found > 250) == (expected > 250)
