"""Preview Samples: the same prompts and seeds, drawn by the base alone and with the LoRA."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from comfy_api.latest import io, ui
from PIL import Image

from ..trainer_core.config import ModelConfig, SampleConfig, validated
from ..trainer_core.data.captions import prompt_with_trigger
from ..trainer_core.errors import ConfigError, RunError
from ..trainer_core.sampling import preview
from . import host, pictures, sockets
from .text_fields import read_lines
from .widgets import or_none, widget


class PreviewSamples(io.ComfyNode):
    """Draws prompts with the base and with the LoRA, side by side."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FoundryPreviewSamples",
            display_name="Preview Samples (Foundry)",
            category=sockets.CATEGORY,
            description="Draws each prompt twice with one seed: by the base on the left, with the LoRA on the right.",
            search_aliases=["sample lora", "test lora", "compare"],
            is_output_node=True,
            inputs=[
                sockets.Base.Input("base", tooltip="From Quantize Base."),
                sockets.Run.Input("run", optional=True, tooltip="A run, whose latest LoRA is drawn with."),
                io.LoraModel.Input("lora_model", optional=True, tooltip="A LoRA, instead of a run."),
                io.String.Input(
                    "prompts",
                    multiline=True,
                    default="",
                    tooltip="One prompt a line. With a run, `[trigger]` is replaced, and empty means its own prompts."
                    " Without a trigger it is taken out.",
                ),
                widget(SampleConfig, "width", empty=0, step=16),
                widget(SampleConfig, "height", empty=0, step=16),
                widget(SampleConfig, "seed"),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=-10.0,
                    max=10.0,
                    step=0.05,
                    tooltip="Strength of the LoRA; 1 is what was trained, less is weaker.",
                ),
                widget(SampleConfig, "steps", empty=0, advanced=True),
                widget(SampleConfig, "guidance", empty=-1.0, step=0.1, advanced=True),
                widget(SampleConfig, "walk_seed", advanced=True),
                widget(SampleConfig, "negative_prompt", advanced=True),
            ],
            outputs=[io.Image.Output("images", tooltip="One picture for each prompt: left the base, right the LoRA.")],
        )

    @classmethod
    def execute(
        cls,
        base: ModelConfig,
        prompts: str,
        width: int,
        height: int,
        seed: int,
        strength: float,
        steps: int,
        guidance: float,
        walk_seed: bool,
        negative_prompt: str,
        run: str | None = None,
        lora_model: dict[str, Any] | None = None,
    ) -> io.NodeOutput:
        lora, texts = _subject(run, lora_model, read_lines(prompts))
        sample = validated(
            SampleConfig,
            {
                "width": or_none(width, 0),
                "height": or_none(height, 0),
                "steps": or_none(steps, 0),
                "guidance": or_none(guidance, -1.0),
                "seed": seed,
                "walk_seed": walk_seed,
                "negative_prompt": negative_prompt,
            },
        )
        host.free_vram()
        bar = host.ProgressBar()
        rounds = 1 if lora is None else 2

        def drawn(adapter: Path | dict[str, Any] | None, earlier: int) -> list[Image.Image]:
            def progress(done: int, total: int) -> None:
                bar.update(earlier * total + done, rounds * total)

            return preview(
                base,
                texts,
                lora=adapter,
                strength=strength,
                sample=sample,
                progress=progress,
                should_stop=host.interrupted,
            )

        shown = drawn(None, 0)
        if lora is not None:
            shown = [pictures.side_by_side(*pair) for pair in zip(shown, drawn(lora, 1), strict=True)]
        images = pictures.to_batch(shown)
        return io.NodeOutput(images, ui=ui.PreviewImage(images, cls=cls))


def _subject(
    run: str | None, lora_model: dict[str, Any] | None, prompts: tuple[str, ...]
) -> tuple[Path | dict[str, Any] | None, list[str]]:
    """The LoRA to draw with, if any, and the prompts.

    Raises:
        ConfigError: if both a run and a LoRA are given, or no prompt.
        RunError: if the run has no checkpoint.
    """
    if run is not None and lora_model is not None:
        raise ConfigError("Preview Samples: both `run` and `lora_model` are linked; link one of them")
    lora: Path | dict[str, Any] | None = lora_model
    trigger = None
    if run is not None:
        folder = host.run_folder(run)
        checkpoint, job = folder.latest(), folder.job()
        if checkpoint is None:
            raise RunError(f"Preview Samples: the run {folder.name!r} holds no intact checkpoint")
        lora, trigger, prompts = checkpoint.lora, job.preview_trigger, prompts or job.sample.prompts
    if not prompts:
        raise ConfigError("Preview Samples: `prompts` is empty. Write one prompt a line")
    return lora, [prompt_with_trigger(prompt, trigger) for prompt in prompts]
