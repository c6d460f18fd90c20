"""The CPU kernels: right to float64, and one order of summation whatever is computed beside."""

import builtins
import copy
import dataclasses
import gc
import math
import os
import sys
import threading
import tracemalloc
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from comparing import opened, random_tokens, resident
from families import FAMILIES, Family, write_checkpoint
from mlx_lm.generate import generate_step
from mlx_lm.models.activations import SwigluOAI
from mlx_lm.models.switch_layers import SwiGLU, SwitchGLU, SwitchMLP

from mlx_flash.bench.matrices import CASES, Case, random_matrix
from mlx_flash.config import CacheOptions, KernelOptions, MemoryLimit
from mlx_flash.errors import OptionError, UnsupportedModelError
from mlx_flash.kernels import dispatch
from mlx_flash.kernels.activations import ACTIVATIONS
from mlx_flash.kernels.cpu.kernels import CpuKernels
from mlx_flash.kernels.cpu.matrix import Matrix
from mlx_flash.streaming import adapter
from mlx_flash.streaming.compute import ResidentStacks, computing
from mlx_flash.streaming.dense import LOGIT_POSITIONS
from mlx_flash.streaming.swap import swap_modules
from mlx_flash.streaming.switch import ExpertTwin

ONE, TWO, FIVE = CpuKernels(1), CpuKernels(2), CpuKernels(5)
WIDTHS = (128, 384, 2048, 2880)  # whole blocks, and every kind of rest


@pytest.fixture(autouse=True)
def _on_the_cpu() -> Any:
    before = mx.default_device()
    mx.set_default_device(mx.Device(mx.cpu))
    yield
    mx.set_default_device(before)


def matrix_of(case: Case, num_rows: int, width: int) -> tuple[Matrix, Any]:
    mx.random.seed(width)
    tensors, exact = random_matrix(case, num_rows, width)
    matrix = ONE.matrix(tensors, case.quantization)
    assert matrix is not None
    return matrix, exact


def by_label(case: Case) -> str:
    return case.label


def fits(case: Case, width: int) -> bool:
    return case.quantization is None or width % case.quantization.group_size == 0


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("case", CASES, ids=by_label)
def test_a_product_is_that_of_float64_and_does_not_depend_on_its_company(
    case: Case, width: int
) -> None:
    if not fits(case, width):
        width = width // 128 * 128
    matrix, exact = matrix_of(case, 132, width)
    x = mx.random.normal((37, width))
    y = np.asarray(ONE.linear(matrix, x))
    truth = np.asarray(x).astype(np.float64) @ exact.T
    assert np.linalg.norm(y - truth) / np.linalg.norm(truth) < 3e-6
    for kernels in (TWO, FIVE):
        assert np.array_equal(np.asarray(kernels.linear(matrix, x)), y)
    for first, last in ((0, 1), (1, 4), (3, 11), (5, 37)):
        assert np.array_equal(np.asarray(TWO.linear(matrix, x[first:last])), y[first:last])


@pytest.mark.parametrize("case", CASES, ids=by_label)
def test_a_slot_of_a_stack_gives_what_the_matrix_alone_gives(case: Case) -> None:
    tensors, _ = random_matrix(case, 5 * 64, 256)
    stack = {name: a.reshape(5, 64, a.shape[-1]) for name, a in tensors.items()}
    mx.eval(stack)
    whole = TWO.matrix(stack, case.quantization)
    assert whole is not None
    x, slots = mx.random.normal((7, 1, 256)), np.array([4, 0, 4, 2, 2, 4, 1], np.uint32)
    y = np.asarray(TWO.gather_linear(whole, x, mx.array(slots)))
    for row, slot in enumerate(slots):
        part = {name: mx.contiguous(array[int(slot)]) for name, array in stack.items()}
        mx.eval(part)
        alone = ONE.matrix(part, case.quantization)
        assert alone is not None
        assert np.array_equal(np.asarray(ONE.linear(alone, x[row])), y[row])


@pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16])
def test_a_bias_is_added_in_the_type_it_is_stored_in(dtype: mx.Dtype) -> None:
    tensors, exact = random_matrix(CASES[2], 64, 128)
    bias = mx.random.normal((64,)).astype(dtype)
    mx.eval(bias)
    matrix = ONE.matrix({**tensors, "bias": bias}, CASES[2].quantization)
    assert matrix is not None
    x = mx.random.normal((3, 128))
    expected = np.asarray(x) @ exact[:64].T + np.asarray(bias.astype(mx.float32))
    assert np.allclose(np.asarray(ONE.linear(matrix, x)), expected, atol=1e-4)


def test_half_precision_inputs_give_half_precision_results() -> None:
    matrix, exact = matrix_of(CASES[2], 64, 128)
    x = mx.random.normal((3, 128)).astype(mx.bfloat16)
    y = ONE.linear(matrix, x)
    assert y.dtype == mx.bfloat16
    expected = np.asarray(x.astype(mx.float32)) @ exact[:64].T
    assert np.allclose(np.asarray(y.astype(mx.float32)), expected, rtol=1e-2, atol=0.1)


def test_bytes_behind_a_matrix_are_never_part_of_a_result() -> None:
    """The last row ends where its tensor ends: what follows may be anything, NaN included."""
    for case in CASES:
        width = 2880 if fits(case, 2880) else 2816
        tensors, _ = random_matrix(case, 8, width)
        x = mx.random.normal((2, width))
        plain = ONE.matrix(tensors, case.quantization)
        poisoned = {
            name: mx.concatenate(
                [array, mx.full((4, array.shape[-1]), 255).astype(mx.uint8).astype(array.dtype)]
            )
            for name, array in tensors.items()
        }
        for name, array in poisoned.items():
            if mx.issubdtype(array.dtype, mx.floating):
                poisoned[name] = mx.where(mx.arange(12)[:, None] < 8, array, mx.nan).astype(
                    array.dtype
                )
        mx.eval(poisoned)
        beside = ONE.matrix(poisoned, case.quantization)
        assert plain is not None
        assert beside is not None
        y = np.asarray(ONE.linear(plain, x))
        assert np.isfinite(y).all()
        assert np.array_equal(np.asarray(ONE.linear(beside, x))[:, :8], y)


def test_no_rows_give_no_results() -> None:
    matrix, _ = matrix_of(CASES[2], 64, 128)
    assert ONE.linear(matrix, mx.zeros((2, 0, 128))).shape == (2, 0, 64)
    none = mx.zeros((0,), mx.uint32)
    assert ONE.gather_linear(matrix, mx.zeros((0, 1, 128)), none).shape == (0, 1, 64)


def test_what_no_kernel_reads_has_no_matrix() -> None:
    weight = mx.zeros((7, 128))
    assert ONE.matrix({"weight": weight}, None) is None  # 7 rows
    assert ONE.matrix({"weight": mx.zeros((8, 40))}, None) is None
    assert ONE.matrix({"weight": mx.zeros((8, 128), mx.int32)}, None) is None


GLU = {
    "swiglu": SwiGLU(),
    "swiglu_oai": SwigluOAI(1.3, 0.7),
}


