"""Configure LoRA: its size and where it sits."""

from __future__ import annotations

from comfy_api.latest import io

from ..trainer_core.config import AdapterConfig, validated
from . import host, sockets
from .widgets import or_none, widget

_NO_FILE = "[none]"


class ConfigureLoRA(io.ComfyNode):
    """Settings of the LoRA that is trained."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        start = "A LoRA to start from, of the same rank."
        return io.Schema(
            node_id="FoundryConfigureLoRA",
            display_name="Configure LoRA (Foundry)",
            category=sockets.CATEGORY,
            description="Settings of the LoRA that is trained: its size, its strength and the layers that it adapts.",
            search_aliases=["rank", "alpha", "network", "adapter"],
            inputs=[
                widget(AdapterConfig, "type"),
                widget(AdapterConfig, "rank"),
                widget(AdapterConfig, "alpha", empty=0.0, step=0.5),
                widget(AdapterConfig, "dropout"),
                widget(AdapterConfig, "targets"),
                io.Combo.Input("warm_start", options=[_NO_FILE, *host.lora_names()], tooltip=start, advanced=True),
            ],
            outputs=[sockets.LoraConfig.Output("lora", tooltip="The settings, for Train LoRA.")],
        )

    @classmethod
    def execute(
        cls,
        type: str,
        rank: int,
        alpha: float,
        dropout: float,
        targets: str,
        warm_start: str,
    ) -> io.NodeOutput:
        return io.NodeOutput(
            validated(
                AdapterConfig,
                {
                    "type": type,
                    "rank": rank,
                    "alpha": or_none(alpha, 0.0),
                    "dropout": dropout,
                    "targets": targets,
                    "warm_start": None if warm_start == _NO_FILE else str(host.lora_file(warm_start)),
                },
            )
        )
