"""Task profiles: which experts a text uses most, kept by name, and in memory from the start."""

import errno
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from calling import call, refusal, report
from comparing import differing, opened, random_tokens, run_logits, stream_of
from families import Family
from routing import random_trace, trace_of
from talking import NUM_EXPERTS, write_talking_model

from mlx_flash import get_warmup_experts
from mlx_flash.cache.policies import POLICIES
from mlx_flash.config import TASKS, CacheOptions, MemoryLimit, ReadOptions
from mlx_flash.engine.find import bundled_model
from mlx_flash.engine.profiles import (
    check_name,
    find_profile,
    is_there,
    load_experts,
    ranking_of,
    save_profile,
)
from mlx_flash.engine.samples import sample_text
from mlx_flash.errors import OptionError, TraceError

COUNTS = [8, 8]


@pytest.fixture(scope="module")
def model(qwen: Family, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_talking_model(qwen, tmp_path_factory.mktemp("talking"))


def test_a_ranking_has_the_most_used_first_and_no_one_who_was_not_used() -> None:
    assert ranking_of(trace_of([[1, 4], [4, 2], [2, 4], [6, 5]], 8)) == [[4, 2, 1, 5, 6]]


@pytest.mark.parametrize("name", ["coding", "a", "My-task_2", "7", "x" * 64])
def test_names_of_profiles(name: str) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize(
    "name",
    [
        "",
        "..",
        "../x",
        "a/b",
        "/etc/passwd",
        "a.json",
        "a\\b",
        "-x",
        "é",
        "a b",
        "a\n",
        "a\0",
        "x" * 65,
    ],
)
def test_a_name_that_could_be_a_path_is_refused_everywhere(name: str, tmp_path: Path) -> None:
    for use in (
        lambda: check_name(name),
        lambda: save_profile(name, random_trace(2), tmp_path),
        lambda: find_profile(name, "a/model", COUNTS, tmp_path),
        lambda: get_warmup_experts(None, name),
    ):
        with pytest.raises(OptionError, match="cannot be the name of a profile"):
            use()
    assert list(tmp_path.iterdir()) == []


def test_a_profile_is_found_again_for_its_model_only(tmp_path: Path) -> None:
    trace = random_trace(30, skew=1.0)
    path = save_profile("mine", trace, tmp_path)
    assert find_profile("mine", "a/model", COUNTS, tmp_path) == ranking_of(trace)
    for model, counts in (("another/model", COUNTS), ("a/model", [8, 9]), ("a/model", [8])):
        with pytest.raises(OptionError, match=f"no profile 'mine' for {model}: make it with"):
            find_profile("mine", model, counts, tmp_path)
    with pytest.raises(OptionError, match="no profile 'mine'"):
        find_profile("mine", "a/model", COUNTS)
    assert [file.name for file in path.parent.iterdir()] == ["mine.json"]


def test_a_newer_profile_takes_the_place_of_one(tmp_path: Path) -> None:
    first, second = random_trace(30, seed=1), random_trace(30, seed=2)
    assert ranking_of(first) != ranking_of(second)
    assert save_profile("mine", first, tmp_path) == save_profile("mine", second, tmp_path)
    assert find_profile("mine", "a/model", COUNTS, tmp_path) == ranking_of(second)


@pytest.mark.parametrize("model", ["../../out", "/abs", "a" * 900, "\ud800", "C:\\x", ""])
def test_the_name_of_a_model_is_never_part_of_a_path(model: str, tmp_path: Path) -> None:
    trace = random_trace(3)
    object.__setattr__(trace.routing, "model", model)
    folder = tmp_path / "kept"
    path = save_profile("mine", trace, folder)
    assert path.parent.parent == folder
    assert list(tmp_path.iterdir()) == [folder]
    assert find_profile("mine", model, COUNTS, folder) == ranking_of(trace)


DAMAGES: list[Any] = [
    b"",
    b"{",
    b"\xff\xfe",
    b"[]",
    b"null",
    b"[" * 100_000,
    b" " * (17 * 1024 * 1024),
    {"version": 2},
    {"experts": None},
    {"experts": [[0]]},
    {"experts": [[0], [8]]},
    {"experts": [[0], [-1]]},
    {"experts": [[0], [1, 1]]},
    {"experts": [[0], [True]]},
    {"experts": [[0], [1.0]]},
    {"experts": [[0], "1"]},
    {"num_experts": "88"},
    {"num_experts": [8, "8"]},
    {"num_experts": None},
]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: repr(damage)[:30])
def test_a_damaged_profile_is_one_sentence(damage: Any, tmp_path: Path) -> None:
    path = save_profile("mine", random_trace(30), tmp_path)
    if isinstance(damage, dict):
        damage = json.dumps(json.loads(path.read_text()) | damage).encode()
    path.write_bytes(damage)
    with pytest.raises(TraceError, match=r"mine.json .*: delete it and make it again\."):
        find_profile("mine", "a/model", COUNTS, tmp_path)


