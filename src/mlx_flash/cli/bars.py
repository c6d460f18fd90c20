"""Bars in a terminal: numbers over time, drawn with characters, in blocks or in plain ASCII."""

import math
from collections.abc import Sequence

BLOCKS, PLAIN = " ▁▂▃▄▅▆▇█", " #"
"""The parts that a bar is made of, from none to a full character."""

_ROUND = (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0)


def bars(values: Sequence[float], top: float, height: int, parts: str) -> list[str]:
    """Return `height` rows, the upper one first, with a bar for each value of 0 to `top`.

    A value above 0 shows, however small.
    """
    full = len(parts) - 1
    filled = [max(math.ceil(value > 0), round(value / top * height * full)) for value in values]
    rows = range(height - 1, -1, -1)
    return ["".join(parts[min(max(n - row * full, 0), full)] for n in filled) for row in rows]


def columns(values: Sequence[float], num_values: int, width: int) -> list[float]:
    """Return what to draw in `width` columns when `num_values` are expected; fewer until then.

    A column shows the last of the values that fall into it.
    """
    width = min(width, num_values)
    ends = [(column + 1) * num_values // width for column in range(width)]
    starts = [0, *ends[:-1]]
    return [
        values[min(end, len(values)) - 1]
        for start, end in zip(starts, ends, strict=True)
        if start < len(values)
    ]


def round_above(value: float) -> float:
    """Return a round number that is not below a positive value: the top of an axis."""
    power = 10.0 ** math.floor(math.log10(value))
    return next(factor * power for factor in _ROUND if factor * power >= value * (1 - 1e-9))
