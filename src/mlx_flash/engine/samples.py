"""Text of each task that is on every machine: to trace a model when the user has none at hand."""

import inspect
import random
from collections.abc import Callable
from types import ModuleType

_CHARACTERS = 60_000  # of each: some 15 thousand tokens


def sample_text(task: str) -> str:
    """Return text of one of `TASKS`: the standard library's code, manual, and what it documents.

    Sums are made up, with a fixed seed. Conversations are plain text, without a chat template.

    Raises:
        KeyError: there is no such task.
    """
    return _SAMPLES[task]()[:_CHARACTERS]


def _coding() -> str:
    import argparse
    import collections
    import shutil
    import statistics

    return "\n\n".join(map(inspect.getsource, (shutil, statistics, collections, argparse)))


def _writing() -> str:
    from pydoc_data.topics import topics  # type: ignore[import-untyped, unused-ignore]

    return "\n\n".join(topics[name] for name in sorted(topics))


def _math() -> str:
    numbers = random.Random(0)
    lines = []
    for _ in range(1500):
        a, b = numbers.randrange(10, 1000), numbers.randrange(10, 1000)
        lines.append(f"What is {a} + {b}?\n{a} + {b} = {a + b}\n")
        lines.append(f"What is {a} * {b % 100}?\n{a} * {b % 100} = {a * (b % 100)}\n")
    return "\n".join(lines)


def _chat() -> str:
    import itertools
    import os
    import pathlib
    import random as random_module
    import statistics

    modules: tuple[ModuleType, ...] = (os, itertools, pathlib, random_module, statistics)
    talk = []
    for module in modules:
        for name, member in inspect.getmembers(module, callable):
            documented = inspect.getdoc(member)
            if documented and not name.startswith("_"):
                talk.append(f"What does {module.__name__}.{name} do?\n\n{documented}\n")
    return "\n".join(talk)


_SAMPLES: dict[str, Callable[[], str]] = {
    "coding": _coding,
    "writing": _writing,
    "math": _math,
    "chat": _chat,
}
