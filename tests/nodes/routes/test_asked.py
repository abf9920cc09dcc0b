"""What is read of a request's path, query and body, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest


@pytest.fixture
def asked(pack: Callable[[str], ModuleType]) -> ModuleType:
    return pack("nodes.routes.asked")


@pytest.mark.parametrize(("text", "number"), [("0", 0), ("17", 17), ("007", 7), ("9007199254740992", 2**53)])
def test_whole_numbers_are_read(asked: ModuleType, text: str, number: int) -> None:
    assert asked.Asked({"step": text}, {}).number("step") == number
    assert asked.Asked({}, {"step": text}).number("step", 3) == number
    assert asked.Asked({}, {}).number("step", 3) == 3


@pytest.mark.parametrize(
    "text", ["", "-1", "1.0", "1e3", " 1", "1_000", "١", "²", "0x1", "9007199254740993", "9" * 5000]
)
def test_anything_else_is_no_number(asked: ModuleType, text: str) -> None:
    with pytest.raises(asked.Refused, match="step must be a whole number") as refusal:
        asked.Asked({"step": text}, {}).number("step", 3)
    assert refusal.value.status == 400


def test_a_number_that_must_be_there_and_is_not(asked: ModuleType) -> None:
    with pytest.raises(asked.Refused):
        asked.Asked({}, {}).number("step")
    with pytest.raises(asked.Refused, match="to 9"):
        asked.Asked({}, {"step": "10"}).number("step", largest=9)


@pytest.mark.parametrize("body", [{"step": 1}, {"step": 1, "name": "a"}, {"step": 1, "name": None}])
def test_fields_of_their_types_are_taken(asked: ModuleType, body: Any) -> None:
    assert asked.Asked({}, {}, body).fields({"step": int}, {"name": str}) == body


@pytest.mark.parametrize(
    "body",
    [None, [], "step", {}, {"step": True}, {"step": 1.0}, {"step": None}, {"step": 1, "x": 1}, {"step": 1, "name": 2}],
)
def test_other_fields_are_refused_with_what_is_wanted(asked: ModuleType, body: Any) -> None:
    with pytest.raises(asked.Refused, match=r'send \{"step": int, "name": str\}') as refusal:
        asked.Asked({}, {}, body).fields({"step": int}, {"name": str})
    assert refusal.value.status == 400
