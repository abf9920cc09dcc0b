"""Strict, immutable sections, and what a user is told when one is wrong."""

from __future__ import annotations

from collections.abc import Iterator
from types import UnionType
from typing import Any, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError, ValidationInfo, field_validator

from ..errors import ConfigError, did_you_mean
from ..secrets import looks_like_token, redacted

T = TypeVar("T", bound="Section")


class Section(BaseModel):
    """A strict, immutable part of a job."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _fit_to_be_kept(cls, value: Any, info: ValidationInfo) -> Any:
        """Jobs are written into run folders and LoRA files, which get shared; and yes and no are no numbers."""
        # sections inside look at their own fields, so that the message names the field and not the section
        annotation = cls.model_fields[str(info.field_name)].annotation
        if not isinstance(value, dict) or get_origin(annotation) is dict:
            for text in _texts(value):
                check_text(text)
        _check_switches(value, annotation)
        return value

    def but(self, **changes: Any) -> Any:
        """A validated copy with some fields changed."""
        return validated(type(self), {**self.model_dump(mode="json"), **changes})


def validated(section: type[T], data: Any) -> T:
    """Data as a section.

    Raises:
        ConfigError: with one line for each thing that is wrong, each naming its field.
    """
    try:
        return section.model_validate(data)
    except ValidationError as error:
        found = error.errors()
        # A list counts as too short when its only item is wrong: that follows from the item's error and says nothing.
        told = [one for one in found if not any(_is_inside(other["loc"], one["loc"]) for other in found)]
        raise ConfigError("\n".join(_explain(section, item) for item in told)) from None


def check_text(text: str) -> None:
    """Refuses texts that no file can hold, and those that nobody but their owner should read.

    Raises:
        ValueError: saying why; the text itself is not in the message.
    """
    if looks_like_token(text):
        raise ValueError(
            "looks like an access token or a password. Jobs are kept in run folders and LoRA files, so they must not "
            "hold any; set the environment variable HF_TOKEN or run `hf auth login`"
        )
    if any(letter == "\0" or "\ud800" <= letter <= "\udfff" for letter in text):
        raise ValueError("holds a zero byte or half of a character, which no file can hold")


def _check_switches(value: Any, annotation: Any) -> None:
    """Refuses true and false where numbers are meant: pydantic takes them for 1 and 0.

    Raises:
        ValueError: saying what to write instead.
    """
    if isinstance(value, list | tuple):
        kinds = [kind for kind in _within(annotation) if get_origin(kind) in (list, tuple)]
        for item in value:
            for kind in kinds:
                _check_switches(item, get_args(kind)[0])
    elif isinstance(value, dict):
        for kind in (kind for kind in _within(annotation) if get_origin(kind) is dict):
            for item in value.values():
                _check_switches(item, get_args(kind)[1])
    elif isinstance(value, bool):
        taken = _within(annotation)
        if bool not in taken and (int in taken or float in taken):
            raise ValueError("must be a number (in YAML, yes, no, on, off, true and false are switches)")


def _within(annotation: Any) -> tuple[Any, ...]:
    """The kinds of value that a field takes: the members of a union, or the one there is."""
    return get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)


def _texts(value: Any) -> Iterator[str]:
    """The texts of a field that is one, or a list or mapping of them, or of lists of them."""
    if isinstance(value, str):
        yield value
        return
    parts = [*value, *value.values()] if isinstance(value, dict) else value if isinstance(value, list | tuple) else []
    for part in parts:
        if isinstance(part, str | list | tuple):
            yield from _texts(part)


def description(section: type[Section], field: str) -> str:
    """The tooltip of a field."""
    return section.model_fields[field].description or ""


def empty_is_none(value: str | None) -> str | None:
    """A text without the white space around it; None if nothing is left."""
    return value.strip() or None if value is not None else None


_PLAIN_WORDS = {
    "too_short": "needs at least one item",
    "tuple_type": "must be a list",
    "model_type": "must be a section with settings of its own",
}
"""What pydantic says in Python's terms, by its error type."""
_LONGEST_TOLD = 200
"""Characters of a wrong value or name that a message repeats."""


def _is_inside(place: tuple[Any, ...], outer: tuple[Any, ...]) -> bool:
    return len(place) > len(outer) and place[: len(outer)] == outer


def _explain(section: type[BaseModel], error: Any) -> str:
    """One of pydantic's errors as a line that names the field and, for an unknown key, the nearest known one."""
    return " ".join(redacted(_explanation(section, error)).splitlines())


def _explanation(section: type[BaseModel], error: Any) -> str:
    location = error["loc"]
    where = "".join(f"[{part}]" if isinstance(part, int) else f".{_shortened(part)}" for part in location).lstrip(".")
    if error["type"] == "extra_forbidden":
        known = list(_section_at(section, location[:-1]).model_fields)
        return f"{where}: unknown setting; {did_you_mean(str(location[-1])[:_LONGEST_TOLD], known)}"
    if error["type"] == "missing":
        return f"{where}: is required"
    message = _PLAIN_WORDS.get(error["type"], error["msg"].removeprefix("Value error, "))
    told = repr(error["input"])
    given = "" if isinstance(error["input"], dict) or message in told else f" (given: {_shortened(told)})"
    return f"{where}: {message}{given}" if where else message


def _shortened(text: str) -> str:
    return text if len(text) <= _LONGEST_TOLD else f"{text[:_LONGEST_TOLD]}… ({len(text)} characters)"


def _section_at(section: type[BaseModel], location: tuple[Any, ...]) -> type[BaseModel]:
    """The section that a path of field names and indices leads to."""
    for part in location:
        if isinstance(part, str) and part in section.model_fields:
            kind: Any = section.model_fields[part].annotation
            kind = next((a for a in getattr(kind, "__args__", ()) if isinstance(a, type)), kind)
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                section = kind
    return section
