"""The list of families is complete, and its checkpoints are what they claim to be.

A new mlx-lm release with a new family fails here, by the family's name.
"""

import ast
from pathlib import Path

import mlx.core as mx
import mlx_lm.models
import pytest
from families import FAMILIES, METAL_FAMILIES, UNSUPPORTED, Family, write_checkpoint
from mlx_lm.models.switch_layers import SwitchGLU, SwitchMLP
from mlx_lm.utils import _get_classes, load_model

MODELS = Path(mlx_lm.models.__path__[0])
SWITCHES = {"SwitchGLU", "SwitchMLP"}
LISTED = {family.name for family in FAMILIES} | set(UNSUPPORTED)


def parsed_modules() -> dict[str, ast.Module]:
    """Every model file of the installed mlx-lm, by module name."""
    files = MODELS.glob("*.py")
    return {file.stem: ast.parse(file.read_text("utf-8")) for file in files}


def uses_a_switch_module(tree: ast.Module) -> bool:
    """True if the file imports a switch module and names it again, or reaches one by attribute."""
    bound: set[str] = set()
    named: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            bound |= {a.asname or a.name for a in node.names if a.name in SWITCHES}
        elif isinstance(node, ast.Name):
            named.add(node.id)
        elif isinstance(node, ast.Attribute) and node.attr in SWITCHES:
            return True
    return bool(bound & named)


def sibling_models(tree: ast.Module) -> set[str]:
    """The model files that the file takes whole, or takes a class from."""
    siblings: set[str] = set()
    for node in ast.walk(tree):
        if not isinstance(node, ast.ImportFrom):
            continue
        module = (node.module or "").removeprefix("mlx_lm.models").lstrip(".")
        if not module:
            siblings |= {alias.name for alias in node.names}
        elif any(alias.name[0].isupper() for alias in node.names):
            siblings.add(module)
    return siblings


def test_every_family_that_uses_a_switch_module_is_listed() -> None:
    users = {name for name, tree in parsed_modules().items() if uses_a_switch_module(tree)}
    assert len(users) > 40
    assert users - LISTED == set()


def test_every_family_that_builds_on_a_listed_family_is_listed() -> None:
    wrappers = {name for name, tree in parsed_modules().items() if sibling_models(tree) & LISTED}
    assert {"kimi_k25", "qwen3_5_moe", "solar_open"} <= wrappers
    assert wrappers - LISTED == set()


def test_every_listed_family_is_in_mlx_lm_and_listed_once() -> None:
    assert set(parsed_modules()) >= LISTED
    assert len(LISTED) == len(FAMILIES) + len(UNSUPPORTED)


@pytest.mark.parametrize("family", [*FAMILIES, *METAL_FAMILIES], ids=lambda family: family.name)
def test_mlx_lm_loads_the_family_and_finds_its_switch_modules(
    family: Family, tmp_path: Path
) -> None:
    write_checkpoint(family, tmp_path, shards=2)
    model, config = load_model(tmp_path, lazy=True)
    switches = [m for _, m in model.named_modules() if isinstance(m, SwitchGLU | SwitchMLP)]
    assert _get_classes(config)[1].__module__ == f"mlx_lm.models.{family.name}"
    assert len(switches) == family.moe_layers
    for switch in switches:
        first = switch.fc1 if isinstance(switch, SwitchMLP) else switch.gate_proj
        assert first.num_experts == family.num_experts


def test_the_seed_alone_decides_the_weights(tmp_path: Path) -> None:
    kimi = next(f for f in FAMILIES if f.name == "kimi_linear")  # it draws parameters when built
    files = []
    for run, seed in enumerate((7, 7, 8)):
        mx.random.seed(run)
        folder = write_checkpoint(kimi, tmp_path / str(run), seed=seed)
        files.append((folder / "model.safetensors").read_bytes())
    assert files[0] == files[1]
    assert files[0] != files[2]
