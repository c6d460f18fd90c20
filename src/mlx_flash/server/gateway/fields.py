"""What the bodies of all APIs have in common."""

from typing import Any

from pydantic import BaseModel, ConfigDict, model_validator

from .soundness import check_sound


class Fields(BaseModel):
    """A JSON object from a client. Unknown keys are let be."""

    model_config = ConfigDict(extra="allow")


class SoundFields(Fields):
    """A whole body, of which all can be passed on: to templates, grammars and the worker."""

    @model_validator(mode="before")
    @classmethod
    def _is_sound(cls, body: Any) -> Any:
        check_sound(body)
        return body
