"""Fields that the bodies of chats and completions share, with their bounds."""

from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, StrictBool, WithJsonSchema

from ...messages import Sampling
from ..bounds import Integral
from ..fields import Fields, SoundFields

MAX_ANSWERS = 128
"""The most answers that one request may ask for, over all its prompts."""

_INT64 = 2**63
_APART = 0x2545F4914F6CDD1D  # so that seeds 1 and 2 share no answers


def _limit(value: int) -> int | None:
    if value == 0:
        raise ValueError("there must be 1 or more; leave it out for no limit")
    return None if value == -1 else value


def _texts(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


Whole = Annotated[int, Field(strict=True, ge=-_INT64, lt=_INT64), Integral]
Real = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Limit = Annotated[
    int,
    Field(strict=True, ge=-1, lt=_INT64),
    Integral,
    AfterValidator(_limit),
    WithJsonSchema({"type": "integer", "minimum": -1, "not": {"const": 0}}),
]
"""A number of tokens; -1 is no limit, as some clients say it."""

_Text = Annotated[str, Field(max_length=4096)]
_Texts = Annotated[list[_Text], Field(max_length=16)]
Stops = Annotated[_Texts, BeforeValidator(_texts, json_schema_input_type=_Text | _Texts)]
Biases = Annotated[
    dict[Annotated[str, Field(pattern="^[0-9]{1,9}$")], Annotated[Real, Field(ge=-100, le=100)]],
    Field(max_length=1024),
]


class StreamOptions(Fields):
    """What a stream has besides the answer."""

    include_usage: StrictBool | None = None


class AnswerFields(SoundFields):
    """How an answer is drawn and sent. What is left out, or `null`, is the server's default."""

    model: Annotated[str, Field(max_length=1024)] | None = None
    stream: StrictBool | None = None
    stream_options: StreamOptions | None = None
    n: Annotated[int, Field(strict=True, ge=1, le=16), Integral] | None = None
    stop: Stops | None = None
    temperature: Annotated[Real, Field(ge=0, le=100)] | None = None
    top_p: Annotated[Real, Field(ge=0, le=1)] | None = None
    top_k: Annotated[int, Field(strict=True, ge=-1, lt=_INT64), Integral] | None = None
    min_p: Annotated[Real, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[Real, Field(gt=0, le=100)] | None = None
    presence_penalty: Annotated[Real, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[Real, Field(ge=-2, le=2)] | None = None
    logit_bias: Biases | None = None
    seed: Whole | None = None

    @property
    def num_answers(self) -> int:
        """How many answers each prompt gets."""
        return self.n or 1

    @property
    def wants_usage(self) -> bool:
        """Whether a stream ends with a count of tokens."""
        return bool(self.stream_options and self.stream_options.include_usage)

    @property
    def stop_texts(self) -> list[str]:
        """The texts that end an answer."""
        return [text for text in self.stop or () if text]

    def sampling(self, nth: int) -> Sampling:
        """Return how the nth answer to a prompt is drawn; each has a seed of its own."""
        return Sampling(
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=None if self.top_k is None else max(self.top_k, 0),
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            logit_bias={int(token): bias for token, bias in (self.logit_bias or {}).items()},
            seed=None if self.seed is None else (self.seed + nth * _APART) % _INT64,
        )
