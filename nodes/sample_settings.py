"""Sample Settings: how the previews of a training are drawn."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..trainer_core.config import SampleConfig, description
from ..trainer_core.errors import ConfigError
from . import host, sockets
from .node import Node
from .setting import checked
from .settings import SAMPLE_SETTINGS
from .text_fields import FILES
from .widgets import widgets

DEFAULT = "default"


class SampleSettings(Node):
    """Size, steps, guidance and seeds of previews. What they show, and when, is said on Train LoRA."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FoundrySampleSettings",
            display_name="Sample Settings (Foundry)",
            category=sockets.CATEGORY,
            description="How the previews of a training are drawn: size, steps, guidance, seeds.",
            search_aliases=["preview size", "sample size", "negative prompt"],
            inputs=[
                *widgets(SAMPLE_SETTINGS),
                # optional, and so the last: graphs that were saved before there were these have no value for them
                *(_names(field, names) for field, names in host.sampler_names().items()),
            ],
            outputs=[sockets.SampleSettings.Output("sample_settings", tooltip="The settings, for Train LoRA.")],
        )

    @classmethod
    def validate_inputs(cls, controls: str | None = "") -> bool | str:
        """Refuses control images that are not there before anything runs."""
        for name in () if controls is None else (file for files in FILES.read(controls) for file in files):
            try:
                if not host.input_file(name, "controls").is_file():
                    return f"Sample Settings: controls: {name}: there is no such file"
            except ConfigError as error:
                return str(error)
        return True

    @classmethod
    def execute(cls, sampler: str = DEFAULT, scheduler: str = DEFAULT, **settings: Any) -> io.NodeOutput:
        named = {"sampler": sampler, "scheduler": scheduler}
        found = checked(SAMPLE_SETTINGS, settings)
        sample = found["sample"]
        sample |= {field: None if name == DEFAULT else name for field, name in named.items()}
        sample["controls"] = [[str(host.input_file(name, "controls")) for name in one] for one in sample["controls"]]
        return io.NodeOutput(found)


def _names(field: str, names: list[str]) -> io.Input:
    options, tooltip = [DEFAULT, *names], description(SampleConfig, field)
    return io.Combo.Input(field, options=options, default=DEFAULT, tooltip=tooltip, optional=True, advanced=True)
