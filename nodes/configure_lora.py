"""Configure LoRA: its size and where it sits."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..trainer_core.config import AdapterConfig, description, validated
from . import host, sockets
from .node import Node
from .setting import advanced, main, values
from .settings import CONFIGURE_LORA
from .widgets import widgets

_NO_FILE = "[none]"


class ConfigureLoRA(Node):
    """Settings of the LoRA that is trained."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        start = description(AdapterConfig, "warm_start")
        return io.Schema(
            node_id="FoundryConfigureLoRA",
            display_name="Configure LoRA (Foundry)",
            category=sockets.CATEGORY,
            description="Settings of the LoRA that is trained: its size, its strength and the layers that it adapts.",
            search_aliases=["rank", "alpha", "network", "adapter"],
            inputs=[
                *widgets(main(CONFIGURE_LORA)),
                io.Combo.Input(
                    "warm_start", options=[_NO_FILE, *host.model_names("loras")], tooltip=start, advanced=True
                ),
                *widgets(advanced(CONFIGURE_LORA)),
            ],
            outputs=[sockets.LoraConfig.Output("lora", tooltip="The settings, for Train LoRA.")],
        )

    @classmethod
    def execute(cls, warm_start: str, **settings: Any) -> io.NodeOutput:
        start = None if warm_start == _NO_FILE else str(host.model_file("loras", warm_start))
        fields = values(CONFIGURE_LORA, settings)["adapter"]
        return io.NodeOutput(validated(AdapterConfig, {**fields, "warm_start": start}))
