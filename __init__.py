"""LoRA Foundry as ComfyUI sees it. Nothing is imported until ComfyUI asks for the nodes: tools may load this file."""

from __future__ import annotations

from typing import Any

WEB_DIRECTORY = "./web"


async def comfy_entrypoint() -> Any:
    """The extension that lists our nodes."""
    from .nodes import FoundryExtension

    return FoundryExtension()


__all__ = ["WEB_DIRECTORY", "comfy_entrypoint"]
