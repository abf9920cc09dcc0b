"""Save Checkpoint: one step of a run as a LoRA file that ComfyUI's loaders list."""

from __future__ import annotations

import contextlib

from comfy_api.latest import io

from ..trainer_core.api import Checkpoint, RunFolder, find_checkpoint
from ..trainer_core.errors import RunError
from . import host, sockets
from .lora_files import Exported, lora_stem, note
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
        first, *others = exported = saved_to_models(folder.name, checkpoint, name)
        low_noise = others[0].name if others else host.no_output()
        lines = [f"saved step {checkpoint.step} as {', '.join(one.name for one in exported)}"]
        lines += [f"⚠ {told}" for one in exported for told in note(one.older)]
        return io.NodeOutput(first.name, str(first.path), low_noise, ui=host.shown_text("\n".join(lines)))


def saved_to_models(run: str, checkpoint: Checkpoint, name: str) -> list[Exported]:
    """The LoRA or LoRAs of a checkpoint in `models/loras`, under the name that a person chose, if any."""
    asked = name.strip().removesuffix(".safetensors")
    named = asked or lora_stem(run, checkpoint.step)
    files = zip(checkpoint.loras, checkpoint.endings, strict=True)
    return [host.export_to_models(file, f"{named}{ending}", bool(asked)) for file, ending in files]


def chosen_name(run: RunFolder, step: int) -> str | None:
    """What a Save Checkpoint behind the executing node will call a step of its run, if a person chose that.

    Known before it is saved, Train LoRA can use the name too, so that lists show the LoRA once.
    """
    for inputs in host.inputs_behind("FoundrySaveCheckpoint", 0):
        name, which = inputs["name"], inputs["which"]
        wanted = inputs["step"] if which == "step" else which
        if not isinstance(name, str) or not isinstance(wanted, str | int):  # what comes over a link is not known yet
            continue
        name = name.strip().removesuffix(".safetensors")
        with contextlib.suppress(RunError):
            if checked_name(name) is True and find_checkpoint(run, wanted).step == step:
                return name
    return None
