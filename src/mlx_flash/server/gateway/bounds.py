"""How large the numbers of a request may be: what is beyond is refused before it is computed."""

from typing import Annotated, Any

from pydantic import BeforeValidator, Field

MAX_STOPS = 16

Int64 = Annotated[int, Field(ge=-(2**63), le=2**63 - 1)]
Count = Annotated[int, Field(ge=0, le=2**31 - 1)]
Temperature = Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)]
Probability = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Penalty = Annotated[float, Field(ge=-100, le=100, allow_inf_nan=False)]
RepeatPenalty = Annotated[float, Field(ge=0.01, le=100, allow_inf_nan=False)]
Name = Annotated[str, Field(max_length=1000)]


def _as_whole(value: Any) -> Any:
    """Return 5.0 as 5: JSON does not tell them apart."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Integral = BeforeValidator(_as_whole)
"""Goes last in an annotation, behind the bounds."""


def _as_list(stop: Any) -> Any:
    """Return one stop text as a list; empty ones would end every answer and are left out."""
    texts = [stop] if isinstance(stop, str) else stop
    return [text for text in texts if text != ""] if isinstance(texts, list) else texts


StopTexts = Annotated[
    list[Annotated[str, Field(max_length=1000)]],
    Field(max_length=MAX_STOPS),
    BeforeValidator(_as_list),
]
