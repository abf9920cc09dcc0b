"""Choose Checkpoint: measures which checkpoint of a run is best. The page queues it; no graph needs it."""

from __future__ import annotations

import uuid

from comfy_api.latest import io

from ..trainer_core.api import choose_checkpoint, run_called
from ..trainer_core.config import ModelConfig
from . import host, sockets
from .comfy_models.links import linked_again
from .node import Node

NODE_ID = "FoundryChooseCheckpoint"


class ChooseCheckpoint(Node):
    """Measures a run's checkpoints, where ComfyUI's executor gives it the device."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id=NODE_ID,
            display_name="Choose Checkpoint (Foundry)",
            category=sockets.CATEGORY,
            description="Measures the checkpoints of a run and says which is best, and why; the page queues it.",
            is_output_node=True,
            is_dev_only=True,
            not_idempotent=True,
            inputs=[io.String.Input("run", tooltip="Name of the run.")],
            outputs=[],
        )

    @classmethod
    def fingerprint_inputs(cls, **_: object) -> str:
        """Never the same: checkpoints may have come. What was measured before is known."""
        return uuid.uuid4().hex

    @classmethod
    def execute(cls, run: str) -> io.NodeOutput:
        folder = run_called(run, host.runs_root())
        model = host.checked_job(folder.job()).model
        if model.device == ModelConfig().device:
            model = model.but(device=host.device())
        host.free_vram()
        bar = host.ProgressBar()

        def progress(what: str, done: int, total: int) -> None:
            bar.update(done, total)
            host.progress_text(f"{what} {done}/{total}" if total > 1 else what)

        choice = choose_checkpoint(folder, model=linked_again(model), progress=progress)
        host.send_to_pages("run", {"name": run, "choice": True})
        found = [*choice.reasons, *(choice.alarm.reasons if choice.alarm else ()), *choice.notes]
        return io.NodeOutput(ui=host.shown_text("\n".join(found)))
