"""The command line as a user meets it: what it prints, and how it refuses."""

import json
import os
import pty
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from families import FAMILIES, write_checkpoint

from mlx_flash.engine.find import bundled_model
from mlx_flash.folders import warm_start_folder

QUESTION = ["generate", "-p", "What does shutil.copytree do?", "-n", "24"]
GENERATE_KEYS = {
    *("text", "tokens", "prompt_tokens", "generation_tokens", "ttft_s", "prompt_tps"),
    *("generation_tps", "hit_rate", "expert_bytes_read", "stall_s", "memory_limit_bytes"),
    *("resident_bytes", "slot_bytes", "capacity", "experts_per_layer", "peak_rss_bytes"),
    *("backend", "lossy", "restored"),
}
DOCTOR_KEYS = {
    *("versions", "backend", "cores", "memory_bytes", "memory_available_bytes", "ssd_gbps"),
    *("ssd_latency_s", "direct_io", "problems"),
}


def command(*arguments: str | Path) -> list[str]:
    code = "from mlx_flash.cli.main import run; run()"
    return [sys.executable, "-c", code, *map(str, arguments)]


def run(*arguments: str | Path) -> "subprocess.CompletedProcess[str]":
    environment = os.environ | {"COLUMNS": "100", "HF_HUB_OFFLINE": "1"}
    return subprocess.run(
        command(*arguments), capture_output=True, text=True, check=False, env=environment
    )


def refused(*arguments: str | Path) -> str:
    """Run what must be refused; return its one sentence."""
    result = run(*arguments)
    assert result.returncode == 2, result
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    (line,) = result.stderr.splitlines()
    assert line.startswith("mlx-flash: ")
    return line


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["generate"], "Missing option"),
        (["generate", "-p", "x", "-n", "-1"], "'--max-tokens'"),
        (["generate", "-p", "x", "--no-such-option"], "No such option: --no-such-option"),
        (["plan", "--total-ram", "much"], "'--total-ram'"),
        (["replay", "x", "--capacity", "0"], "'--capacity'"),
        (["demo", "warmup", "--capacity"], "--capacity"),
        (["genrate"], "generate"),
    ],
)
def test_wrong_usage_is_one_sentence(arguments: list[str], sentence: str) -> None:
    line = refused(*arguments)
    assert sentence in line
    assert line.endswith("--help).")


def test_help_is_help() -> None:
    asked, unasked = run("generate", "--help"), run()
    assert (asked.returncode, asked.stderr) == (0, "")
    assert "Usage: mlx-flash generate" in asked.stdout
    assert "Usage: mlx-flash" in unasked.stdout + unasked.stderr
    assert unasked.returncode == 2


