"""`mlx-flash demo warmup`: what it shows is what the engine did, in a terminal and elsewhere."""

import contextlib
import fcntl
import io
import os
import pty
import re
import signal
import struct
import subprocess
import termios
from collections.abc import Iterator

import mlx.core as mx
import pytest
from rich.console import Console
from test_cli import answer, command, read_all, refused, run

from mlx_flash.cli.bars import BLOCKS, PLAIN, bars, columns, round_above
from mlx_flash.cli.warmup_view import Setting, WarmupView, summary_lines
from mlx_flash.config import CacheOptions, MemoryLimit, ReadOptions, WarmupOptions
from mlx_flash.engine.load import LoadedModel, ModelFiles, load_model
from mlx_flash.engine.warmup import (
    TokenMeasurement,
    encode_phases,
    follow,
    hit_rate,
    quarter_of_experts,
    summarize,
)
from mlx_flash.errors import OptionError
from mlx_flash.streaming.tokens import follow_tokens

OPTIONS = WarmupOptions(num_tokens=32)
DEMO = ["demo", "warmup", "-n", "32"]
JSON_KEYS = {
    *("model", "policy", "profile", "capacity", "experts_per_layer", "interrupted", "restored"),
    *("phase", "asks", "hits", "hit_rate", "token_s", "bytes_read", "summary"),
}


@pytest.fixture(scope="module")
def files() -> ModelFiles:
    return ModelFiles.open(None)


@pytest.fixture
def loaded(files: ModelFiles) -> Iterator[LoadedModel]:
    model = load_model(
        files.checkpoint,
        MemoryLimit(),
        CacheOptions(capacity=12),
        context_tokens=32,
        prefill_steps=[1],
        read_options=ReadOptions(prefetch=False),
    )
    with contextlib.closing(model):
        yield model


def test_the_hit_rate_rises_in_a_domain_and_drops_at_the_change(
    loaded: LoadedModel, files: ModelFiles
) -> None:
    assert loaded.stream is not None
    phases = encode_phases(files.tokenizer, OPTIONS, files.checkpoint.context_tokens)
    measured = list(follow(loaded, phases))
    first, second = measured[:32], measured[32:64]
    assert hit_rate(first[:1]) == 0.0
    assert hit_rate(first[:8]) < hit_rate(first[8:])
    assert hit_rate(second[:8]) < hit_rate(first[16:]) - 0.1
    assert hit_rate(second[:1]) > 0.0
    counters = loaded.stream.counters
    assert sum(token.asks for token in measured) == counters.asks
    assert sum(token.hits for token in measured) == counters.hits
    assert sum(token.bytes_read for token in measured) == counters.bytes_read
    assert {token.phase for token in measured} == {0, 1, 2}
    assert min(token.seconds for token in measured) > 0


def test_followed_tokens_give_the_logits_of_one_pass(
    loaded: LoadedModel, files: ModelFiles
) -> None:
    tokens = files.tokenizer.encode("import os\n")
    *_, last = follow_tokens(loaded.model, tokens)
    whole = loaded.model(mx.array([tokens]))[0, -1]
    assert mx.allclose(last, whole, atol=1e-3)


def test_the_last_phase_goes_on_where_the_first_ended(files: ModelFiles) -> None:
    first, second, third = encode_phases(files.tokenizer, OPTIONS, None)
    whole, *_ = encode_phases(files.tokenizer, WarmupOptions(num_tokens=64), None)
    assert first + third == whole
    assert [len(first), len(second), len(third)] == [32, 32, 32]


def test_a_quarter_of_the_experts_is_the_default(files: ModelFiles) -> None:
    assert quarter_of_experts(files.checkpoint) == 12


def token(phase: int, hits: int) -> TokenMeasurement:
    return TokenMeasurement(phase, 40, hits, 0.02, 1000)


def test_a_summary_says_when_a_phase_is_near_its_steady_state() -> None:
    cold = [token(0, 0)] * 10 + [token(0, 20)] * 54
    (phase,) = summarize(["math", "coding", "math"], cold)
    assert (phase.domain, phase.tokens, phase.bytes_read) == ("math", 64, 64_000)
    assert phase.first_hit_rate == 6 * 20 / (16 * 40)
    assert phase.steady_hit_rate == 0.5
    assert phase.tokens_to_steady == 10
    (short,) = summarize(["math"], cold[:12])
    assert short.tokens_to_steady is None
    assert summarize(["math"], []) == []


def test_json_has_a_number_for_each_token() -> None:
    report = answer(*DEMO, "--capacity", "6", "--policy", "lru")
    assert report.keys() >= JSON_KEYS
    assert (report["capacity"], report["policy"], report["interrupted"]) == (6, "lru", False)
    for name in ("phase", "asks", "hits", "hit_rate", "token_s", "bytes_read"):
        assert len(report[name]) == 96
    assert [phase["domain"] for phase in report["summary"]] == ["math", "coding", "math"]
    assert report["restored"] == 0


def test_more_slots_than_experts_are_said_to_be_none() -> None:
    said = run(*DEMO, "--capacity", "500").stderr
    assert "The model has 48 experts per layer: there are no more slots than that." in said


def test_a_profile_fills_the_slots_before_the_first_token() -> None:
    report = answer(*DEMO, "--profile", "math")
    assert report["restored"] == 10 * report["capacity"]
    assert report["hit_rate"][0] > 0.2
    assert "no profile 'poems'" in refused(*DEMO, "--profile", "poems")


