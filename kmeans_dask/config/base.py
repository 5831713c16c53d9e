"""Building blocks of the config sections."""

from __future__ import annotations

from collections import Counter
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
)


def as_list(value: Any) -> Any:
    """Wrap a single value in a list."""
    return value if isinstance(value, (list, tuple)) else [value]


def distinct(values: list[Any]) -> list[Any]:
    """Return the list unchanged, or raise ValueError if a value occurs more than once."""
    duplicates = [str(value) for value, count in Counter(values).items() if count > 1]
    if duplicates:
        raise ValueError(f"duplicate values are not allowed: {', '.join(duplicates)}")
    return values


ONE_OR_MORE = (BeforeValidator(as_list), Field(min_length=1), AfterValidator(distinct))
"""Annotations of a list of distinct values; a single value needs no brackets."""


Name = Annotated[str, Field(min_length=1)]


class Section(BaseModel):
    """A part of the config. Unknown keys are rejected; values are immutable after validation."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _reject_bool_and_nul(cls, value: Any, info: ValidationInfo) -> Any:
        is_switch = cls.model_fields[info.field_name or ""].annotation is bool
        values = value if isinstance(value, list) else [value]
        if not is_switch and any(isinstance(each, bool) for each in values):  # pydantic would convert true to 1
            raise ValueError("true and false are not allowed here (nor yes, no, on, off, unless quoted)")
        if any(isinstance(each, str) and "\0" in each for each in values):
            raise ValueError("must not contain NUL characters")
        return value
