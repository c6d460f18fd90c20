"""The same kernels compiled for other processors, and where there is no room to keep them."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import llvmlite.binding as llvm
import pytest

COMPUTE = """
import hashlib, json, sys
import mlx.core as mx, numpy as np
mx.set_default_device(mx.Device(mx.cpu))
from mlx_flash.bench.matrices import CASES, random_matrix
from mlx_flash.kernels.dispatch import choose_kernels
choice = choose_kernels("cpu", True, 2)
found = {}
for case in CASES:
    if case.label not in sys.argv[1:]:
        continue
    mx.random.seed(1)
    tensors, exact = random_matrix(case, 128, 2880 if "g64" not in case.label else 2816)
    matrix = choice.cpu.matrix(tensors, case.quantization)
    x = mx.random.normal((6, exact.shape[1]))
    y = np.asarray(choice.cpu.linear(matrix, x))
    truth = np.asarray(x).astype(np.float64) @ exact.T
    error = np.linalg.norm(y - truth) / np.linalg.norm(truth)
    found[case.label] = [hashlib.sha256(y.tobytes()).hexdigest(), float(error)]
print(json.dumps({"why": choice.why, "found": found}))
"""
SHOW = """
import sys
from mlx_flash.kernels.cpu import jit, phases
phases.product(sys.argv[1])
print(jit._kept[-1].inspect_llvm())
"""
LABELS = ["affine 3 bits, g64", "affine 4 bits, g64", "mxfp4", "mxfp8", "nvfp4", "bf16"]


def compute(**environment: str) -> Any:
    command = [sys.executable, "-c", COMPUTE, *LABELS]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, env={**os.environ, **environment}
    )
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def here() -> Any:
    return compute()["found"]


@pytest.mark.skipif(not llvm.get_host_cpu_features().get("avx2"), reason="no AVX2 here to run on")
def test_avx2_gives_the_bits_of_wider_vectors(here: Any) -> None:
    features = "+avx,+avx2,+fma,+f16c,+sse4.2,+bmi,+bmi2"
    found = compute(NUMBA_CPU_NAME="haswell", NUMBA_CPU_FEATURES=features)["found"]
    assert found == here


@pytest.mark.skipif(not llvm.get_host_cpu_features().get("sse4.2"), reason="no x86 processor")
def test_an_old_processor_computes_right(here: Any) -> None:
    """Without fused multiplication the last bits differ, and without F16C halves are decoded."""
    found = compute(NUMBA_CPU_NAME="nehalem", NUMBA_CPU_FEATURES="+sse4.2,+popcnt")["found"]
    assert found.keys() == here.keys()
    assert all(error < 3e-6 for _, error in found.values())


@pytest.mark.parametrize("name", ["q4-bf16-64", "q3-bf16-64", "fp4-e8m0-32", "fp8-e8m0-32"])
def test_on_aarch64_llvm_emits_neon(name: str, tmp_path: Path) -> None:
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    command = [sys.executable, "-c", SHOW, name]  # code from numba's cache cannot be looked at
    shown = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)},
    )
    code = re.sub(r'target triple = ".*"', "", shown.stdout)
    code = re.sub(r'target datalayout = ".*"', "", code)
    code = re.sub(r'"target-(cpu|features)"="[^"]*"', "", code)
    target = llvm.Target.from_triple("aarch64-unknown-linux-gnu")
    machine = target.create_target_machine(cpu="apple-m1", opt=3)
    module = llvm.parse_assembly(code)
    module.triple = "aarch64-unknown-linux-gnu"
    assembly = machine.emit_assembly(module)
    multiplied = len(re.findall(r"\bfmla\s+v\d+\.4s|\bfmla\.4s", assembly))
    assert multiplied >= 32  # 16 lanes are four registers: vectors all the way
    assert not re.search(r"\bbl\s+_?(fmaf|__extendhfsf2|__gnu_h2f_ieee)", assembly)


def test_without_a_folder_to_write_to_kernels_are_compiled_anew_and_a_sentence_says_so() -> None:
    nowhere = """
from numba.core import caching
caching.CacheImpl._locator_classes = []
"""
    script = nowhere + COMPUTE
    done = subprocess.run(
        [sys.executable, "-c", script, "affine 4 bits, g64"],
        capture_output=True,
        text=True,
        check=True,
    )
    found = json.loads(done.stdout.splitlines()[-1])
    assert "NUMBA_CACHE_DIR" in found["why"]
    assert found["found"]["affine 4 bits, g64"][1] < 3e-6