def test_all_the_memory_leaves_nothing_to_lose_at_a_change() -> None:
    report = answer(*DEMO, "--memory", "all")
    first, _, back = report["summary"]
    assert report["capacity"] == report["experts_per_layer"]
    assert first["first_hit_rate"] < back["first_hit_rate"]


def test_elsewhere_than_in_a_terminal_there_is_a_line_every_16_tokens() -> None:
    result = run(*DEMO)
    assert result.returncode == 0, result.stderr
    assert "\x1b" not in result.stdout + result.stderr
    lines = result.stdout.splitlines()
    assert "12 slots for 48 experts per layer" in lines[0]
    counted = [line for line in lines if line.startswith("token")]
    assert [int(line.split()[1]) for line in counted] == [16, 32, 48, 64, 80, 96]
    assert re.search(r"coding: hit rate \d+\.\d%, \d+\.\d ms per token, \d+\.\d MB", counted[2])
    assert lines[-2].startswith("back in math")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["-n", "31"], "show no steady state: give 32 or more"),
        (["-n", "2049"], "give 2048 at most"),
        (["--first", "poems"], "no sample text of 'poems'"),
        (["--second", "math"], "nothing changes"),
        (["--capacity", "0"], "give 1 or more"),
        (["--capacity", "8", "--memory", "40%"], "not both"),
        (["--policy", "magic"], "no policy 'magic'"),
        (["--reader", "magic"], "no reader 'magic'"),
        (["/nowhere"], "/nowhere"),
    ],
)
def test_bad_options_are_refused_in_one_sentence(options: list[str], sentence: str) -> None:
    assert sentence in refused("demo", "warmup", *options)


def test_more_tokens_than_there_is_text_are_refused(files: ModelFiles) -> None:
    with pytest.raises(OptionError, match="at most"):
        encode_phases(files.tokenizer, WarmupOptions(num_tokens=50_000), None)


def test_a_terminal_of_80_columns_shows_charts_and_ctrl_c_ends_them() -> None:
    primary, secondary = pty.openpty()
    fcntl.ioctl(secondary, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    environment = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES")}
    process = subprocess.Popen(
        command("demo", "warmup", "-n", "2000", "--capacity", "6"),
        stdout=secondary,
        stderr=secondary,
        env=environment | {"TERM": "xterm"},
    )
    os.close(secondary)
    shown = b""
    while shown.count(b"ms per token, median") < 3:
        shown += os.read(primary, 4096)
    charts = shown.decode(errors="replace")  # the interrupt may come in the middle of a row
    process.send_signal(signal.SIGINT)
    output = shown.decode(errors="replace") + read_all(primary)
    assert process.wait(timeout=60) == 1
    assert "Traceback" not in output
    assert output.rstrip().endswith("interrupted")
    assert "first 16 tokens" in output
    plain = re.sub(r"\x1b\[[0-9;?]*m", "", charts)
    moves = r"[\r\n]+|\x1b\[[0-9;?]*[A-Za-z]"  # a chart is drawn over the one before
    assert max(map(len, re.split(moves, plain))) <= 80


@pytest.mark.parametrize(("width", "height"), [(80, 24), (40, 12), (200, 60), (20, 5)])
def test_the_charts_fit_and_mark_the_change(width: int, height: int) -> None:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=width, height=height, no_color=True)
    setting = Setting(("math", "coding", "math"), 40, "a title")
    with WarmupView(console, setting) as view:
        for number in range(60):
            view.update(token(number // 40, 10 if number < 40 else 40))
    last = screen.getvalue().rpartition("a title")[2]
    rows = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", last).replace("\r", "").splitlines()
    assert max(map(len, rows)) <= width
    assert rows[1].count("│") == 2
    highest = rows[3].split("│")
    assert ("█" in highest[0], "█" in highest[1], "█" in highest[2]) == (False, True, False)


def test_bars_are_as_high_as_their_values() -> None:
    assert bars([0, 50, 100], 100, 2, BLOCKS) == ["  █", " ██"]
    assert bars([25, 0.01], 100, 2, BLOCKS) == ["  ", "▄▁"]
    assert bars([100, 40, 0], 100, 2, PLAIN) == ["# ".ljust(3), "## "]


def test_columns_show_the_last_value_that_falls_into_them() -> None:
    assert columns([1, 2, 3, 4], 4, 2) == [2, 4]
    assert columns([1, 2, 3], 4, 2) == [2, 3]
    assert columns([1], 4, 2) == [1]
    assert columns([], 4, 2) == []
    assert columns([1, 2], 2, 10) == [1, 2]


@pytest.mark.parametrize(("value", "top"), [(0.7, 0.8), (19, 20), (20, 20), (61, 80), (101, 150)])
def test_an_axis_ends_at_a_round_number(value: float, top: float) -> None:
    assert round_above(value) == pytest.approx(top)


def test_closing_lines_say_what_the_change_cost() -> None:
    measured = [token(0, 30)] * 32 + [token(1, 10)] * 32
    lines = summary_lines(summarize(["math", "coding", "math"], measured))
    assert lines[-1].endswith("from 75.0% to 25.0%")
    assert max(map(len, lines)) <= 80


def test_demo_is_listed() -> None:
    assert "warmup" in run("demo", "--help").stdout
