"""Packing: nothing is lost or silently wrong, whatever is packed and however it is interrupted."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from comparing import differing, opened, random_tokens, run_logits, streamed
from families import FAMILIES, Family, write_checkpoint
from mlx_lm.utils import load_model as mlx_lm_load_model
from mlx_lm.utils import quantize_model
from packing import packed
from typer.testing import CliRunner

from mlx_flash.cli.main import app
from mlx_flash.config import CacheOptions, MemoryLimit, QuantizeOptions, ReadOptions
from mlx_flash.engine import pack as pack_module
from mlx_flash.engine.check_pack import check
from mlx_flash.engine.pack import pack
from mlx_flash.errors import (
    ExpertReadError,
    FormatError,
    MLXFlashError,
    ModelNotFoundError,
    OptionError,
    PackError,
    UnsupportedModelError,
)
from mlx_flash.formats.checkpoint import Checkpoint
from mlx_flash.formats.packed import RECORD_ALIGNMENT, read_packed
from mlx_flash.formats.safetensors import read_header
from mlx_flash.kernels.reference import Quantization
from mlx_flash.streaming import adapter

PROMPT = random_tokens(30, 128)
FOUR_BITS = {"group_size": 32, "bits": 4}


@pytest.fixture(autouse=True)
def _on_the_cpu() -> Iterator[None]:
    before = mx.default_device()
    mx.set_default_device(mx.Device(mx.cpu))
    yield
    mx.set_default_device(before)


@pytest.fixture
def copy(checkpoint: Path, tmp_path: Path) -> Path:
    """A checkpoint of this test alone."""
    return shutil.copytree(checkpoint, tmp_path / "model")


def ignore(done: int, total: int) -> None:
    """Show no progress."""


def logits_of(folder: Path) -> list[mx.array]:
    """Return the logits of plain mlx-lm, in float32."""
    model, _ = mlx_lm_load_model(folder, lazy=True)
    model.set_dtype(mx.float32)
    return list(run_logits(model, PROMPT, 6))


def stored_one_by_one(checkpoint: Path, folder: Path) -> Path:
    """Write the experts of a Qwen3-MoE checkpoint one by one, as on the Hub."""
    weights: dict[str, mx.array] = {}
    for shard in checkpoint.glob("model*.safetensors"):
        for name, array in mx.load(str(shard)).items():
            if ".switch_mlp." not in name:
                weights[name] = array
                continue
            for expert in range(array.shape[0]):
                weights[name.replace("switch_mlp", f"experts.{expert}")] = array[expert]
    folder.mkdir()
    mx.save_safetensors(str(folder / "model.safetensors"), weights)
    shutil.copy(checkpoint / "config.json", folder / "config.json")
    return folder


def test_each_record_is_an_aligned_tensor_of_valid_safetensors(copy: Path) -> None:
    folder = packed(copy)
    stock = Checkpoint.open(copy)
    layers = Checkpoint.open(folder).packed
    assert len(layers) == 2
    for layer in layers.values():
        header = read_header(layer.path)
        stored = mx.load(str(layer.path))  # by MLX's own reader
        for expert in range(layer.num_experts):
            entry = header.tensors[f"{layer.prefix}.{expert}"]
            assert entry.offset % RECORD_ALIGNMENT == entry.nbytes % RECORD_ALIGNMENT == 0
            record = bytes(memoryview(stored[entry.name]))
            for tensor in layer.tensors:
                of = stock.tensors[f"{layer.prefix}.{tensor.name}"]
                start = of.offset + expert * tensor.nbytes
                raw = of.path.read_bytes()[start : start + tensor.nbytes]
                assert record.startswith(raw), tensor.name
                record = record[len(raw) :]
            assert not any(record)  # padding
        assert len(layer.layout(0).pieces) == 1
    assert check(folder, ignore) == 16


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_every_family_answers_from_its_pack(family: Family, tmp_path: Path) -> None:
    folder = write_checkpoint(family, tmp_path / "model", quantization=FOUR_BITS, dtype="float32")
    try:
        stock = streamed(folder, 2)
    except MLXFlashError as error:
        pytest.skip(f"cannot be streamed: {error}")
    expected = list(run_logits(stock.model, PROMPT, 3))
    ours = streamed(packed(folder), 2)
    assert differing(run_logits(ours.model, PROMPT, 3), expected) == []


def test_experts_stored_one_by_one_are_packed(qwen: Family, tmp_path: Path) -> None:
    stacked = write_checkpoint(qwen, tmp_path / "stacked", dtype="bfloat16")
    folder = stored_one_by_one(stacked, tmp_path / "hub")
    with pytest.raises(UnsupportedModelError, match="mlx-flash pack"):
        streamed(folder, 2)
    ours = streamed(packed(folder), 2)
    assert differing(run_logits(ours.model, PROMPT, 6), logits_of(folder)) == []


@pytest.mark.parametrize(
    "quantization", [Quantization(64, 4, "affine"), Quantization(32, 8, "mxfp8")], ids=str
)
def test_quantizing_on_the_way_gives_what_mlx_lm_gives(
    qwen: Family, tmp_path: Path, quantization: Quantization
) -> None:
    stacked = write_checkpoint(qwen, tmp_path / "stacked", dtype="bfloat16")
    folder = stored_one_by_one(stacked, tmp_path / "hub")
    model, config = mlx_lm_load_model(folder, lazy=True)
    sizes = (quantization.group_size, quantization.bits, quantization.mode)
    model, _ = quantize_model(model, config, *sizes)
    model.set_dtype(mx.float32)
    expected = list(run_logits(model, PROMPT, 6))
    ours = streamed(packed(folder, quantization), 3)
    assert differing(run_logits(ours.model, PROMPT, 6), expected) == []


def test_parameters_of_every_type_are_packed(
    copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = {
        "counts": mx.array([2**40, -1], mx.int64),
        "hashes": mx.array([2**62], mx.uint64),
        "mask": mx.array([True, False, True]),
        "phases": mx.array([1 + 2j], mx.complex64),
        "sums": mx.array([1e300], mx.float64),
    }
    load_lazily = adapter.load_lazily

    def with_more(folder: Path) -> Any:
        lazy = load_lazily(folder)
        for name, value in values.items():
            lazy.model[name] = value
        return lazy

    monkeypatch.setattr(adapter, "load_lazily", with_more)
    pack(copy, tmp_path / "packed", None, ignore)
    (shard,) = (tmp_path / "packed").glob("model-*.safetensors")
    header, raw = read_header(shard), shard.read_bytes()
    for name, value in values.items():
        entry = header.tensors[name]
        assert raw[entry.offset :][: entry.nbytes] == bytes(memoryview(value)), name  # type: ignore[arg-type]
    assert {header.tensors[name].dtype for name in values} == {"I64", "U64", "BOOL", "C64", "F64"}


KILLED = """
import os, signal, sys
from pathlib import Path
from mlx_flash.engine.pack import pack
def on_bytes(done, total):
    if done >= float(sys.argv[3]) * total:
        os.kill(os.getpid(), signal.SIGKILL)
