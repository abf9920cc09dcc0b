"""ComfyUI in this process: its library without a server, imported when the first test asks for it."""

from __future__ import annotations

from pathlib import Path

import pytest

from ..pack import comfy_on_cpu


@pytest.fixture(scope="package", autouse=True)
def _comfy(comfyui: Path) -> None:
    comfy_on_cpu(comfyui)