def module_of(name: str) -> tuple[Any, Any]:
    """Return mlx-lm's module of an activation, and a function that computes it."""
    from mlx_lm.models.deepseek_v41 import DeepseekV41SwiGLU
    from mlx_lm.models.gemma4_text import GeGLU
    from mlx_lm.models.step3p5 import ClampedSwiGLU

    modules = {
        **GLU,
        "clamped_swiglu": DeepseekV41SwiGLU(0.4),
        "clamped_silu": ClampedSwiGLU(0.3),
        "geglu": GeGLU(),
        "relu2": nn.ReLU2(),
    }
    return modules[name], modules[name]


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_an_experts_step_is_that_of_mlx(name: str, biased: bool) -> None:
    module, _ = module_of(name)
    kind = SwitchMLP if name == "relu2" else SwitchGLU
    switch = kind(128, 64, 6, activation=module, bias=biased)
    if biased:
        for projection in adapter.projections(switch).values():
            projection.bias = mx.random.normal(projection.bias.shape)
    nn.quantize(switch, 32, 4)
    arrays = {
        f"{path}.{tensor}": array
        for path, projection in adapter.projections(switch).items()
        for tensor, array in adapter.parameters(projection).items()
    }
    x, indices = mx.random.normal((2, 9, 128)), mx.random.randint(0, 6, (2, 9, 3)).astype(mx.uint32)
    expected = np.asarray(switch(x, indices))
    compute = computing(switch, [ResidentStacks(arrays)], TWO)
    twin = ExpertTwin(switch, compute)
    assert twin.fused
    found = np.asarray(compute.whole(0, x, indices))
    assert np.abs(found - expected).max() < 1e-5 * np.abs(expected).max() + 1e-6
    general = np.asarray(switch(x, indices))  # projection by projection, on the kernels
    assert np.abs(general - expected).max() < 1e-5 * np.abs(expected).max() + 1e-6


def test_an_unknown_activation_takes_the_general_path() -> None:
    switch = SwitchGLU(128, 64, 6, activation=lambda up, gate: mx.tanh(gate) * up)
    arrays = {
        f"{path}.weight": projection.weight
        for path, projection in adapter.projections(switch).items()
    }
    x, indices = mx.random.normal((1, 40, 128)), mx.random.randint(0, 6, (1, 40, 2))
    expected = np.asarray(switch(x, indices.astype(mx.uint32)))
    compute = computing(switch, [ResidentStacks(arrays)], TWO)
    assert not ExpertTwin(switch, compute).fused
    assert np.allclose(
        np.asarray(compute.whole(0, x, indices.astype(mx.uint32))), expected, atol=1e-5
    )


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_family_computes_what_mlx_computes(family: Family, tmp_path: Path) -> None:
    write_checkpoint(family, tmp_path, quantization={"group_size": 32, "bits": 4})
    tokens = random_tokens(12, 100)
    expected = np.asarray(resident(tmp_path)(tokens)).astype(np.float64)
    found = np.asarray(resident(tmp_path, "kernels")(tokens)).astype(np.float64)
    assert np.linalg.norm(found - expected) <= 2e-4 * np.linalg.norm(expected)


ATTENTIONS = {
    "decode": ((1, 8, 2, 1, 300, 64, 64), None),
    "prefill": ((2, 4, 4, 40, 40, 128, 128), "causal"),
    "chunk": ((1, 6, 2, 17, 270, 80, 64), "causal"),
    "booleans": ((1, 8, 2, 9, 150, 64, 64), "booleans"),
    "numbers": ((2, 3, 1, 5, 33, 96, 128), "numbers"),
}


@pytest.mark.parametrize("name", ATTENTIONS)
def test_attention_is_that_of_mlx_and_each_query_stands_alone(name: str) -> None:
    (batch, heads, groups, length, num_keys, width, out), mask = ATTENTIONS[name]
    mx.random.seed(0)
    queries = mx.random.normal((batch, heads, length, width))
    keys = mx.random.normal((batch, groups, num_keys + 20, width))[:, :, :num_keys]
    values = mx.random.normal((batch, groups, num_keys + 20, out))[:, :, :num_keys]
    if mask == "booleans":
        mask = mx.random.uniform(shape=(length, num_keys)) > 0.4
    elif mask == "numbers":
        mask = mx.random.normal((batch, 1, length, num_keys))
    expected = mx.fast.scaled_dot_product_attention(queries, keys, values, scale=0.1, mask=mask)
    found = TWO.attention(queries, keys, values, 0.1, mask)
    assert found is not None
    assert np.abs(np.asarray(found) - np.asarray(expected)).max() < 5e-6
    if mask is None or isinstance(mask, str):
        last = ONE.attention(queries[:, :, -1:], keys, values, 0.1, None)
        assert np.array_equal(np.asarray(last), np.asarray(found)[:, :, -1:])