pack(Path(sys.argv[1]), Path(sys.argv[2]), None, on_bytes)
"""


def test_a_killed_pack_is_refused_and_then_finished(copy: Path, tmp_path: Path) -> None:
    target = tmp_path / "packed"
    kept: dict[str, int] = {}
    for share in (0.0, 0.1, 0.6, 0.999):
        command = [sys.executable, "-c", KILLED, str(copy), str(target), str(share)]
        assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
        with pytest.raises(ModelNotFoundError, match="not packed to its end"):
            Checkpoint.open(target)
        complete = {file.name: file.stat().st_mtime_ns for file in target.glob("*.safetensors")}
        assert kept.items() <= complete.items()  # what was complete is not written again
        kept = complete
    pack(copy, target, None, ignore)
    assert check(target, ignore) == 16
    assert kept
    assert all((target / name).stat().st_mtime_ns == mtime for name, mtime in kept.items())
    assert not list(target.glob("*.partial"))
    ours = streamed(target, 2)
    assert differing(run_logits(ours.model, PROMPT, 6), logits_of(copy)) == []


def test_a_pack_that_was_killed_before_it_began_is_begun_again(copy: Path, tmp_path: Path) -> None:
    target = tmp_path / "packed"
    target.mkdir()
    (target / "pack.json.partial").write_text('{"sour')
    assert pack(copy, target, None, ignore)
    assert check(target, ignore) == 16
    assert not list(target.glob("*.partial"))


def test_a_folder_that_another_process_packs_into_is_refused(copy: Path, tmp_path: Path) -> None:
    target = tmp_path / "packed"

    def meanwhile(done: int, total: int) -> None:
        with pytest.raises(OptionError, match=f"another process is writing {target}"):
            pack(copy, target, None, ignore)

    assert pack(copy, target, None, meanwhile)
    assert not pack(copy, target, None, meanwhile)
    assert check(target, ignore) == 16


def test_a_folder_that_refuses_is_wrong_input(copy: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OptionError, match="Not a directory: give another folder"):
        pack(copy, tmp_path / "file" / "packed", None, ignore)


def test_a_full_disk_is_said_and_nothing_is_lost(
    copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, synced = tmp_path / "packed", []
    fsync = os.fsync

    def full(descriptor: int) -> None:
        synced.append(descriptor)
        if len(synced) > 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(PackError, match=r"No space left .* files that are complete are kept"):
            pack(copy, target, None, ignore)
    assert not list(target.glob("*.partial"))  # what is not complete takes no room
    with pytest.raises(ModelNotFoundError, match="not packed to its end"):
        Checkpoint.open(target)
    pack(copy, target, None, ignore)
    assert check(target, ignore) == 16


def test_too_little_room_is_said_before_anything_is_written(
    copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil._ntuple_diskusage(10**9, 10**9 - 10, 10)
    monkeypatch.setattr(pack_module.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(PackError, match="make room"):
        pack(copy, tmp_path / "packed", None, ignore)


def flip_a_byte(file: Path, offset: int) -> None:
    with file.open("r+b") as opened:
        opened.seek(offset)
        (byte,) = opened.read(1)
        opened.seek(offset)
        opened.write(bytes([byte ^ 1]))


def test_a_damaged_record_is_found_named_and_written_again(copy: Path) -> None:
    folder = packed(copy)
    layer = next(iter(Checkpoint.open(folder).packed.values()))
    record = read_header(layer.path).tensors[f"{layer.prefix}.5"]
    flip_a_byte(layer.path, record.offset + 1234)
    with pytest.raises(FormatError, match=rf"1 of 16 .* expert 5 in {layer.path}") as caught:
        check(folder, ignore)
    assert caught.value.offset == record.offset
    careless = streamed(folder, 8, reads=ReadOptions())
    assert len(list(run_logits(careless.model, PROMPT, 1))) == 2  # checks nothing, as told
    verifying = streamed(folder, 8, reads=ReadOptions(verify=True))
    with pytest.raises(ExpertReadError, match="checksum"):
        list(run_logits(verifying.model, PROMPT, 1))
    everything = MemoryLimit(everything=True)
    with pytest.raises(ExpertReadError, match="checksum"):
        opened(folder, CacheOptions(), everything, "cpu", ReadOptions(verify=True))
    layer.path.unlink()
    with pytest.raises(FormatError, match=r"without its file experts-.* run mlx-flash pack again"):
        streamed(folder, 2)
    pack(copy, folder, None, ignore)
    assert check(folder, ignore) == 16


def test_damage_outside_of_the_experts_is_found_too(copy: Path) -> None:
    folder = packed(copy)
    shard = folder / "model-00001-of-00001.safetensors"
    read: list[tuple[int, int]] = []
    assert check(folder, lambda *done: read.append(done)) == 16
    assert read[-1][0] == read[-1][1]
    for offset in (read_header(shard).tensors["lm_head.weight"].offset, shard.stat().st_size - 1):
        flip_a_byte(shard, offset)
        with pytest.raises(FormatError, match=rf"{shard} are damaged: delete it and run .* pack"):
            check(folder, ignore)
        flip_a_byte(shard, offset)
    assert check(folder, ignore) == 16


def test_a_pack_without_checksums_of_its_shards_gets_them(copy: Path) -> None:
    folder = packed(copy)
    shard = folder / "model-00001-of-00001.safetensors"
    mx.save_safetensors(str(shard), mx.load(str(shard)), {"format": "mlx"})
    record = json.loads((folder / "pack.json").read_text())
    (folder / "pack.json").write_text(json.dumps({**record, "files": [*record["files"]]}))
    with pytest.raises(FormatError, match=r"without a checksum: run mlx-flash pack again"):
        check(folder, ignore)
    assert pack(copy, folder, None, ignore)
    assert check(folder, ignore) == 16


def test_a_folder_of_something_else_is_refused(copy: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").touch()
    with pytest.raises(OptionError, match="not empty"):
        pack(copy, tmp_path / "full", None, ignore)
    with pytest.raises(OptionError, match=r"thesis\.txt is a file: give a folder"):
        pack(copy, tmp_path / "full" / "thesis.txt", None, ignore)
    folder = packed(copy)
    with pytest.raises(OptionError, match="is packed already"):
        pack(folder, tmp_path / "again", None, ignore)
    with pytest.raises(OptionError, match="quantized already"):
        pack(copy, tmp_path / "new", Quantization(64, 4, "affine"), ignore)
    os.utime(copy / "model-00001-of-00002.safetensors")
    with pytest.raises(OptionError, match="another version"):
        pack(copy, folder, None, ignore)
    with pytest.raises(OptionError, match="nothing to check"):
        check(copy, ignore)


def rewritten(path: Path, **metadata: str) -> Path:
    """Change the metadata of a packed file, and nothing else of it."""
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header: dict[str, Any] = json.loads(raw[8 : 8 + length])
    header["__metadata__"].update(metadata)
    text = json.dumps(header).encode()
    text += b" " * (-(8 + len(text)) % RECORD_ALIGNMENT)
    path.write_bytes(len(text).to_bytes(8, "little") + text + raw[8 + length :])
    return path


ONE_BYTE = '[{"name": "up_proj.weight", "dtype": "U8", "shape": [1]}]'


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"version": "2"}, "later mlx-flash"),
        ({"format": "pt"}, "not written by mlx-flash pack"),
        ({"tensors": "nonsense"}, "badly"),
        ({"tensors": "{}"}, "not where it says"),
        ({"tensors": "[[[["}, "badly"),
        ({"tensors": ONE_BYTE.replace("[1]", "[-1]")}, "badly"),
        ({"tensors": ONE_BYTE.replace("[1]", "[100000000]")}, "not where it says"),
        ({"tensors": ONE_BYTE.replace("U8", "U9")}, "badly"),
        ({"tensors": f"[{ONE_BYTE[1:-1]}, {ONE_BYTE[1:-1]}]"}, "not where it says"),
        ({"crc32": "0 0"}, "not where it says"),
        ({"crc32": "0 x"}, "badly"),
        ({"prefix": "other"}, "not where it says"),
    ],
)
def test_headers_that_lie_are_refused(copy: Path, metadata: dict[str, str], message: str) -> None:
    path = packed(copy) / "experts-00000.safetensors"
    rewritten(path, **metadata)
    with pytest.raises(FormatError, match=message):
        read_packed(path)


def test_two_files_of_one_layer_are_refused(copy: Path) -> None:
    folder = packed(copy)
    shutil.copy(folder / "experts-00000.safetensors", folder / "experts-00007.safetensors")
    with pytest.raises(FormatError, match=r"experts-00000.* and .*experts-00007.* both hold model"):
        Checkpoint.open(folder)


@pytest.mark.parametrize("name", ["experts-00001.safetensors", "model-00001-of-00001.safetensors"])
@pytest.mark.parametrize("by", [-1, 1])
def test_a_file_of_another_size_is_refused_and_written_again(
    copy: Path, name: str, by: int
) -> None:
    path = packed(copy) / name
    whole = path.read_bytes()
    os.truncate(path, len(whole) + by)
    with pytest.raises(
        FormatError, match=r"truncated or changed.* delete it and run .* pack again"
    ):
        Checkpoint.open(path.parent)
    assert pack(copy, path.parent, None, ignore)
    assert path.read_bytes() == whole


def test_a_truncated_file_of_an_older_pack_is_refused(copy: Path) -> None:
    path = packed(copy) / "experts-00001.safetensors"
    record = path.parent / "pack.json"
    old = json.loads(record.read_text())
    record.write_text(json.dumps({**old, "files": [*old["files"]]}))
    check(path.parent, ignore)
    os.truncate(path, path.stat().st_size - 1)
    with pytest.raises(FormatError, match="truncated"):
        Checkpoint.open(path.parent)
    path.unlink()
    with pytest.raises(FormatError, match="without its file"):
        Checkpoint.open(path.parent)
    assert pack(copy, path.parent, None, ignore)
    check(path.parent, ignore)


def test_a_complete_pack_is_left_as_it_is_and_said_to_be(copy: Path) -> None:
    folder = packed(copy)
    times = {file: file.stat().st_mtime_ns for file in folder.glob("*.safetensors")}
    moved: list[tuple[int, int]] = []
    assert not pack(copy, folder, None, lambda *done: moved.append(done))
    assert moved == []
    assert {file: file.stat().st_mtime_ns for file in times} == times
    result = CliRunner().invoke(app, ["pack", str(copy), str(folder)], catch_exceptions=False)
    assert result.stderr.startswith("already packed: ")
    assert "/s" not in result.stderr.replace(str(folder), "")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bits": 7}, "no bits 7: take 2 or 3 or 4"),
        ({"mode": "mxfp4", "group_size": 64}, "no group size 64: take 32"),
        ({"mode": "int4"}, "no mode 'int4'"),
        ({"group_size": 32}, "a group size alone .* give --bits or --mode"),
    ],
)
def test_quantizations_that_do_not_exist_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        QuantizeOptions(**options)


def test_options_are_refused_by_the_names_that_were_given(copy: Path, tmp_path: Path) -> None:
    folder = packed(copy)
    for options, message in (
        (["--bits", "4"], r"leave --bits out"),
        (["--mode", "mxfp4", "--group-size", "32"], r"leave --group-size and --mode out"),
    ):
        with pytest.raises(OptionError, match=message):
            CliRunner().invoke(
                app, ["pack", str(folder), "--check", *options], catch_exceptions=False
            )
    with pytest.raises(OptionError, match="quantized already") as caught:
        pack(copy, tmp_path / "new", Quantization(32, 4, "mxfp4"), ignore)
    assert "--" not in str(caught.value)


def test_the_command_packs_checks_and_says_so(copy: Path, tmp_path: Path) -> None:
    target = tmp_path / "packed"
    runner = CliRunner()
    for arguments, report in (
        ([str(copy), str(target)], {"folder": str(target)}),
        ([str(target), "--check"], {"records": 16}),
    ):
        done = runner.invoke(app, ["pack", *arguments, "--json"], catch_exceptions=False)
        assert json.loads(done.stdout.splitlines()[-1]) == report
    for arguments in ([str(copy)], [str(copy), str(target), "--check"]):
        with pytest.raises(OptionError, match="MODEL and OUT"):
            runner.invoke(app, ["pack", *arguments], catch_exceptions=False)
