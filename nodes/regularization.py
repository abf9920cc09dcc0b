"""Regularization: what keeps the LoRA from changing more than it should."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from . import sockets
from .node import Node
from .setting import checked, refused
from .settings import REGULARIZATION
from .widgets import widgets


class Regularization(Node):
    """Preservation of what the base predicts, guidance while training, and the share of regularization sets."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FoundryRegularization",
            display_name="Regularization (Foundry)",
            category=sockets.CATEGORY,
            description="Keeps the LoRA from changing more than it should, and makes it learn harder.",
            search_aliases=["dop", "preservation", "prior preservation", "differential guidance", "leak"],
            inputs=widgets(REGULARIZATION),
            outputs=[sockets.Regularization.Output("regularization", tooltip="The settings, for Train LoRA.")],
        )

    @classmethod
    def validate_inputs(
        cls, output_preservation: bool | None, output_preservation_class: str | None = ""
    ) -> bool | str:
        """Refuses a missing class word before anything runs."""
        shown = {
            "output_preservation": output_preservation,
            "output_preservation_class": output_preservation_class,
        }
        return refused(REGULARIZATION, shown)

    @classmethod
    def execute(cls, **settings: Any) -> io.NodeOutput:
        return io.NodeOutput(checked(REGULARIZATION, settings))
