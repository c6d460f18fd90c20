"""A model's shape is found in its config and headers alone, and its sizes are exact."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from conftest import BY_NAME
from families import FAMILIES, Family, write_checkpoint
from mlx_lm.utils import load_model
from packing import packed

from mlx_flash.engine.find import bundled_model
from mlx_flash.engine.moe_types import MOE_TYPES
from mlx_flash.formats.checkpoint import Checkpoint
from mlx_flash.formats.safetensors import FileStamp, TensorEntry
from mlx_flash.planner.shape import shape_of, stores_experts_one_by_one
from mlx_flash.planner.speed import ModelShape
from mlx_flash.streaming import adapter

TOP_K = dict.fromkeys(["qwen3_moe", "gpt_oss", "gemma4", "deepseek_v3", "nemotron_h", "step3p5"], 3)
TOP_K |= dict.fromkeys(["kimi_vl", "ernie4_5_moe", "afmoe", "deepseek_v41", "hunyuan"], 3)
TOP_K |= {"longcat_flash": 4, "phixtral": 2, "llama4": 1}
MOE: dict[str, Any] = {"num_experts_per_tok": 2, "num_hidden_layers": 1}


def tensors(**sizes: tuple[int, ...]) -> dict[str, TensorEntry]:
    """Return bytes of these shapes; __ in a name stands for a dot."""
    names = {name.replace("__", "."): shape for name, shape in sizes.items()}
    stamp = FileStamp(0, 0, 0, 0)
    found = {}
    for name, shape in names.items():
        nbytes = 1
        for length in shape:
            nbytes *= length
        found[name] = TensorEntry(name, "U8", shape, Path("model.safetensors"), 0, nbytes, stamp)
    return found


def shape_in(folder: Path) -> ModelShape:
    checkpoint = Checkpoint.open(folder)
    shape = shape_of("m", checkpoint.config, checkpoint.tensors, checkpoint.packed.values())
    assert shape is not None
    return shape


def weight_bytes(folder: Path) -> int:
    return sum(entry.nbytes for entry in Checkpoint.open(folder).tensors.values())


def test_the_bundled_model_has_10_layers_of_48_experts_and_takes_4() -> None:
    shape = shape_in(bundled_model())
    assert (shape.num_layers, shape.num_experts, shape.top_k) == (10, 48, 4)
    one_matrix = 384 * 128 // 2 + 384 * 128 // 64 * 4  # 4 bits, and two scales a group of 64
    assert (shape.expert_bytes, shape.reads_per_expert) == (3 * one_matrix, 9)
    assert shape.total_bytes == weight_bytes(bundled_model())
    assert shape.kv_bytes_per_token == 2 * 2 * 10 * 2 * 64  # k and v, 16 bits, layers, heads


@pytest.mark.parametrize("name", TOP_K)
def test_every_spelling_of_config_and_tensors_is_read(name: str, tmp_path: Path) -> None:
    family = BY_NAME[name]
    folder = write_checkpoint(family, tmp_path)
    shape = shape_in(folder)
    assert (shape.num_experts, shape.num_layers) == (family.num_experts, family.moe_layers)
    assert shape.top_k == TOP_K[name]
    assert shape.total_bytes == weight_bytes(folder)
    assert 0 < shape.resident_bytes < shape.total_bytes
    assert not stores_experts_one_by_one(Checkpoint.open(folder).tensors)


@pytest.mark.parametrize("name", ["qwen3_moe", "glm4_moe", "minimax", "deepseek_v3", "kimi_vl"])
def test_the_kv_cache_is_that_of_the_model_in_16_bits(name: str, tmp_path: Path) -> None:
    folder = write_checkpoint(BY_NAME[name], tmp_path)
    model, _ = load_model(folder, lazy=True)  # in 32 bits
    assert 2 * shape_in(folder).kv_bytes_per_token == adapter.cache_bytes(model, 4096) / 4096


def test_layers_that_keep_a_state_have_no_kv_cache(tmp_path: Path) -> None:
    for name, layers, heads, width in (
        ("qwen3_next", 2, 2, 16),
        ("jamba", 2, 2, 16),
        ("granitemoehybrid", 1, 2, 16),
        ("nemotron_h", 1, 2, 32),
    ):
        folder = write_checkpoint(BY_NAME[name], tmp_path / name)
        assert shape_in(folder).kv_bytes_per_token == 2 * 2 * layers * heads * width


def test_quantized_experts_of_two_shards_count_with_their_scales(checkpoint: Path) -> None:
    shape = shape_in(checkpoint)
    assert shape.expert_bytes == 3 * (256 * 256 // 2 + 256 * 256 // 32 * 4)
    assert shape.total_bytes == weight_bytes(checkpoint)
    assert shape.reads_per_expert == 9


def test_a_packed_model_has_the_shape_of_what_was_packed(checkpoint: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.symlink_to(checkpoint)
    stock = shape_in(folder)
    assert shape_in(packed(folder)) == dataclasses.replace(stock, reads_per_expert=1)


def test_experts_stored_one_by_one_are_counted_and_told() -> None:
    names = {
        f"model__layers__{layer}__mlp__experts__{expert}__{matrix}__weight": (4, 8)
        for layer in range(2)
        for expert in range(11)
        for matrix in ("gate_proj", "up_proj", "down_proj")
    }
    found = tensors(**names, lm_head__weight=(100,))
    shape = shape_of("m", MOE, found)
    assert shape == ModelShape("m", 100, 96, 11, 2, 2, 0, 3)
    assert stores_experts_one_by_one(found)


def test_what_mlx_lm_leaves_out_does_not_count() -> None:
    found = tensors(
        model__layers__0__mlp__switch_mlp__fc1__weight=(4, 8),
        model__layers__1__mlp__switch_mlp__fc1__weight=(4, 8),  # predicts a further token
        mtp__layers__0__mlp__switch_mlp__fc1__weight=(4, 8),
        vision_tower__blocks__0__weight=(1000,),
        model__visual__blocks__0__weight=(1000,),
        model__embed_tokens__weight=(100,),
    )
    shape = shape_of("m", MOE | {"num_nextn_predict_layers": 1}, found)
    assert shape == ModelShape("m", 100, 8, 4, 1, 2, 0, 1)


def test_shared_experts_and_tensors_of_no_expert_stay_resident() -> None:
    found = tensors(
        model__layers__0__mlp__shared_experts__up_proj__weight=(4, 8),
        model__layers__0__mlp__experts__up_proj__weight=(4, 8),
        model__layers__0__mlp__experts__up_proj__global_scale=(1,),
    )
    assert shape_of("m", MOE, found) == ModelShape("m", 33, 8, 4, 1, 2, 0, 1)


@pytest.mark.parametrize("top_k", [None, 0, -2, True, "2", 2.0, 10**30, [], [2, "x"], {}])
def test_a_config_without_a_sound_top_k_is_of_no_moe(top_k: object) -> None:
    found = tensors(model__layers__0__mlp__experts__up_proj__weight=(4, 8))
    assert shape_of("m", {"num_experts_per_tok": top_k}, found) is None


def test_a_model_without_expert_tensors_is_no_moe() -> None:
    dense = tensors(model__layers__0__mlp__up_proj__weight=(4, 8))
    assert shape_of("m", MOE, dense) is None
    assert shape_of("m", MOE, {}) is None


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_the_model_type_of_every_family_is_looked_for_on_the_hub(family: Family) -> None:
    assert family.config["model_type"] in MOE_TYPES
