"""Training Options: everything about the training itself that Train LoRA leaves at its default."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from . import sockets
from .node import Node
from .setting import checked, refused
from .settings import TRAINING_OPTIONS
from .widgets import widgets


class TrainingOptions(Node):
    """Optimizer, noise levels, loss, averaging, validation."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FoundryTrainingOptions",
            display_name="Training Options (Foundry)",
            category=sockets.CATEGORY,
            description="Optimizer, learning-rate schedule, noise levels, loss, averaged weights and validation.",
            search_aliases=["optimizer", "scheduler", "timestep", "ema", "validation", "adamw", "prodigy"],
            inputs=widgets(TRAINING_OPTIONS),
            outputs=[sockets.TrainingOptions.Output("training_options", tooltip="The settings, for Train LoRA.")],
        )

    @classmethod
    def validate_inputs(cls, stage_boundaries: str | None = "", optimizer_options: str | None = "") -> bool | str:
        """Refuses texts that say nothing before anything runs."""
        shown = {"stage_boundaries": stage_boundaries, "optimizer_options": optimizer_options}
        return refused(TRAINING_OPTIONS, shown)

    @classmethod
    def execute(cls, **settings: Any) -> io.NodeOutput:
        return io.NodeOutput(checked(TRAINING_OPTIONS, settings))
