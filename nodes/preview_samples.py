"""Preview Samples: the same prompts and seeds, drawn by the base alone and with the LoRA."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from comfy_api.latest import io, ui
from PIL import Image

from ..trainer_core.api import FoundLora, cache_of, find_lora, prompt_with_trigger, spec_of
from ..trainer_core.api import sample_frames as draw
from ..trainer_core.config import ModelConfig, SampleConfig, validated
from ..trainer_core.errors import ConfigError, FoundryError
from . import host, pictures, sockets
from .node import Node
from .setting import NOT_LINKED
from .text_fields import read_lines
from .widgets import or_none, widget

_TWO_LORAS = "Preview Samples: both `run` and `lora_model` are linked; link one of them"
_NO_PROMPTS = "Preview Samples: `prompts` is empty. Write one prompt a line"


class PreviewSamples(Node):
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
                sockets.Base.Input("base", tooltip="From Base Model."),
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
                io.Image.Input(
                    "control",
                    optional=True,
                    tooltip="For edit models: the control image of all prompts, or a batch with one for each. Not "
                    "linked: with a run, its own or those of its first training images.",
                ),
            ],
            outputs=[
                io.Image.Output(
                    "images",
                    tooltip="One picture for each prompt, of a video model all frames: left the base, right the LoRA.",
                )
            ],
        )

    @classmethod
    def validate_inputs(cls, prompts: str | None, run: Any = NOT_LINKED, lora_model: Any = NOT_LINKED) -> bool | str:
        """Refuses what cannot be drawn before anything runs."""
        if run is not NOT_LINKED and lora_model is not NOT_LINKED:
            return _TWO_LORAS
        return True if run is not NOT_LINKED or prompts is None or read_lines(prompts) else _NO_PROMPTS

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
        control: torch.Tensor | None = None,
    ) -> io.NodeOutput:
        if run is not None and lora_model is not None:
            raise ConfigError(_TWO_LORAS)
        of_run = None if run is None else find_lora(str(host.run_folder(run).path), host.runs_root())
        lora, trigger = (of_run.path, of_run.trigger) if of_run else (lora_model, None)
        own = read_lines(prompts)
        texts = [prompt_with_trigger(one, trigger) for one in own or (of_run.sample.prompts if of_run else ())]
        if not texts:
            raise ConfigError(_NO_PROMPTS)
        if control is not None:
            controls = _linked(control, len(texts))
        else:
            controls = _of_run(of_run, base, len(texts), own_prompts=not own)
        sample = validated(
            SampleConfig,
            {
                "width": or_none(width, 0),
                "height": or_none(height, 0),
                "steps": or_none(steps, 0),
                "guidance": or_none(guidance, -1.0),
                "seed": seed,
                "walk_seed": walk_seed,
                "negative_prompt": prompt_with_trigger(negative_prompt, trigger),
            },
        )
        host.free_vram()
        host.progress_text("loading the base")
        bar = host.ProgressBar()
        rounds = 1 if lora is None else 2

        def drawn(adapter: Path | dict[str, Any] | None, earlier: int) -> list[list[Image.Image]]:
            told = -1

            def progress(done: int, total: int) -> None:
                nonlocal told
                if told < done < total:
                    told = done
                    by = "with the LoRA" if adapter is not None else "by the base"
                    host.progress_text(f"drawing {by}: sample {done + 1} of {total}")
                bar.update(earlier * total + done, rounds * total)

            return draw(
                base,
                texts,
                lora=adapter,
                strength=strength,
                settings=sample,
                controls=controls,
                progress=progress,
                cache=cache_of(host.runs_root()),
            ).frames

        shown = drawn(None, 0)
        if lora is not None:
            pairs = zip(shown, drawn(lora, 1), strict=True)
            shown = [list(map(pictures.side_by_side, plain, adapted)) for plain, adapted in pairs]
        images = pictures.to_batch([frame for frames in shown for frame in frames])
        labels = [{"prompt": text, "seed": seed + k * walk_seed} for k, text in enumerate(texts)]
        told = [f"left: the base, right: {_named(of_run, strength)}" if lora else "the base"]
        told += [f"{k}. {text or '(no prompt)'}" for k, text in enumerate(texts, 1)]
        preview = ui.PreviewImage(images, cls=cls).as_dict()
        return io.NodeOutput(images, ui={**preview, "labels": labels, **host.shown_text("\n".join(told))})


def _named(lora: FoundLora | None, strength: float) -> str:
    """What is drawn on the right."""
    of = f"with {lora.path.parents[2].name} at step {int(lora.path.parent.name[5:])}" if lora else "with the LoRA"
    return of if strength == 1 else f"{of}, strength {strength:g}"


def _linked(control: torch.Tensor, count: int) -> list[tuple[Image.Image, ...]]:
    """The control image of each of so many prompts.

    Raises:
        ConfigError: if there are several, and not one for each.
    """
    images: list[tuple[Image.Image, ...]] = [(image,) for image in pictures.from_batches([control])]
    if len(images) == 1:
        return images * count
    if len(images) != count:
        raise ConfigError(
            f"Preview Samples: `control` holds {len(images)} images for {count} prompts; link one for all, or one for "
            "each"
        )
    return images


def _of_run(lora: FoundLora | None, base: ModelConfig, count: int, own_prompts: bool) -> list[tuple[Image.Image, ...]]:
    """The control images that a run's own previews are drawn with, where the base takes any.

    Raises:
        ConfigError: if they cannot be used any more.
    """
    if lora is None or lora.job is None or not spec_of(base).max_given:
        return [()] * count
    try:
        host.checked_job(lora.job)
        return [one.pictures() for one in replace(lora, model=base).controls(count, own_prompts=own_prompts)]
    except FoundryError as error:
        raise ConfigError(
            f"Preview Samples: the run's control images cannot be used, link `control` instead: {error}"
        ) from None