def answer(*arguments: str | Path) -> dict[str, Any]:
    result = run(*arguments, "--json")
    assert result.returncode == 0, result.stderr
    report: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return report


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A copy of the bundled model that a test may break."""
    return Path(shutil.copytree(bundled_model(), tmp_path / "model"))


def test_an_answer_is_the_same_streamed_and_resident() -> None:
    resident = answer(*QUESTION, "--memory", "all")
    assert resident["text"].startswith("Recursively copy a directory tree")
    assert (resident["expert_bytes_read"], resident["hit_rate"]) == (0, 1.0)
    assert resident["prefetch"]["why_off"] == "nothing is streamed"
    assert resident["capacity_now"] == resident["capacity"] == 48
    for limit in ("35%", "60%"):
        streamed = answer(*QUESTION, "--memory", limit)
        assert streamed["tokens"] == resident["tokens"]
        assert streamed["expert_bytes_read"] > 0
        assert streamed.keys() >= GENERATE_KEYS
        assert streamed["lossy"] == []
        assert streamed["slot_bytes"] < 0.6 * streamed["expert_bytes"]
        planned = streamed["resident_bytes"] + streamed["slot_bytes"]
        assert planned < streamed["memory_limit_bytes"]
        assert streamed["peak_model_bytes"] <= streamed["memory_limit_bytes"]


def test_piped_output_is_the_answer_and_nothing_else() -> None:
    result = run(*QUESTION, "--memory", "40%")
    assert result.stdout.startswith("Recursively copy a directory tree")
    assert "\x1b" not in result.stdout + result.stderr
    assert "tokens/s" not in result.stdout
    for part in ("tokens/s", "hit rate", "read", "allowed"):
        assert part in result.stderr


def test_verifying_a_model_without_checksums_is_said_in_one_line() -> None:
    result = run(*QUESTION, "--capacity", "8", "--verify")
    assert result.returncode == 0
    assert result.stderr.count("no checksums to compare") == 1
    assert "no checksums" not in run(*QUESTION, "--capacity", "8").stderr


def test_more_slots_than_experts_are_said_not_to_be_there() -> None:
    result = run(*QUESTION, "--capacity", "999", "--json")
    assert (
        result.stderr == "The model has 48 experts per layer: there are no more slots than that.\n"
    )
    report = json.loads(result.stdout)
    assert report["capacity_now"] == report["capacity"] == 48
    assert "no more slots" not in run(*QUESTION, "--capacity", "48").stderr


def test_one_token_has_no_speed() -> None:
    notes = run("generate", "-p", "import os", "-n", "1").stderr
    assert "\n1 token (prompt: " in notes
    assert "tokens/s" not in notes


def test_experts_of_a_profile_are_not_called_those_of_the_last_run() -> None:
    notes = run(*QUESTION, "--capacity", "8", "--profile", "coding").stderr
    assert "profile coding: 80 experts read before the first token, " in notes
    assert "warm start" not in notes


def test_a_terminal_shows_a_status_line() -> None:
    primary, secondary = pty.openpty()
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "100"}
    process = subprocess.Popen(
        command(*QUESTION, "--memory", "40%"), stdout=secondary, stderr=secondary, env=environment
    )
    os.close(secondary)
    shown = read_all(primary)
    assert process.wait() == 0
    assert "Recursively copy a directory tree" in shown
    assert "tokens/s · hit rate" in shown


def read_all(descriptor: int) -> str:
    """Return what is written to a terminal until it closes."""
    content = b""
    try:
        while chunk := os.read(descriptor, 4096):
            content += chunk
    except OSError:  # how Linux says that the other end is closed
        pass
    os.close(descriptor)
    return content.decode()


def test_interrupting_ends_cleanly_with_what_there_is() -> None:
    process = subprocess.Popen(
        command(
            "generate", "-p", "import os", "--no-chat-template", "-n", "900", "--capacity", "2"
        ),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    first = process.stdout.read(1)
    process.send_signal(signal.SIGINT)
    rest, notes = process.communicate(timeout=60)
    assert process.returncode == 1
    assert first + rest
    assert b"Traceback" not in notes
    assert notes.rstrip().endswith(b"interrupted")


def test_a_warm_start_gives_the_same_answer_and_cold_forgets_and_keeps_nothing() -> None:
    cache = Path(os.environ["MLX_FLASH_CACHE"])
    slots = ["--capacity", "6"]
    cold = answer(*QUESTION, *slots, "--cold")
    assert cold["restored"] == 0
    assert list(cache.iterdir()) == []
    first, second = answer(*QUESTION, *slots), answer(*QUESTION, *slots)
    assert (first["restored"], second["restored"] > 0) == (0, True)
    assert cold["tokens"] == first["tokens"] == second["tokens"]
    assert "warm start: " in run(*QUESTION, *slots).stderr


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_run_is_remembered_and_a_killed_one_leaves_what_was(how: int) -> None:
    answer(*QUESTION, "--capacity", "2")
    (record,) = (Path(os.environ["MLX_FLASH_CACHE"]) / "warm-start").iterdir()
    before = record.read_bytes()
    process = subprocess.Popen(
        command("generate", "-p", "import", "--no-chat-template", "-n", "900", "--capacity", "2"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    process.stdout.read(1)
    process.send_signal(how)
    process.communicate(timeout=60)
    assert list(record.parent.iterdir()) == [record]
    assert (record.read_bytes() == before) == (how == signal.SIGKILL)
    assert answer(*QUESTION, "--capacity", "2")["restored"] > 0


@pytest.mark.parametrize(
    ("platform", "environment", "folder"),
    [
        ("linux", {}, "/home/me/.cache/mlx-flash"),
        ("linux", {"XDG_CACHE_HOME": "/var/me"}, "/var/me/mlx-flash"),
        ("linux", {"XDG_CACHE_HOME": "relative"}, "/home/me/.cache/mlx-flash"),
        ("darwin", {"XDG_CACHE_HOME": "/var/me"}, "/home/me/Library/Caches/mlx-flash"),
        ("darwin", {"MLX_FLASH_CACHE": "/mnt/ours"}, "/mnt/ours"),
    ],
)
def test_the_cache_folder_is_where_the_platform_keeps_such_things(
    platform: str, environment: dict[str, str], folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("MLX_FLASH_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in (environment | {"HOME": "/home/me"}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "platform", platform)
    assert warm_start_folder() == Path(folder) / "warm-start"


def test_a_user_without_a_home_starts_cold(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("MLX_FLASH_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", fail)
    assert warm_start_folder() is None


def test_a_file_that_shrinks_in_mid_generation_ends_it_with_one_sentence(model: Path) -> None:
    process = subprocess.Popen(
        command("generate", model, "-p", "import", "--no-chat-template", "--capacity", "2"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    process.stdout.read(1)
    for shard in model.glob("*.safetensors"):
        os.truncate(shard, 100_000)
    _, notes = process.communicate(timeout=60)
    assert process.returncode == 1
    (sentence,) = notes.decode().splitlines()
    assert sentence.startswith("mlx-flash: cannot read expert ")
    assert str(model) in sentence


def test_the_prompt_can_come_from_standard_input() -> None:
    result = subprocess.run(
        command("generate", "-p", "-", "-n", "8"),
        input="What does shutil.copytree do?",
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout.startswith("Recursively copy")


def test_the_doctor_reports_what_scripts_rely_on() -> None:
    report = answer("doctor")
    assert report.keys() >= DOCTOR_KEYS
    assert report["ssd_gbps"] > 0
    assert 0 < report["ssd_latency_s"] < 1
    assert report["cores"] >= 1
    assert "back end" in run("doctor").stdout


def test_help_shows_every_command_and_option() -> None:
    assert "generate" in run("--help").stdout
    assert "--memory" in run("generate", "--help").stdout


def test_a_path_that_is_no_model_is_refused(tmp_path: Path) -> None:
    assert "does not exist" in refused("generate", "/no/such/place", "-p", "x")
    assert "no config.json" in refused("generate", tmp_path, "-p", "x")
    assert "no config.json" in refused("doctor", tmp_path)


def test_a_truncated_shard_is_refused(model: Path) -> None:
    shard = model / "model-00002-of-00003.safetensors"
    os.truncate(shard, shard.stat().st_size - 1)
    assert "truncated" in refused("generate", model, "-p", "x")


def test_a_header_that_lies_is_refused(model: Path) -> None:
    shard = model / "model-00001-of-00003.safetensors"
    content = shard.read_bytes()
    start = content.index(b"data_offsets") + len(b'data_offsets":[')
    digit = content[start : start + 1]
    assert digit.isdigit()
    lie = b"1" if digit != b"1" else b"2"
    shard.write_bytes(content[:start] + lie + content[start + 1 :])
    sentence = refused("generate", model, "-p", "x")
    assert "lies" in sentence or "truncated" in sentence


def test_an_unknown_model_type_is_refused(model: Path) -> None:
    config = json.loads((model / "config.json").read_text()) | {"model_type": "martian"}
    (model / "config.json").write_text(json.dumps(config))
    assert "martian not supported" in refused("generate", model, "-p", "x")


@pytest.mark.parametrize("limit", ["0", "-3GB", "plenty", "0%", "200%", "1KB", "1%"])
def test_memory_that_cannot_work_is_refused(limit: str) -> None:
    sentence = refused("generate", "-p", "x", "--memory", limit)
    if limit in ("1KB", "1%"):
        assert "the smallest limit that works is" in sentence


def test_the_smallest_limit_that_is_named_works() -> None:
    sentence = refused("generate", "-p", "x", "-n", "4", "--memory", "1KB")
    smallest = sentence.partition("works is ")[2].partition(" bytes")[0]
    assert answer("generate", "-p", "x", "-n", "4", "--memory", smallest)["capacity"] == 1


def test_a_prompt_longer_than_the_context_is_refused() -> None:
    assert "shorten the prompt" in refused("generate", "-p", "word " * 5000)
    assert "empty" in refused("generate", "-p", "")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_an_unreadable_file_is_refused(model: Path) -> None:
    (model / "model-00001-of-00003.safetensors").chmod(0)
    assert "cannot read" in refused("generate", model, "-p", "x")


def test_a_shard_that_is_a_folder_is_refused(model: Path) -> None:
    shard = model / "model-00001-of-00003.safetensors"
    shard.unlink()
    shard.mkdir()
    assert "cannot read" in refused("generate", model, "-p", "x")


def test_options_that_make_no_sense_are_refused() -> None:
    assert "no policy 'best'" in refused("generate", "-p", "x", "--policy", "best")
    assert "not both" in refused("generate", "-p", "x", "--capacity", "2", "--memory", "40%")


def test_code_in_a_checkpoint_is_never_run(tmp_path: Path) -> None:
    """Not even when someone answers yes: transformers asks on standard input unless told not to."""
    family = next(family for family in FAMILIES if family.name == "Klear")
    folder = write_checkpoint(family, tmp_path / "model")
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass T: pass\n")
    auto_map = {"auto_map": {"AutoTokenizer": ["evil.T", None]}, "tokenizer_class": "T"}
    (folder / "tokenizer_config.json").write_text(json.dumps(auto_map))
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoConfig": "evil.T"}
    (folder / "config.json").write_text(json.dumps(config))
    result = subprocess.run(
        command("generate", folder, "-p", "x"),
        input="y\n" * 9,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 2
    assert not (tmp_path / "ran").exists()


def test_without_numba_the_way_to_install_it_is_printed(tmp_path: Path) -> None:
    script = (
        "import sys; sys.modules['numba'] = None; "
        "sys.argv = ['mlx-flash', 'generate', '-p', 'hi', '-n', '1']; "
        "from mlx_flash.cli.main import run; run()"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0
    assert "pip install numba" in " ".join(done.stderr.split())
