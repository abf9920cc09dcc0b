"""Load Run: a checkpoint of an earlier run, its base, and how its previews are drawn, for ComfyUI's own nodes."""

from __future__ import annotations

from comfy_api.latest import io

from ..trainer_core.api import RunFolder, drawing_settings, find_checkpoint, find_lora, read_lora_tensors, run_called
from . import host, sockets
from .comfy_models.links import linked_again
from .node import Node, checked_name
from .save_checkpoint import LARGEST_STEP


class LoadRun(Node):
    """Opens a run by its name."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FoundryLoadRun",
            display_name="Load Run (Foundry)",
            category=sockets.CATEGORY,
            description="Opens a checkpoint of an earlier run by name and step, with the base that it was trained on.",
            search_aliases=["load lora run", "open run", "load checkpoint of a run"],
            inputs=[
                io.String.Input("name", default="", tooltip="The run's name, as the sidebar lists it."),
                io.Int.Input(
                    "step",
                    default=0,
                    min=0,
                    max=LARGEST_STEP,
                    tooltip="Which of its checkpoints. 0: the latest.",
                ),
            ],
            outputs=[
                sockets.Run.Output("run", tooltip="The run, for Save Checkpoint and Preview Samples."),
                sockets.Base.Output("base", tooltip="The base that it was trained on."),
                io.LoraModel.Output("lora_model", tooltip="The LoRA of that step, for the stock node Load LoRA Model."),
                io.Int.Output("width", tooltip="Of its previews, in pixels."),
                io.Int.Output("height", tooltip="Of its previews, in pixels."),
                io.Int.Output("steps", tooltip="Sampling steps of its previews."),
                io.Float.Output("cfg", tooltip="For KSampler: its previews' guidance; 1 where that is distilled."),
                io.Float.Output("guidance", tooltip="For FluxGuidance, where guidance is distilled."),
                io.LoraModel.Output("lora_model_low_noise", tooltip=sockets.LOW_NOISE),
            ],
        )

    @classmethod
    def validate_inputs(cls, name: str | None) -> bool | str:
        """Refuses a bad name before anything runs."""
        return name is None or checked_name(name)

    @classmethod
    def fingerprint_inputs(cls, name: str, step: int) -> str:
        """Changes when the latest checkpoint does."""
        checkpoint = find_checkpoint(_opened(name), step or "latest")
        return f"{checkpoint.lora} {checkpoint.lora.stat().st_mtime_ns}"

    @classmethod
    def execute(cls, name: str, step: int) -> io.NodeOutput:
        run = _opened(name)
        checkpoint = find_checkpoint(run, step or "latest")
        lora = find_lora(str(run.path), host.runs_root(), checkpoint.step)
        host.roots().check_model(lora.model)  # its data may lie anywhere: nothing of it is read
        base = linked_again(lora.model)
        drawing, distilled = drawing_settings(base, lora.sample)
        first, *others = (read_lora_tensors(path) for path in checkpoint.loras)
        return io.NodeOutput(
            str(run.path),
            base,
            first,
            drawing.width,
            drawing.height,
            drawing.steps,
            1.0 if distilled else drawing.guidance,
            drawing.guidance,
            others[0] if others else host.no_output(),
        )


def _opened(name: str) -> RunFolder:
    return run_called(name.strip(), host.runs_root())
