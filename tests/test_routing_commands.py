"""`trace`, `replay` and `generate --trace` as a user meets them: what they print and refuse."""

import errno
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from calling import call, refusal, report
from families import Family
from routing import random_trace
from talking import NUM_EXPERTS, TOP_K, write_talking_model

from mlx_flash import Trace, read_trace
from mlx_flash.engine.replay import REPLAY_NAMES, replay
from mlx_flash.telemetry.trace_file import TraceWriter

PNG = b"\x89PNG\r\n\x1a\n"
ASK = ("-p", "import os\n" * 90, "--no-chat-template", "-n", "12", "--cold", "--no-prefetch")


@pytest.fixture(scope="module")
def model(qwen: Family, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_talking_model(qwen, tmp_path_factory.mktemp("talking"))


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "code.txt"
    path.write_text("def f(x):\n    return x + 1\n" * 20)
    return path


def saved(trace: Trace, path: Path) -> Path:
    """Write a trace, a block per domain."""
    writer = TraceWriter(path, trace.routing)
    for name, part in trace.by_domain().items():
        writer.add(name, part.experts, part.weights)
    writer.close()
    return path


@pytest.mark.parametrize("policy", ["forward", "lru", "slru"])
@pytest.mark.parametrize("capacity", [1, TOP_K, TOP_K + 1, NUM_EXPERTS // 2])
def test_an_answer_hits_just_what_the_replay_of_its_trace_does(
    model: Path, capacity: int, policy: str, tmp_path: Path
) -> None:
    slots = ("--capacity", str(capacity), "--policy", policy)
    path = tmp_path / "trace"
    answer = report("generate", model, *ASK, *slots, "--trace", path)
    trace = read_trace(path)
    assert trace.domains == (("generated", trace.num_tokens),)
    assert trace.num_tokens == answer["prompt_tokens"] + 12  # mlx-lm computes one token ahead
    assert (trace.steps > 1).any()
    done = replay(trace, policy, capacity)
    assert done.hit_rate == answer["hit_rate"]
    assert done.read_bytes == answer["expert_bytes_read"]
    compared = report("replay", path, "--recorded-passes", *slots)
    assert compared["rows"][0]["hit_rate"] == answer["hit_rate"]


def test_a_trace_changes_no_answer_also_where_all_experts_fit(model: Path, tmp_path: Path) -> None:
    plain = report("generate", model, *ASK, "--memory", "all")
    traced = report("generate", model, *ASK, "--memory", "all", "--trace", tmp_path / "trace")
    assert traced["tokens"] == plain["tokens"]
    before = read_trace(tmp_path / "trace")
    again = report("generate", model, *ASK, "--capacity", "2", "--trace", tmp_path / "trace")
    assert again["tokens"] == plain["tokens"]
    both = read_trace(tmp_path / "trace")
    assert np.array_equal(both.experts[: before.num_tokens], before.experts)
    assert np.array_equal(both.experts[before.num_tokens :], before.experts)


def test_text_is_traced_domain_by_domain(model: Path, text: Path, tmp_path: Path) -> None:
    other, path = tmp_path / "talk.txt", tmp_path / "trace"
    other.write_text("How are you?\n" * 9)
    first = report(
        "trace", model, "--text", text, "--text", other, "-o", path, "--max-tokens", "50"
    )
    assert first["domains"] == ["code", "talk"]
    assert (first["experts_per_layer"], first["top_k"]) == (NUM_EXPERTS, TOP_K)
    assert first["layers"] == len(read_trace(path).routing.num_experts)
    assert read_trace(path).domains[0] == ("code", 50)
    assert read_trace(path).num_tokens == first["tokens"]
    report("trace", model, "--text", text, "-o", path, "--domain", "own", "--max-tokens", "7")
    assert read_trace(path).domains[2] == ("own", 7)
    said = call("trace", model, "--text", text, "-o", path, "--max-tokens", "2").stderr
    assert "2 tokens in" in said
    assert "mlx-flash replay" in said


def test_what_replay_prints_for_scripts(tmp_path: Path) -> None:
    domains = [("code", 30), ("talk", 50)]
    path = saved(random_trace(80, skew=1.0, domains=domains), tmp_path / "trace")
    found = report("replay", path)
    assert found.keys() >= {"traces", "rows", "controls"}
    assert found["traces"] == [str(path)]
    assert [row["policy"] for row in found["rows"][::3]] == list(REPLAY_NAMES)
    assert [row["capacity"] for row in found["rows"][:3]] == [2, 4, 6]
    assert found["rows"][0].keys() >= {"policy", "capacity", "hit_rate", "bytes_per_token"}
    assert [control["capacity"] for control in found["controls"]] == [2, 4, 6]
    best = {row["capacity"]: row["hit_rate"] for row in found["rows"] if row["policy"] == "belady"}
    assert all(row["hit_rate"] <= best[row["capacity"]] + 1e-12 for row in found["rows"])
    last = report("replay", path, path, "--policy", "lru", "--max-tokens", "20")
    assert last["tokens"] == {"code": 20, "talk": 20}
    assert len(last["rows"]) == 3


def test_replay_shows_each_number_under_its_capacity(tmp_path: Path) -> None:
    path = saved(random_trace(60), tmp_path / "trace")
    options = ("--policy", "lru", "--policy", "lru", "--capacity", "6", "--capacity", "2")
    shown = call("replay", path, *options, "--capacity", "6").stdout
    lines = [line.split("│")[1:-1] for line in shown.splitlines() if "│" in line]
    rows = [[cell.strip() for cell in line] for line in lines]
    found = report("replay", path, *options)
    few, many = (f"{row['hit_rate']:.1%}" for row in found["rows"])
    assert [row[:3] for row in rows if row[1] != "shuffled"] == [
        ["2 of 8", "lru", few],
        ["", "uniform", "25.0%"],
        ["6 of 8", "lru", many],
        ["", "uniform", "75.0%"],
    ]


@pytest.mark.parametrize("columns", [80, 50])
def test_replay_cuts_nothing_off_however_many_domains_and_capacities(
    columns: int, tmp_path: Path
) -> None:
    domains = [(name, 20) for name in ("a-domain-with-a-long-name", "code", "talk")]
    path = saved(random_trace(60, domains=domains), tmp_path / "trace")
    options = [option for slots in "12345678" for option in ("--capacity", slots)]
    shown = call("replay", path, *options, columns=columns).stdout
    found = report("replay", path, *options)
    assert "…" not in shown
    assert all(f"{row['hit_rate']:.1%}" in shown for row in found["rows"])
    assert columns < 80 or all(policy in shown for policy in REPLAY_NAMES)
    assert "in turn: of the domains one after the other" in shown


def test_what_was_cut_off_a_trace_is_said(tmp_path: Path) -> None:
    path = saved(random_trace(60, domains=[("code", 20), ("talk", 40)]), tmp_path / "trace")
    path.write_bytes(path.read_bytes()[:-3])
    found = call("replay", path, "--policy", "lru")
    assert found.code == 0
    assert f"{path} was cut off: its last 40 tokens are left out." in found.stderr


def test_a_plot_is_a_png_file(tmp_path: Path) -> None:
    trace = random_trace(40)
    object.__setattr__(trace.routing, "model", r"$\no{maths$")
    path = saved(trace, tmp_path / "trace")
    plot = tmp_path / "hits.PNG"
    assert call("replay", path, "--policy", "lru", "--plot", plot).code == 0
    assert plot.read_bytes().startswith(PNG)
    for wrong, why in (
        ("hits.svg", "ends in .png"),
        ("hits", "ends in .png"),
        ("none/hits.png", "is no folder"),
    ):
        assert why in refusal("replay", path, "--plot", tmp_path / wrong)
    (tmp_path / "folder.png").mkdir()
    assert "Is a directory" in refusal(
        "replay", tmp_path / "none", "--plot", tmp_path / "folder.png"
    )


def test_without_matplotlib_the_way_to_install_it_is_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = saved(random_trace(4), tmp_path / "trace")
    monkeypatch.setattr("mlx_flash.bench.plots.find_spec", lambda name: None)
    assert "pip install 'mlx-flash[plot]'" in refusal("replay", path, "--plot", "hits.png")
    assert "pip install 'mlx-flash[plot]'" in refusal("plan", "--plot", "plan.png")


def test_replay_refuses_what_it_cannot_read(tmp_path: Path) -> None:
    path = saved(random_trace(6), tmp_path / "trace")
    other = saved(random_trace(6, experts=9), tmp_path / "other")
    empty, header, foreign = tmp_path / "empty", tmp_path / "header", tmp_path / "foreign"
    empty.touch()
    TraceWriter(header, random_trace(1).routing).close()
    foreign.write_bytes(PNG)
    for wrong, why in (
        (tmp_path / "none", "No such file"),
        (tmp_path, "Is a directory"),
        (empty, "is no routing trace"),
        (header, "holds no tokens"),
        (foreign, "is no routing trace"),
        (other, "do not go together"),
    ):
        assert why in refusal("replay", path, wrong)
    assert "no policy 'magic'" in refusal("replay", path, "--policy", "magic")
    assert "9 is more" in refusal("replay", path, "--capacity", "9")


def test_trace_refuses_what_it_cannot_do(model: Path, text: Path, tmp_path: Path) -> None:
    latin, blank, out = tmp_path / "latin.txt", tmp_path / "blank.txt", tmp_path / "trace"
    latin.write_bytes("naïve".encode("latin-1"))
    blank.write_text(" \n\t\n")
    for wrong, why in (
        (latin, "is not UTF-8 text (byte 2)"),
        (blank, "is empty"),
        (tmp_path / "none.txt", "No such file"),
        (tmp_path, "Is a directory"),
    ):
        assert why in refusal("trace", model, "--text", wrong, "-o", out)
    assert "say where the trace goes" in refusal("trace", model, "--text", text)
    assert "--text FILE" in refusal("trace", model, "-o", out)
    assert "--text FILE" in refusal("trace", model, "--profile", "mine")
    assert "cannot be the name" in refusal("trace", model, "--profile", "a/b", "--text", text)
    assert not out.exists()
    before = text.read_bytes()
    assert "give another output file" in refusal("trace", model, "--text", text, "-o", text)
    assert "give another output file" in refusal("generate", model, *ASK, "--trace", text)
    assert text.read_bytes() == before
    foreign = saved(random_trace(3), tmp_path / "foreign")
    assert "is a trace of a/model" in refusal("trace", model, "--text", text, "-o", foreign)
    assert "is a trace of a/model" in refusal("generate", model, *ASK, "--trace", foreign)
    none = tmp_path / "none" / "trace"
    assert "No such file" in refusal("trace", model, "--text", text, "-o", none)
    assert "does not exist" in refusal("trace", "nowhere", "--text", text, "-o", out)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_full_disk_is_one_sentence(model: Path, text: Path) -> None:
    assert "No space left" in refusal("trace", model, "--text", text, "-o", "/dev/full")
    assert "No space left" in refusal("generate", model, *ASK, "--trace", "/dev/full")


@pytest.mark.parametrize("what", ["-o", "--profile", "--text"])
def test_a_folder_without_permission_is_one_sentence(
    model: Path, text: Path, what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = tmp_path / "closed"
    monkeypatch.setenv("MLX_FLASH_CACHE", str(closed))

    def forbid(name: str, owner: Any) -> None:
        real = getattr(owner, name)

        def guarded(path: Any, *arguments: Any, **options: Any) -> Any:
            if str(path).startswith(str(closed)):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
            return real(path, *arguments, **options)

        monkeypatch.setattr(owner, name, guarded)

    forbid("open", os)
    forbid("mkdir", os)
    forbid("open", Path)
    options = {"--text": text, "-o": tmp_path / "trace", "--profile": "mine"}
    options |= {} if what == "--profile" else {what: closed / "file"}
    arguments = [argument for option in options.items() for argument in option]
    assert "Permission denied" in refusal("trace", model, *arguments, "--max-tokens", "64")


@pytest.mark.parametrize("number", [1, 5])
def test_a_text_too_short_to_learn_from_is_refused(
    number: int, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mlx_flash.engine.load.load_model", lambda *_, **__: pytest.fail("loaded"))
    few = tmp_path / "few.txt"
    few.write_text(" a" * number)
    found = "1 token" if number == 1 else "5 tokens"
    for command in (("bench", "predictors", model), ("trace", model, "--profile", "mine")):
        sentence = refusal(*command, "--text", few)
        assert f"the text is too short ({found}): give 64 tokens or more." in sentence


@pytest.mark.parametrize("command", ["-o", "--profile", "generate", "--plot"])
def test_what_cannot_be_written_is_found_before_anything_is_loaded(
    command: str, model: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for place in ("load", "plan"):
        name = f"mlx_flash.engine.{place}.load_model"
        monkeypatch.setattr(name, lambda *_, **__: pytest.fail("loaded"))
    file = tmp_path / "file"
    file.touch()
    monkeypatch.setenv("MLX_FLASH_CACHE", str(file / "cache"))
    arguments = {
        "-o": ("trace", model, "--text", text, "-o", file / "trace"),
        "--profile": ("trace", model, "--text", text, "--profile", "mine"),
        "generate": ("generate", model, *ASK, "--trace", file / "trace"),
        "--plot": ("plan", model, "--plot", tmp_path),
    }
    sentence = refusal(*arguments[command])
    assert "Not a directory" in sentence or command == "--plot"
    assert list(tmp_path.iterdir()) == [text, file] or set(tmp_path.iterdir()) == {text, file}


def test_a_text_that_leaves_no_token_is_refused(
    model: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "mlx_lm.tokenizer_utils.TokenizerWrapper.encode", lambda *_: [], raising=False
    )
    assert "has no tokens" in refusal("trace", model, "--text", text, "-o", tmp_path / "trace")


def test_a_model_without_experts_has_no_routing(
    model: Path, text: Path, qwen: Family, tmp_path: Path
) -> None:
    folder = write_talking_model(qwen, tmp_path / "dense", dense=True)
    assert "no experts" in refusal("trace", folder, "--text", text, "-o", tmp_path / "trace")
    assert "no experts" in refusal("generate", folder, *ASK, "--trace", tmp_path / "trace")
    assert "no profile" in refusal("generate", folder, *ASK, "--profile", "coding")
    assert not (tmp_path / "trace").exists()
    assert json.loads((folder / "config.json").read_text())["model_type"] == "qwen3"
