"""Headers and folders that lie, break or miss something are told apart from sound ones."""

import json
import struct
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from mlx_flash.errors import FormatError, ModelNotFoundError, UnsupportedModelError
from mlx_flash.formats.checkpoint import Checkpoint
from mlx_flash.formats.layout import stacked_layout
from mlx_flash.formats.safetensors import read_header


def write(path: Path, header: Any, data: bytes = b"\0" * 64) -> Path:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + data)
    return path


def tensor(begin: int, end: int, shape: list[int], dtype: str = "U8") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def test_offsets_are_those_of_the_bytes(tmp_path: Path) -> None:
    arrays = {"a": mx.arange(6, dtype=mx.uint32), "b": mx.ones((2, 3), mx.bfloat16)}
    mx.save_safetensors(str(tmp_path / "x.safetensors"), arrays)
    entries = read_header(tmp_path / "x.safetensors").tensors
    entry = entries["a"]
    raw = entry.path.read_bytes()[entry.offset : entry.offset + entry.nbytes]
    assert np.frombuffer(raw, np.uint32).tolist() == list(range(6))
    assert (entries["b"].dtype, entries["b"].shape, entries["b"].nbytes) == ("BF16", (2, 3), 12)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (b"{not json", "not JSON"),
        (b"[]", "not a JSON object"),
        ({"t": {}}, "badly"),
        ({"t": tensor(0, 4, [4]) | {"dtype": "Q7"}}, "badly"),
        ({"t": {"dtype": "U8", "shape": 3, "data_offsets": [0, 3]}}, "badly"),
        ({"t": tensor(0, 64, [-64])}, "broken size"),
        ({"t": tensor(0, True, [1])}, "broken size"),
        ({"t": tensor(-8, 0, [8])}, "broken size"),
        ({"t": tensor(0, 128, [128])}, "truncated"),
        ({"t": tensor(0, 32, [31])}, "lies"),
        ({"t": tensor(32, 0, [32])}, "lies"),
        ({"t": tensor(0, 32, [32]), "u": tensor(31, 63, [32])}, "overlap"),
    ],
)
def test_a_broken_header_is_a_format_error(tmp_path: Path, header: Any, message: str) -> None:
    with pytest.raises(FormatError, match=message):
        read_header(write(tmp_path / "x.safetensors", header))


@pytest.mark.parametrize("content", [b"", b"1234567", struct.pack("<Q", 1 << 62) + b"{}"])
def test_a_file_without_a_header_is_a_format_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(FormatError, match=r"too short|truncated"):
        read_header(path)


def test_a_folder_that_is_no_checkpoint_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="not a folder"):
        Checkpoint.open(tmp_path / "nothing")
    with pytest.raises(ModelNotFoundError, match=r"no config\.json"):
        Checkpoint.open(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "qwen3_moe"}')
    with pytest.raises(ModelNotFoundError, match="no weights"):
        Checkpoint.open(tmp_path)


@pytest.mark.parametrize("config", ["{", "[]", "{}", '{"model_type": "../os"}'])
def test_a_broken_config_is_a_format_error(tmp_path: Path, config: str) -> None:
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(FormatError):
        Checkpoint.open(tmp_path)


def sound_folder(folder: Path) -> Path:
    (folder / "config.json").write_text('{"model_type": "qwen3_moe"}')
    write(folder / "model-00001-of-00002.safetensors", {"a": tensor(0, 64, [64])})
    write(folder / "model-00002-of-00002.safetensors", {"b": tensor(0, 64, [64])})
    return folder


def test_shards_are_joined_with_or_without_an_index(tmp_path: Path) -> None:
    assert sorted(Checkpoint.open(sound_folder(tmp_path)).tensors) == ["a", "b"]


def test_a_missing_shard_is_a_format_error(tmp_path: Path) -> None:
    index = {
        "weight_map": {"a": "model-00001-of-00002.safetensors", "c": "model-00003.safetensors"}
    }
    (sound_folder(tmp_path) / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(FormatError, match=r"model-00003\.safetensors is missing"):
        Checkpoint.open(tmp_path)


def test_a_tensor_in_two_shards_is_a_format_error(tmp_path: Path) -> None:
    write(sound_folder(tmp_path) / "model.safetensors", {"b": tensor(0, 64, [64])})
    with pytest.raises(FormatError, match="both hold tensor 'b'"):
        Checkpoint.open(tmp_path)


def test_the_context_is_found_in_a_text_config(tmp_path: Path) -> None:
    sound_folder(tmp_path)
    (tmp_path / "config.json").write_text(
        '{"model_type": "x", "text_config": {"max_position_embeddings": 77}}'
    )
    opened = Checkpoint.open(tmp_path)
    assert (opened.context_tokens, opened.num_attention_heads) == (77, 0)


def test_a_layout_gives_each_expert_its_own_bytes(tmp_path: Path) -> None:
    weight = mx.arange(4 * 6, dtype=mx.uint32).reshape(4, 2, 3)
    mx.save_safetensors(str(tmp_path / "x.safetensors"), {"m.up.weight": weight})
    entries = read_header(tmp_path / "x.safetensors").tensors
    layout = stacked_layout(entries, 0, "m", {"up.weight": ((4, 2, 3), "U32")})
    assert (layout.num_experts, layout.expert_bytes) == (4, 24)
    raw = (tmp_path / "x.safetensors").read_bytes()
    for expert in range(4):
        (piece,) = layout.pieces
        start = piece.offset + expert * piece.stride
        found = np.frombuffer(raw[start : start + 24], np.uint32)
        assert found.tolist() == list(range(expert * 6, expert * 6 + 6))


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"gate.weight": ((4, 2), "U32")}, "other names"),
        ({"up.weight": ((4, 3), "U32")}, "expects U32"),
        ({"up.weight": ((4, 2), "I32")}, "expects I32"),
    ],
)
def test_a_layout_that_does_not_match_the_model_is_refused(
    tmp_path: Path, wanted: Any, message: str
) -> None:
    mx.save_safetensors(
        str(tmp_path / "x.safetensors"), {"m.up.weight": mx.zeros((4, 2), mx.uint32)}
    )
    entries = read_header(tmp_path / "x.safetensors").tensors
    with pytest.raises(UnsupportedModelError, match=message):
        stacked_layout(entries, 0, "m", wanted)
