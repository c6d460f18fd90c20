"""What the kernels were compiled for."""

import platform

import llvmlite.binding as llvm
from numba.core import config

_WIDEST = (("avx512f", "AVX-512"), ("avx2", "AVX2"), ("avx", "AVX"), ("sse2", "SSE2"))


def _has(feature: str) -> bool:
    """Return whether the processor that code is compiled for has a feature, by LLVM's name."""
    if config.CPU_FEATURES is not None:  # somebody chose another target than this machine
        return f"+{feature}" in str(config.CPU_FEATURES).split(",")
    return bool(llvm.get_host_cpu_features().get(feature))


def is_arm() -> bool:
    """Return whether this is a 64-bit ARM processor."""
    return platform.machine() in ("arm64", "aarch64")


def converts_halves() -> bool:
    """Return whether float16 becomes float32 in one instruction, or by a call to nowhere."""
    return is_arm() or _has("f16c")


def has_many_registers() -> bool:
    """Return whether there are registers for 32 vectors of 16 float32, not for 16 or 8."""
    return _has("avx512f")


def processor() -> str:
    """Return the processor as LLVM calls it, and its widest vectors: `znver4, AVX-512`."""
    name = config.CPU_NAME or llvm.get_host_cpu_name()
    if is_arm():
        return f"{name}, NEON"
    vectors = [label for feature, label in _WIDEST if _has(feature)]
    return ", ".join([name, *vectors[:1]])
