"""What the bodies of all APIs have in common."""

from typing import Any

from pydantic import BaseModel, ConfigDict, ModelWrapValidatorHandler, model_validator
from typing_extensions import Self  # of pydantic; in typing from Python 3.11 on

from .soundness import check_sound


class Fields(BaseModel):
    """A JSON object from a client. Unknown keys are let be."""

    model_config = ConfigDict(extra="allow")


class SoundFields(Fields):
    """A whole body, of which all can be passed on: to templates, grammars and the worker."""

    @model_validator(mode="wrap")
    @classmethod
    def _is_sound(cls, body: Any, validate: ModelWrapValidatorHandler[Self]) -> Self:
        valid = validate(body)  # first: it tells which field is wrong
        check_sound(body)
        return valid