def test_attention_that_the_kernels_cannot_is_left_to_mlx() -> None:
    x = mx.zeros((1, 2, 3, 64))
    assert ONE.attends(x, x, x, None)
    assert not ONE.attends(x.astype(mx.bfloat16), x, x, None)
    assert not ONE.attends(x, x, x[..., :40], None)
    assert not ONE.attends(x, x, x, "some other mask")
    assert not ONE.attends(x, x[..., :32], x, None)
    assert not ONE.attends(x, x, x[:, :, :2], None)
    assert not ONE.attends(x, x[:, :, :2], x[:, :, :2], "causal")
    assert not ONE.attends(x, mx.zeros((2, 2, 3, 64)), mx.zeros((2, 2, 3, 64)), None)


@pytest.mark.parametrize("kind", ["one key for all", "transposed"])
def test_a_mask_of_any_strides_is_read_in_its_own_order(kind: str) -> None:
    mx.random.seed(0)
    queries, keys, values = (mx.random.normal((2, 2, n, 64)) for n in (7, 19, 19))
    mask = mx.random.normal((2, 1, 7, 1) if kind == "one key for all" else (19, 7))
    mask = mask if kind == "one key for all" else mask.T
    expected = mx.fast.scaled_dot_product_attention(queries, keys, values, scale=0.1, mask=mask)
    found = TWO.attention(queries, keys, values, 0.1, mask)
    assert np.abs(np.asarray(found) - np.asarray(expected)).max() < 5e-6


