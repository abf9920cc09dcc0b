"""ComfyUI in this process: its library without a server, imported when the first test asks for it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ..pack import comfy_on_cpu


@pytest.fixture(scope="package", autouse=True)
def _comfy(comfyui: Path) -> None:
    comfy_on_cpu(comfyui)


@pytest.fixture
def training(_comfy: None) -> Iterator[None]:
    """ComfyUI chooses operations that have a gradient."""
    import comfy.model_management

    comfy.model_management.in_training = True
    yield
    comfy.model_management.in_training = False
