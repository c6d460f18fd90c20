"""What MLX-Flash relies on in mlx-lm beyond its public API. A new mlx-lm must keep it."""

import inspect
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest
from families import Family, write_checkpoint
from mlx.nn.layers.base import Module
from mlx_lm.models import switch_layers
from mlx_lm.utils import load_model

from mlx_flash.engine.find import bundled_model
from mlx_flash.errors import UnsupportedModelError
from mlx_flash.formats.checkpoint import Checkpoint
from mlx_flash.streaming import adapter
from mlx_flash.streaming import tokens as token_seam
from mlx_flash.streaming.install import survey


@pytest.mark.parametrize("name", ["SwitchGLU", "SwitchMLP"])
def test_a_switch_is_called_with_x_and_indices(name: str) -> None:
    signature = inspect.signature(getattr(switch_layers, name).__call__)
    assert list(signature.parameters) == ["self", "x", "indices"]


@pytest.mark.parametrize("name", ["SwitchLinear", "QuantizedSwitchLinear"])
def test_a_projection_is_called_with_sorted_indices(name: str) -> None:
    signature = inspect.signature(getattr(switch_layers, name).__call__)
    assert list(signature.parameters) == ["self", "x", "indices", "sorted_indices"]


def test_a_quantized_projection_names_its_packing() -> None:
    projection = switch_layers.SwitchLinear(64, 32, 4, bias=True).to_quantized(32, 4, "affine")
    quantization = adapter.quantization_of(projection)
    assert quantization is not None
    assert (quantization.group_size, quantization.bits, quantization.mode) == (32, 4, "affine")
    assert set(adapter.parameters(projection)) == {"weight", "scales", "biases", "bias"}
    assert adapter.quantization_of(switch_layers.SwitchLinear(8, 8, 2)) is None


def test_load_model_takes_our_classes_and_sanitizes_what_it_loaded(checkpoint: Path) -> None:
    assert "get_model_classes" in inspect.signature(load_model).parameters
    lazy = adapter.load_lazily(checkpoint)
    assert lazy.in_place == set(adapter.parameters(lazy.model))
    assert "sanitize" not in vars(lazy.model)


