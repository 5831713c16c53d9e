"""What every section of the config is made of."""

from __future__ import annotations

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
    """Refuse a list with duplicate values."""
    if len(set(values)) != len(values):
        raise ValueError("each value may stand once")
    return values


ONE_OR_MORE = (BeforeValidator(as_list), Field(min_length=1), AfterValidator(distinct))
"""Of a list: a single value may stand without brackets, no value twice."""


Name = Annotated[str, Field(min_length=1)]


class Section(BaseModel):
    """A part of the config: unknown keys are refused, values do not change after validation."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_bool_is_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        is_switch = cls.model_fields[info.field_name or ""].annotation is bool
        values = value if isinstance(value, list) else [value]
        if not is_switch and any(isinstance(each, bool) for each in values):  # pydantic would take true as 1
            raise ValueError("true and false are not allowed here (nor yes, no, on, off, unless in quotes)")
        if any(isinstance(each, str) and "\0" in each for each in values):
            raise ValueError("a text may not hold the character NUL")
        return value


SCHEMES = ("s3", "gs", "az", "abfs")
"""Whose fsspec file systems publish an object by one request. Not so sftp or hdfs, where a half-written file can be
seen, and memory, which no other process sees."""


def check_location(text: str) -> str:
    """Return the name of a folder for runs, if there can be one.

    Raises
    ------
    ValueError
        It is a URL that is no place in an object store.
    """
    scheme, sign, rest = text.partition("://")
    if sign and (scheme not in SCHEMES or not rest.partition("/")[0] or set(rest) & set("*?[]#")):
        raise ValueError(f"must be a folder, or {', '.join(f'{name}://' for name in SCHEMES)} with a bucket's name")
    return text
