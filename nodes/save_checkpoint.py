"""Save Checkpoint: one step of a run as a LoRA file that ComfyUI's loaders list."""

from __future__ import annotations

from comfy_api.latest import io

from ..trainer_core.api import find_checkpoint
from ..trainer_core.errors import RunError
from . import host, sockets
from .lora_files import lora_stem, note
from .node import Node, checked_name
from .setting import NEEDS

LARGEST_STEP = 10_000_000
_NONE_IS_BEST = (
    ". Set validation_every in Training Options to the same steps as save_every, and validation_share above 0"
)


class SaveCheckpoint(Node):
    """Copies a run's LoRA into `models/loras`."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FoundrySaveCheckpoint",
            display_name="Save Checkpoint (Foundry)",
            category=sockets.CATEGORY,
            description="Saves the LoRA of one step of a run into models/loras, where every LoRA loader finds it.",
            search_aliases=["save lora", "export lora", "checkpoint"],
            is_output_node=True,
            inputs=[
                sockets.Run.Input("run", tooltip="From Train LoRA."),
                io.Combo.Input(
                    "which",
                    options=["latest", "best", "step"],
                    tooltip="The last step of the run; the one with the lowest validation loss (Training Options, "
                    "validation_every); or the one that `step` names.",
                ),
                io.Int.Input(
                    "step",
                    default=0,
                    min=0,
                    max=LARGEST_STEP,
                    extra_dict={NEEDS: {"which": ["step"]}},
                    tooltip="Which checkpoint to save, if `which` is `step`. The run keeps one every so many steps.",
                ),
                io.String.Input(
                    "name",
                    default="",
                    tooltip="Name of the file. Empty: the run's name and step. If another LoRA has it, a number is "
                    "added: no file is overwritten, because loaders keep what they once read.",
                ),
            ],
            outputs=[
                io.AnyType.Output("lora_name", tooltip="Its name, for `lora_name` of the stock LoRA loaders."),
                io.String.Output("path", tooltip="Where the file is."),
                io.AnyType.Output("lora_name_low_noise", tooltip=sockets.LOW_NOISE),
            ],
        )

    @classmethod
    def validate_inputs(cls, name: str | None) -> bool | str:
        """Refuses a bad name before anything runs."""
        return not name or checked_name(name.removesuffix(".safetensors"))

    @classmethod
    def execute(cls, run: str, which: str, step: int, name: str) -> io.NodeOutput:
        folder = host.run_folder(run)
        try:
            checkpoint = find_checkpoint(folder, step if which == "step" else which)
        except RunError as error:
            raise RunError(f"Save Checkpoint: {error}{_NONE_IS_BEST if which == 'best' else ''}") from None
        named = name.strip().removesuffix(".safetensors") or lora_stem(folder.name, checkpoint.step)
        files = zip(checkpoint.loras, checkpoint.endings, strict=True)
        first, *others = exported = [host.export_to_models(file, f"{named}{ending}") for file, ending in files]
        low_noise = others[0].name if others else host.no_output()
        lines = [f"saved step {checkpoint.step} as {', '.join(one.name for one in exported)}"]
        lines += [f"⚠ {told}" for one in exported for told in note(one.older)]
        return io.NodeOutput(first.name, str(first.path), low_noise, ui=host.shown_text("\n".join(lines)))
