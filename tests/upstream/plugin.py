"""A pytest plugin that makes every mlx-lm model stream its experts when it is first called.

mlx-lm's tests read and cast the parameters of a model between calls. Experts that stream are no
parameters, so asking for parameters puts the original switches back; the next call streams again.
UPSTREAM_MODE says what to do: "plain" nothing, "evaluated" compute every result, "streaming".
"""

import copy
import importlib
import json
import os
import pkgutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx_lm.models
import pytest

from mlx_flash.streaming import adapter
from mlx_flash.streaming.install import stream_experts
from mlx_flash.streaming.switch import StreamedSwitch

CAPACITY = 2
_folders = tempfile.TemporaryDirectory()
_outcomes: dict[str, str] = {}
_streamed: set[str] = set()
_calls = [0]


def _stream(model: nn.Module, name: str) -> None:
    """Write the model's weights and stream its experts from there; keep the switches aside."""
    switches = adapter.find_switches(model)
    if not switches:
        return
    folder = Path(tempfile.mkdtemp(dir=_folders.name))
    mx.save_safetensors(str(folder / "model.safetensors"), adapter.parameters(model))
    (folder / "config.json").write_text(json.dumps({"model_type": name}))
    kept = {path: copy.copy(switch) for path, switch in switches}
    stream_experts(model, folder, capacity=CAPACITY)
    for path, module in model.named_modules():
        if path in kept:
            object.__setattr__(module, "kept", kept[path])
    _streamed.add(name)


def _restore(model: nn.Module) -> None:
    """Put the switches back that `_stream` kept aside."""
    for path, twin in model.named_modules():
        if isinstance(twin, StreamedSwitch) and path:
            adapter.replace_module(model, path, twin.kept)


def _streaming_call(call: Callable[..., Any], name: str) -> Callable[..., Any]:
    def run(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        _stream(self, name)
        return call(self, *args, **kwargs)

    return run


def _evaluated_call(call: Callable[..., Any], name: str) -> Callable[..., Any]:
    def run(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        result = call(self, *args, **kwargs)
        mx.eval(result)
        return result

    return run


def _after_restoring(method: Callable[..., Any]) -> Callable[..., Any]:
    def run(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        _restore(self)
        return method(self, *args, **kwargs)

    return run


def _counting_call(call: Callable[..., Any]) -> Callable[..., Any]:
    def run(self: StreamedSwitch, x: mx.array, indices: mx.array) -> Any:
        _calls[0] += 1
        return call(self, x, indices)

    return run


def pytest_configure() -> None:
    """Wrap what the mode asks for."""
    mode = os.environ["UPSTREAM_MODE"]
    if mode == "plain":
        return
    wrapped = {"evaluated": _evaluated_call, "streaming": _streaming_call}[mode]
    for module in pkgutil.iter_modules(mlx_lm.models.__path__):
        try:
            models = importlib.import_module(f"mlx_lm.models.{module.name}")
        except SystemExit:  # olmo ends the process where its own package is missing
            continue
        model_class = vars(models).get("Model")
        if isinstance(model_class, type) and "__call__" in vars(model_class):
            model_class.__call__ = wrapped(model_class.__call__, module.name)
    if mode == "streaming":
        nn.Module.parameters = _after_restoring(nn.Module.parameters)
        nn.Module.update = _after_restoring(nn.Module.update)
        StreamedSwitch.__call__ = _counting_call(StreamedSwitch.__call__)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Note the outcome; subtests and phases of one test count together, the worst wins."""
    name = report.nodeid.rpartition("::")[2]
    if report.when == "call" or report.outcome != "passed":
        ranks = ["passed", "skipped", "failed"]
        known = _outcomes.get(name, "passed")
        _outcomes[name] = max(known, report.outcome, key=ranks.index)


def pytest_sessionfinish() -> None:
    """Write the outcomes to the file that the environment names."""
    streamed = f"{len(_streamed)} model files streamed, {CAPACITY} slots a layer, {_calls[0]} calls"
    _outcomes[""] = streamed
    Path(os.environ["UPSTREAM_REPORT"]).write_text(json.dumps(_outcomes))
    _folders.cleanup()
