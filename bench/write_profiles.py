"""Writes the task profiles and the hit rates that ship with the package, from a trace.

    mlx-flash trace --text tests/data/heldout/coding.txt ... --max-tokens 8192 -o ALL
    python bench/write_profiles.py ALL

Profiles are of the whole trace; hit rates are the mean over its domains, with the default policy.
"""

import json
from pathlib import Path

import numpy as np
import typer

from mlx_flash.config import CacheOptions
from mlx_flash.engine.plan import BUNDLED_CURVE
from mlx_flash.engine.profiles import profile_of
from mlx_flash.engine.replay import curve_of
from mlx_flash.telemetry.trace_file import read_trace

ASSETS = Path("src/mlx_flash/assets")
CURVE_TOKENS = 2048  # of each domain


def main(trace: Path) -> None:
    """Write them."""
    domains = read_trace(trace).by_domain()
    curves = []
    for name, part in domains.items():
        text = json.dumps(profile_of(part), separators=(",", ":"))
        (ASSETS / "profiles" / f"{name}.json").write_text(text + "\n")
        end = part.num_tokens
        curves.append(curve_of(part.slice(end - CURVE_TOKENS, end), CacheOptions.policy))
    curve = {
        "source": BUNDLED_CURVE,
        "num_experts": curves[0].num_experts,
        "top_k": curves[0].top_k,
        "capacities": curves[0].capacities.tolist(),
        "hit_rates": np.mean([c.hit_rates for c in curves], axis=0).round(4).tolist(),
    }
    (ASSETS / "curve.json").write_text(json.dumps(curve, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    typer.run(main)