def test_a_tensor_that_sanitize_computes_is_not_taken_for_one_in_place(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlx_lm.models import qwen3_moe

    def doubling(self: Any, weights: dict[str, mx.array]) -> dict[str, mx.array]:
        name = "model.layers.0.mlp.switch_mlp.up_proj.scales"
        return weights | {name: weights[name] * 2}

    monkeypatch.setattr(qwen3_moe.Model, "sanitize", doubling)
    lazy = adapter.load_lazily(checkpoint)
    with pytest.raises(UnsupportedModelError, match=r"up_proj\.scales while it loads"):
        survey(lazy.model, Checkpoint.open(checkpoint), lazy.in_place)


def test_experts_stored_one_by_one_are_refused_with_a_way_out(qwen: Family, tmp_path: Path) -> None:
    """Hugging Face checkpoints name each expert's tensors; mlx-lm stacks them while it loads."""
    arrays = mx.load(str(write_checkpoint(qwen, tmp_path) / "model.safetensors"))
    assert isinstance(arrays, dict)
    for name in [name for name in arrays if ".switch_mlp." in name]:
        stack = arrays.pop(name)
        for expert in range(stack.shape[0]):
            arrays[name.replace("switch_mlp", f"experts.{expert}")] = stack[expert]
    (tmp_path / "model.safetensors.index.json").unlink()
    mx.save_safetensors(str(tmp_path / "model.safetensors"), arrays)
    lazy = adapter.load_lazily(tmp_path)
    with pytest.raises(UnsupportedModelError, match=r"stored under other names.*mlx-flash pack"):
        survey(lazy.model, Checkpoint.open(tmp_path), lazy.in_place)


def test_replace_module_reaches_into_lists() -> None:
    class Parent(Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = [Module(), Module()]
            self.head = Module()

    parent, new = Parent(), Module()
    adapter.replace_module(parent, "layers.1", new)
    adapter.replace_module(parent, "head", new)
    assert parent.layers[1] is new
    assert parent.head is new


def test_cache_bytes_are_what_a_real_run_allocates(checkpoint: Path) -> None:
    from comparing import random_tokens, resident
    from mlx_lm.models.cache import make_prompt_cache

    model = resident(checkpoint)
    for num_tokens in (1, 256, 300):
        cache = make_prompt_cache(model)
        mx.eval(model(random_tokens(num_tokens, 128), cache=cache))
        assert adapter.cache_bytes(model, num_tokens) == sum(entry.nbytes for entry in cache)


@pytest.mark.parametrize(
    "text", ['{"model_type": "no_such_family"}', '{"model_type": "switch_layers"}']
)
def test_an_unknown_model_type_is_refused(checkpoint: Path, tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    for shard in checkpoint.glob("*.safetensors"):
        (tmp_path / shard.name).symlink_to(shard)
    with pytest.raises(UnsupportedModelError, match="cannot load"):
        adapter.load_lazily(tmp_path)


def test_attention_modules_call_one_function_by_name_and_only_ours_change(
    checkpoint: Path,
) -> None:
    calls = []

    def counting(*args: Any, **kwargs: Any) -> mx.array:
        calls.append(sorted(kwargs))
        return adapter.mlx_attention(*args, **kwargs)

    ours, theirs = (adapter.load_lazily(checkpoint).model for _ in range(2))
    assert adapter.replace_attention(ours, counting) == len(ours.layers)
    tokens = mx.zeros((1, 3), mx.int32)
    found, expected = ours(tokens), theirs(tokens)
    assert calls == [["cache", "mask", "scale"]] * len(ours.layers)
    assert mx.array_equal(found, expected).item()


def test_every_expert_activation_of_mlx_lm_that_we_name_is_still_there() -> None:
    from mlx_lm.models.deepseek_v41 import DeepseekV41SwiGLU
    from mlx_lm.models.gemma4_text import GeGLU
    from mlx_lm.models.step3p5 import ClampedSwiGLU

    named = {
        "geglu": GeGLU(),
        "clamped_silu": ClampedSwiGLU(0.5),
        "clamped_swiglu": DeepseekV41SwiGLU(0.5),
    }
    for name, module in named.items():
        kind = adapter.activation_of(switch_layers.SwitchGLU(8, 8, 2, activation=module))
        assert kind is not None
        assert kind.name == name
    assert adapter.activation_of(switch_layers.SwitchMLP(8, 8, 2)) is None


def test_caches_go_back_or_say_that_they_cannot() -> None:
    from mlx_lm.models.cache import ArraysCache, KVCache, RotatingKVCache

    def filled(cache: Any, num_tokens: int) -> Any:
        cache.update_and_fetch(mx.zeros((1, 1, num_tokens, 8)), mx.zeros((1, 1, num_tokens, 8)))
        return cache

    plain, window = filled(KVCache(), 5), filled(RotatingKVCache(max_size=8), 5)
    assert adapter.trim_cache([plain, window], 3)
    assert (plain.offset, window.offset) == (2, 2)
    assert adapter.held_bytes([plain]) == plain.nbytes > 0
    assert not adapter.trim_cache([plain], 3)  # it has two
    slid = filled(RotatingKVCache(max_size=4), 5)
    assert not adapter.trim_cache([plain, slid], 1)
    assert not adapter.trim_cache([ArraysCache(2)], 1)
    assert adapter.trim_cache([ArraysCache(2)], 0)


def thinking_tokenizer() -> token_seam.TokenizerWrapper:
    tokenizer = token_seam.open_tokenizer(bundled_model())._tokenizer
    tokenizer.add_tokens(["<think>", "</think>"])
    return token_seam.TokenizerWrapper(tokenizer)


def split(
    tokenizer: token_seam.TokenizerWrapper, prompt: str, pieces: list[str]
) -> tuple[str, str]:
    """Return what of an answer is said and what is thought."""
    first = token_seam.first_state(tokenizer, tokenizer.encode(prompt))
    splitter = token_seam.AnswerSplitter(tokenizer, first)
    parts = [part for piece in pieces for part in splitter.add(piece)] + splitter.rest()
    said = "".join(text for state, text in parts if state != token_seam.REASONING)
    return said, "".join(text for state, text in parts if state == token_seam.REASONING)


def test_thoughts_are_told_from_what_is_said() -> None:
    tokenizer = thinking_tokenizer()
    assert split(tokenizer, "Hi", ["<thi", "nk>why", " not</think>", "yes <b"]) == (
        "yes <b",
        "why not",
    )
    opened = "Hi<think>\n"
    assert split(tokenizer, opened, ["why</", "think>yes"]) == ("yes", "why")
    assert split(tokenizer, "<think>x</think>", ["yes"]) == ("yes", "")
    plain = token_seam.open_tokenizer(bundled_model())
    assert split(plain, "Hi", ["<think>", "yes"]) == ("<think>yes", "")


def test_a_conversation_is_encoded_by_the_template_or_line_by_line() -> None:
    tokenizer = token_seam.open_tokenizer(bundled_model())
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Yes?"},
        {"role": "user", "content": "Bye"},
    ]
    tokens = token_seam.encode_messages(tokenizer, messages)
    assert tokens == tokenizer.apply_chat_template(messages, add_generation_prompt=True)
    assert token_seam.encode_messages(tokenizer, messages[1:2]) == token_seam.encode_prompt(
        tokenizer, "Hi", True
    )
    tokenizer._tokenizer.chat_template = "{{ raise_exception('no system, please') }}"
    with pytest.raises(UnsupportedModelError, match="no system, please"):
        token_seam.encode_messages(tokenizer, messages)
    tokenizer.has_chat_template = False
    lines = tokenizer.decode(token_seam.encode_messages(tokenizer, messages[1:]))
    assert lines == "user: Hi\nassistant: Yes?\nuser: Bye\nassistant:"