def test_threads_may_call_at_the_same_time() -> None:
    matrix, _ = matrix_of(CASES[2], 512, 512)
    inputs = [mx.random.normal((3, 512)) for _ in range(6)]
    mx.eval(inputs)
    expected = [np.asarray(ONE.linear(matrix, x)) for x in inputs]
    wrong: list[int] = []

    def run(number: int) -> None:
        for _ in range(50):
            if not np.array_equal(np.asarray(TWO.linear(matrix, inputs[number])), expected[number]):
                wrong.append(number)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(len(inputs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@pytest.mark.parametrize("through", ["eventfd", "pipe"])
@pytest.mark.parametrize("num_threads", [1, 4])
def test_a_pool_works_and_its_threads_end_with_it(
    num_threads: int, through: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if through == "pipe":  # as where there is no eventfd
        monkeypatch.delattr(os, "eventfd", raising=False)
    before = set(threading.enumerate())
    kernels = CpuKernels(num_threads)
    matrix, _ = matrix_of(CASES[2], 512, 512)
    x = mx.random.normal((5, 512))
    expected = np.asarray(ONE.linear(matrix, x))
    for _ in range(100):
        assert np.array_equal(np.asarray(kernels.linear(matrix, x)), expected)
    started = set(threading.enumerate()) - before
    assert len(started) == num_threads - 1
    del kernels
    for thread in started:
        thread.join(timeout=10)
        assert not thread.is_alive()


def test_a_gradient_through_the_kernels_is_refused() -> None:
    matrix, _ = matrix_of(CASES[2], 64, 128)
    with pytest.raises(UnsupportedModelError, match="forward only"):
        mx.grad(lambda x: ONE.linear(matrix, x).sum())(mx.ones((1, 128)))


def test_without_numba_mlx_computes_and_a_sentence_says_so(monkeypatch: Any) -> None:
    monkeypatch.setitem(sys.modules, "numba", None)
    choice = dispatch.choose_kernels(None, on_cpu=True, num_threads=2)
    assert choice.name == "reference"
    assert "pip install numba" in choice.why
    with pytest.raises(OptionError, match="numba is not installed"):
        dispatch.choose_kernels("cpu", on_cpu=True, num_threads=2)
    assert dispatch.choose_kernels(None, on_cpu=False, num_threads=2).why == ""
    with pytest.raises(OptionError, match="computes on a GPU"):
        dispatch.choose_kernels("cpu", on_cpu=False, num_threads=2)


def test_a_numba_that_cannot_be_imported_is_named(monkeypatch: Any) -> None:
    def fail(name: str, *args: Any) -> Any:
        if name == "numba":
            raise ImportError("Numba needs NumPy 2.3 or less", name="numba.core")
        return real(name, *args)

    real = builtins.__import__
    monkeypatch.setattr(builtins, "__import__", fail)
    why = dispatch.choose_kernels(None, on_cpu=True, num_threads=2).why
    assert "cannot be imported: Numba needs NumPy 2.3 or less" in why


def test_unknown_kernels_are_refused() -> None:
    with pytest.raises(OptionError, match="no kernels 'fast'"):
        KernelOptions(kernels="fast")


def test_dense_matrices_stay_in_the_types_they_are_stored_in(checkpoint: Path) -> None:
    loaded = opened(checkpoint, CacheOptions(), MemoryLimit(everything=True), "kernels")
    layer = loaded.model.layers[0]
    assert layer.self_attn.q_proj.scales.dtype == mx.bfloat16
    assert layer.input_layernorm.weight.dtype == mx.float32
    assert loaded.model(random_tokens(3, 100)).dtype == mx.float32
    assert math.isfinite(loaded.model(random_tokens(3, 100)).sum().item())


@pytest.mark.parametrize("bits", [None, 4])
def test_a_weight_that_is_changed_in_place_is_read_again(bits: int | None) -> None:
    layer: nn.Module = nn.Linear(128, 64)
    if bits:
        layer = layer.to_quantized(group_size=64, bits=bits)
    model = nn.Sequential(layer)
    swap_modules(model, ONE)
    x, changed = mx.random.normal((3, 128)), "scales" if bits else "weight"
    before = model(x)
    model.layers[0][changed] += 1
    assert not np.allclose(model(x), before)
    layer[changed] += 1
    assert np.allclose(model(x), layer(x), atol=1e-3)


def test_a_transposed_weight_is_read() -> None:
    layer = nn.Linear(128, 64)
    layer.weight = mx.random.normal((128, 64)).T
    model = nn.Sequential(layer)
    swap_modules(model, ONE)
    x = mx.random.normal((2, 128))
    assert np.allclose(model(x), layer(x), atol=1e-4)


def test_a_copied_resident_model_shares_its_experts(checkpoint: Path) -> None:
    ours = opened(checkpoint, CacheOptions(), MemoryLimit(everything=True), "kernels").model
    twin, tokens = copy.deepcopy(ours), random_tokens(3, 100)
    expected = np.asarray(ours(tokens))
    del ours
    gc.collect()
    assert np.array_equal(twin(tokens), expected)


def test_the_logits_of_a_long_prompt_take_no_memory(qwen: Family, tmp_path: Path) -> None:
    """They are 96 MB here, and larger than the model elsewhere; prefill never looks at them."""
    family = dataclasses.replace(qwen, config=qwen.config | {"vocab_size": 60_000})
    folder = write_checkpoint(family, tmp_path, quantization={"group_size": 64, "bits": 4})
    options, limit = CacheOptions(), MemoryLimit(everything=True)
    model = opened(folder, options, limit, "kernels").model
    prompt = random_tokens(400, 100)[0]
    mx.clear_cache()
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    tracemalloc.start()
    next(generate_step(prompt, model, max_tokens=1))
    numpy_peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert mx.get_peak_memory() - before < 24_000_000
    assert numpy_peak < 24_000_000


def test_logits_that_are_left_to_mlx_are_those_of_the_kernels(checkpoint: Path) -> None:
    ours = opened(checkpoint, CacheOptions(), MemoryLimit(everything=True), "kernels").model
    tokens = random_tokens(LOGIT_POSITIONS + 1, 100)
    many = ours(tokens)
    few = ours(tokens[:, :LOGIT_POSITIONS])
    assert np.allclose(many[:, :LOGIT_POSITIONS], few, rtol=1e-4, atol=1e-5)
