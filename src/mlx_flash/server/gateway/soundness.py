"""Checks of JSON from clients, parts of which go on to templates, grammars and the worker as is."""

import math
from typing import Any

from .backend import RequestError

_MAX_DEPTH = 100


def check_sound(body: Any) -> None:
    """Check that JSON can be passed on: not too deep, and each number and text has an encoding.

    Raises:
        RequestError: it cannot.
    """
    level = [body]
    for _ in range(_MAX_DEPTH):
        below: list[Any] = []
        for value in level:
            if isinstance(value, dict):
                below += value.keys()
                below += value.values()
            elif isinstance(value, list):
                below += value
            else:
                _check_leaf(value)
        if not below:
            return
        level = below
    raise RequestError("invalid", f"the body is nested more than {_MAX_DEPTH} deep: send less.")


def _check_leaf(value: Any) -> None:
    if isinstance(value, str):
        if not value.isascii() and any("\ud800" <= letter <= "\udfff" for letter in value):
            raise RequestError("invalid", "the body has half a character in it: send whole ones.")
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise RequestError(
                "invalid", f"the body has the number {value} in it: send finite ones."
            )
    elif isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise RequestError("invalid", "the body has a number of more than 64 bits: send less.")