def test_a_folder_that_may_not_be_written_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise OSError(errno.EACCES, os.strerror(errno.EACCES))

    for name in ("mkdir", "write_bytes", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(Path, name, fail)
            with pytest.raises(TraceError, match=r"cannot write .*: Permission denied\."):
                save_profile("mine", random_trace(3), tmp_path)


def test_a_folder_that_may_not_be_looked_into_hides_no_profile_that_ships(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.stat

    def stat(path: Any, *arguments: Any, **options: Any) -> os.stat_result:
        if str(path).startswith(str(tmp_path)):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return real(path, *arguments, **options)

    monkeypatch.setattr(os, "stat", stat)
    counts = [48] * 10
    assert find_profile("coding", "bundled", counts, tmp_path) == get_warmup_experts(None, "coding")
    with pytest.raises(OptionError, match="no profile"):
        find_profile("mine", "bundled", counts, tmp_path)


def test_every_task_has_a_profile_that_ships_and_sample_text() -> None:
    rankings = [get_warmup_experts(bundled_model(), task) for task in TASKS]
    for ranking in rankings:
        assert [len(set(layer)) for layer in ranking] == [len(layer) for layer in ranking]
        assert len(ranking) == 10
        assert all(0 <= expert < 48 for layer in ranking for expert in layer)
    assert len({json.dumps(ranking) for ranking in rankings}) == len(TASKS)
    texts = [sample_text(task) for task in TASKS]
    assert all(30_000 < len(text) <= 60_000 for text in texts)
    assert texts == [sample_text(task) for task in TASKS]
    with pytest.raises(KeyError):
        sample_text("gardening")


def test_a_profile_of_ones_own_goes_before_one_that_ships(tmp_path: Path) -> None:
    trace = random_trace(9, experts=48, layers=10, top_k=4)
    object.__setattr__(trace.routing, "model", "bundled")
    save_profile("coding", trace, tmp_path)
    assert get_warmup_experts(None, "coding", tmp_path) == ranking_of(trace)
    shipped = get_warmup_experts(None, "coding")
    assert get_warmup_experts(None, "coding", str(tmp_path)) != shipped
    save_profile("coding", trace, Path(os.environ["MLX_FLASH_CACHE"]) / "profiles")
    assert get_warmup_experts(None, "coding") == ranking_of(trace)


def test_a_profile_that_is_replaced_or_hidden_is_named(tmp_path: Path) -> None:
    counts = [48] * 10
    trace = random_trace(9, experts=48, layers=10, top_k=4)
    object.__setattr__(trace.routing, "model", "bundled")
    assert is_there("coding", "bundled", counts, tmp_path) == "shipped"
    assert is_there("coding", "bundled", [48] * 9, tmp_path) is None
    assert is_there("mine", "bundled", counts, tmp_path) is None
    save_profile("coding", trace, tmp_path)
    assert is_there("coding", "bundled", counts, tmp_path) == "own"


def test_a_missing_profile_is_made_with_the_options_that_it_needs(tmp_path: Path) -> None:
    for name, options in (("coding", "coding"), ("mine", "mine --text FILE")):
        with pytest.raises(OptionError) as caught:
            find_profile(name, "a/model", COUNTS, tmp_path)
        made = f"make it with mlx-flash trace MODEL --profile {options} (it is not in {tmp_path})."
        assert str(caught.value).endswith(made)


@pytest.mark.parametrize(
    ("capacity", "policy"),
    [*((3, policy) for policy in POLICIES), (1, "forward"), (NUM_EXPERTS, "forward")],
)
def test_the_best_are_in_memory_when_loading_ends_and_no_bit_changes(
    checkpoint: Path, capacity: int, policy: str
) -> None:
    options = CacheOptions(capacity=capacity, policy=policy)
    reads = ReadOptions(prefetch=False)
    ours, cold = (opened(checkpoint, options, MemoryLimit(), "cpu", reads) for _ in range(2))
    stream = stream_of(ours)
    rng = np.random.default_rng(1)
    ranking = [rng.permutation(NUM_EXPERTS)[:5].tolist() for _ in ours.layouts]
    best = [layer[:capacity] for layer in ranking]
    assert load_experts(stream, ranking) == sum(map(len, best))
    assert [stream.cache.ranked(layer) for layer in range(len(best))] == best
    assert stream.counters.bytes_read == stream.counters.restored_bytes > 0
    assert load_experts(stream, ranking) == 0
    prompt = random_tokens(3, 128)
    assert differing(run_logits(ours.model, prompt, 6), run_logits(cold.model, prompt, 6)) == []
    assert capacity < NUM_EXPERTS or stream.counters.hits > stream_of(cold).counters.hits
    stream.cache.check_integrity()


def test_a_profile_made_by_command_is_used_by_name(model: Path, tmp_path: Path) -> None:
    text = tmp_path / "notes.txt"
    text.write_text("import os\n" * 40)
    made = report("trace", model, "--text", text, "--profile", "mine")
    assert (made["trace"], made["profile"], made["domains"]) == (None, "mine", ["notes"])
    assert made["replaced"] is None
    ask = ["generate", model, "-p", "import", "-n", "5", "--capacity", "3", "--no-prefetch"]
    plain, known = report(*ask, "--cold"), report(*ask, "--profile", "mine")
    assert known["tokens"] == plain["tokens"]
    kept = get_warmup_experts(model, "mine")
    assert known["restored"] == sum(min(3, len(layer)) for layer in kept) > 0 == plain["restored"]
    assert known["hit_rate"] > plain["hit_rate"]
    assert os.listdir(os.environ["MLX_FLASH_CACHE"]) == ["profiles"]  # nothing is remembered
    said = call(*ask, "--profile", "mine").stderr
    assert f"profile mine: {known['restored']} experts read before the first token" in said
    assert "warm start" not in said
    again = call("trace", model, "--text", text, "--profile", "mine").stderr
    assert f"profile kept: mlx-flash generate {model} --profile mine -p ..." in again
    assert "it takes the place of your earlier one." in again
    assert "no profile 'coding' for " in refusal(*ask, "--profile", "coding")
    assert "cannot be the name" in refusal(*ask, "--profile", "../mine")


def test_a_model_that_runs_resident_uses_no_profile_and_no_split_and_says_so(
    model: Path, tmp_path: Path
) -> None:
    text = tmp_path / "notes.txt"
    text.write_text("import os\n" * 40)
    path = tmp_path / "notes.trace"
    report("trace", model, "--text", text, "--profile", "mine", "-o", path)
    ask = ["generate", model, "-p", "import", "-n", "1", "--profile", "mine", "--split-by", path]
    resident = call(*ask, "--memory", "all").stderr
    assert "nothing is streamed, and --profile and --split-by not used: the whole" in resident
    streamed = call(*ask, "--capacity", "3")
    assert "not used" not in streamed.stderr
    split = report(*ask, "--capacity", "3")["split"]
    said = "Slots are split among layers by" if split else "no split of the slots hits more"
    assert said in streamed.stderr


def test_a_user_without_a_home_is_told_that_nothing_is_kept(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("MLX_FLASH_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", fail)
    assert "set MLX_FLASH_CACHE" in refusal("trace", model, "--profile", "coding")
