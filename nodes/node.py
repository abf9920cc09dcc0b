"""What all nodes have in common: expected failures are shown as sentences."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from comfy_api.latest import io

from ..trainer_core.config import plain_name
from ..trainer_core.errors import FoundryError
from .failures import Failure, in_widgets


class Node(io.ComfyNode):
    """A node of ours. ComfyUI makes classes of these for each run, which inherit what is set up here."""

    @classmethod
    def in_widgets(cls, error: FoundryError) -> str:
        """A failure as this node tells it."""
        return in_widgets(str(error), "" if cls.SCHEMA is None else cls.SCHEMA.node_id)  # of the class as registered

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        own = cls.__dict__.get("execute")
        if isinstance(own, classmethod) and not hasattr(own.__func__, "__wrapped__"):
            cls.execute = classmethod(_plain(own.__func__))


def checked_name(name: str) -> bool | str:
    """True if a name can be a file's, otherwise what is wrong with it, as `validate_inputs` answers."""
    try:
        return bool(plain_name(name))
    except ValueError as error:
        return str(error)


def _plain(execute: Callable[..., io.NodeOutput]) -> Callable[..., io.NodeOutput]:
    @functools.wraps(execute)
    def plain(cls: type[Node], *args: Any, **inputs: Any) -> io.NodeOutput:
        try:
            return execute(cls, *args, **inputs)
        except FoundryError as error:
            message = cls.in_widgets(error)
        raise Failure(message)  # outside of `except`: what led to it is told, not shown

    return plain
