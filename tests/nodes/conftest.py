"""The parts of the pack that need no ComfyUI, under a package name of their own as ComfyUI would give one."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import pytest

from ..host.pack import module, registered


@pytest.fixture(scope="session")
def pack() -> Callable[[str], ModuleType]:
    """Imports a module of the pack, such as `nodes.training_view`, without the list of nodes, which needs ComfyUI."""
    root = registered()
    assert root.WEB_DIRECTORY == "./web"
    return lambda name: module(name) if name else root
