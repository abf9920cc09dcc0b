"""What a request to the route may ask, and what of it reaches a training."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

Pack = Callable[[str], ModuleType]


class Training:
    """Writes down what it is asked."""

    def __init__(self, name: str) -> None:
        self.run = SimpleNamespace(name=name)
        self.asked: list[Any] = []

    def pause(self, leave: bool = False) -> None:
        self.asked.append(("pause", leave))

    def save_now(self) -> None:
        self.asked.append("save")

    def sample_now(self) -> None:
        self.asked.append("sample")


@pytest.fixture
def controls(pack: Pack) -> ModuleType:
    return pack("nodes.controls")


def test_requests_reach_the_run_that_they_name(controls: ModuleType) -> None:
    one, other = Training("one"), Training("other")
    with controls.reachable(one), controls.reachable(other):
        for word in ("save", "sample", "pause"):
            assert controls.tell({"run": "one", "request": word}) == {"run": "one", "request": word}
    assert one.asked == ["save", "sample", ("pause", True)]  # a pause must end the prompt, or other graphs would wait
    assert other.asked == []


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (None, 400),
        ([], 400),
        ("pause", 400),
        ({"run": "one"}, 400),
        ({"run": "one", "request": "pause", "path": "/etc"}, 400),
        ({"run": 1, "request": "pause"}, 400),
        ({"run": "one", "request": ["pause"]}, 400),
        ({"run": "one", "request": "stop"}, 400),
        ({"run": "one", "request": "__class__"}, 400),
        ({"run": "two", "request": "pause"}, 404),
        ({"run": "../one", "request": "pause"}, 404),
        ({"run": "./one", "request": "pause"}, 404),
        ({"run": "ONE", "request": "pause"}, 404),
        ({"run": "", "request": "pause"}, 404),
    ],
)
def test_anything_else_is_refused(controls: ModuleType, body: Any, status: int) -> None:
    one = Training("one")
    with controls.reachable(one), pytest.raises(controls.Refused, match=r"\w") as refusal:
        controls.tell(body)
    assert refusal.value.status == status
    assert one.asked == []


def test_a_run_that_has_ended_is_out_of_reach(controls: ModuleType) -> None:
    one = Training("one")
    with pytest.raises(ZeroDivisionError), controls.reachable(one):
        raise ZeroDivisionError
    with pytest.raises(controls.Refused):
        controls.tell({"run": "one", "request": "pause"})
    assert one.asked == []
