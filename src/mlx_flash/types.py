"""Names that every layer of the package shares."""

from typing import NamedTuple


class ExpertKey(NamedTuple):
    """One expert: the number of its streamed layer (from 0, in model order) and its own."""

    layer: int
    expert: int
