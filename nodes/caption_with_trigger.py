"""Caption with Trigger: the word that calls what is learned, and how captions vary."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..trainer_core.api import inspect_dataset
from ..trainer_core.config import DatasetConfig
from . import host, sockets
from .node import Node
from .setting import values
from .settings import CAPTION_WITH_TRIGGER
from .widgets import widgets

_SHOWN = 6


class CaptionWithTrigger(Node):
    """Adds a trigger and caption policies to a DATASET; the node shows the captions as they will be read."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FoundryCaptionWithTrigger",
            display_name="Caption with Trigger (Foundry)",
            category=sockets.CATEGORY,
            description="Puts a trigger word into the captions, and shows them as the text encoder will read them.",
            search_aliases=["trigger word", "captions", "caption dropout"],
            is_output_node=True,
            inputs=[
                sockets.Dataset.Input("dataset", tooltip="From Load Dataset."),
                *widgets(CAPTION_WITH_TRIGGER),
            ],
            outputs=[
                sockets.Dataset.Output("dataset", tooltip="The data set with its captions, for Train LoRA."),
                io.String.Output("captions", tooltip="The exact texts that the text encoder will read, one a line."),
            ],
        )

    @classmethod
    def execute(cls, dataset: DatasetConfig, **settings: Any) -> io.NodeOutput:
        captioned = dataset.but(**values(CAPTION_WITH_TRIGGER, settings)["dataset"])
        summary = inspect_dataset(captioned)
        texts = [" ".join(caption.split()) for _, caption in summary.captions]
        # bullets, because pages with Vue nodes run the lines together
        lines = [f"• {text}" for text in texts[:_SHOWN]]
        if summary.placeholders and not captioned.trigger:
            lines.insert(0, f"⚠ trigger is empty, so [trigger] is taken out of {summary.placeholders} captions")
        if len(texts) > _SHOWN:
            lines.append(f"… and {len(texts) - _SHOWN} more")
        return io.NodeOutput(captioned, "\n".join(texts), ui=host.shown_text("\n".join(lines)))
