"""Sample Settings: how the previews of a training are drawn."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from . import host, sockets
from .settings import SAMPLE_SETTINGS, checked
from .widgets import widgets


class SampleSettings(io.ComfyNode):
    """Size, steps, guidance and seeds of previews. What they show, and when, is said on Train LoRA."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FoundrySampleSettings",
            display_name="Sample Settings (Foundry)",
            category=sockets.CATEGORY,
            description="How the previews of a training are drawn: size, steps, guidance, seeds.",
            search_aliases=["preview size", "sample size", "negative prompt"],
            inputs=widgets(SAMPLE_SETTINGS),
            outputs=[sockets.SampleSettings.Output("sample_settings", tooltip="The settings, for Train LoRA.")],
        )

    @classmethod
    def execute(cls, **settings: Any) -> io.NodeOutput:
        found = checked(SAMPLE_SETTINGS, settings)
        sample = found["sample"]
        sample["controls"] = [[str(host.input_file(name, "controls")) for name in one] for one in sample["controls"]]
        return io.NodeOutput(found)
