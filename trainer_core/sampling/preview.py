"""Pictures and videos of a base, with or without a LoRA, from files to images."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config import ModelConfig, SampleConfig
from ..errors import ConfigError
from ..reading import is_file
from .sampler import SamplerSettings, draw, embedded

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor, nn

    from ..adapters.deltas import Deltas
    from ..data.cache import TensorCache
    from ..families.base import Base
    from ..families.conditioning import Conditioning, Streams
    from ..families.spec import FamilySpec


@dataclass(frozen=True)
class Drawn:
    """What was drawn for some prompts."""

    frames: list[list[Image.Image]]
    """Of each prompt; one where it is a picture."""
    rate: float | None
    """Frames per second; None of pictures."""

    @property
    def pictures(self) -> list[Image.Image]:
        """One for each prompt: of videos their first frames."""
        return [frames[0] for frames in self.frames]


def preview(model: ModelConfig, prompts: Sequence[str], **options: Any) -> list[Image.Image]:
    """`preview_frames` as one picture per prompt."""
    return preview_frames(model, prompts, **options).pictures


def preview_frames(
    model: ModelConfig,
    prompts: Sequence[str],
    *,
    lora: Path | dict[str, Tensor] | None = None,
    strength: float = 1.0,
    sample: SampleConfig | None = None,
    controls: Sequence[Sequence[Image.Image]] | None = None,
    progress: Callable[[int, int], None] | None = None,
    cache: TensorCache | None = None,
) -> Drawn:
    """Draws one picture or video per prompt with a base and, if given, a LoRA (a file, or tensors in ComfyUI's names).

    Args:
        controls: control images of each prompt; if not told, those that `sample` names.
        progress: hears, before each step, how many pictures of how many are drawn; ends the drawing by raising.
        cache: where quantized weights are kept.

    Raises:
        FoundryError: if base or LoRA cannot be loaded or do not fit each other, or control images do not fit the base.
    """
    import torch

    from ..adapters.applied import applied_text
    from ..adapters.key_names import split_text
    from ..adapters.parsing import parse
    from ..families.registry import open_base
    from .animation import frames_of
    from .controls import check_count, encoded, of_settings, of_text, pixels_of

    sample = sample or SampleConfig()
    with torch.inference_mode(False), closing(open_base(model)) as base:
        base.packed_cache = cache
        settings = SamplerSettings.of(sample, base)
        if controls is None:
            controls = [one.pictures() for one in of_settings(sample, len(prompts))]
        check_count(controls, base.spec, "control images")
        split = {name: split_text(parse(tensors)) for name, tensors in _of_experts(lora, base.spec).items()}
        own, texts_own = {name: one for name, (one, _) in split.items()}, next((one for _, one in split.values()), {})
        pixels = pixels_of(base, controls, settings)
        base.load_text_encoders()
        with applied_text(base, texts_own, strength):
            texts = embedded(base, prompts, sample.negative_prompt, of_text(pixels, base.spec))
        base.free_text_encoders()
        seen = encoded(base, pixels, settings)
        prompted = [
            (replace(one, prompt=prompt, text=text), replace(one, prompt=sample.negative_prompt, text=negative))
            for prompt, (text, negative), one in zip(prompts, texts, seen, strict=True)
        ]
        latents = _latents(base, own, strength, prompted, sample, settings, progress)
        base.load_vae()
        frames = [frames_of(base.decode_latents(x)[0]) for x in latents]
        base.free_vae()
    if progress:
        progress(len(prompts), len(prompts))
    return Drawn(frames, base.spec.frame_rate)


def _latents(
    base: Base,
    loras: Mapping[str, Deltas],
    strength: float,
    prompts: Sequence[tuple[Conditioning, Conditioning]],
    sample: SampleConfig,
    settings: SamplerSettings,
    progress: Callable[[int, int], None] | None,
) -> list[Streams]:
    """Latents of one picture for each (prompt, negative prompt); the denoisers are out of memory when it returns.

    Args:
        loras: of each expert, by its name.
    """
    from ..adapters.applied import applied
    from ..adapters.parsing import for_modules

    spec = base.spec
    denoisers = {one.name: base.load_denoiser(one.name) for one in spec.experts}

    def denoiser_at(t: float) -> nn.Module:
        return denoisers[spec.experts[spec.expert_at(t)].name]

    latents = []
    with ExitStack() as stack:
        for name, lora in loras.items():
            stack.enter_context(applied(denoisers[name], for_modules(lora, denoisers[name], base), strength))
        for k, (prompt, negative) in enumerate(prompts):
            on_step = partial(progress, k, len(prompts)) if progress else None
            seed = sample.seed + k * sample.walk_seed
            latents.append(draw(base, denoiser_at, [prompt], [seed], settings, negative, on_step))
    return latents


def _of_experts(lora: Path | dict[str, Tensor] | None, spec: FamilySpec) -> dict[str, dict[str, Tensor]]:
    """The LoRA's tensors for each expert, by its name; empty if there is no LoRA.

    Raises:
        AdapterError: if a file cannot be read.
        ConfigError: if the family has several experts, and the file is not one of a run's, which lie side by side.
    """
    from ..safetensors_file import read_tensors

    first, *others = (one.name for one in spec.experts)
    if lora is None:
        return {}
    if not others:
        return {first: read_tensors(lora) if isinstance(lora, Path) else lora}
    files = (
        {name: lora.with_name(f"lora_{name}.safetensors") for name in (first, *others)}
        if isinstance(lora, Path)
        else {}
    )
    if not files or not all(is_file(file) for file in files.values()):
        raise ConfigError(
            f"{spec.title} has a LoRA for each of {first}, {', '.join(others)}: name the run, which holds all"
        )
    return {name: read_tensors(file) for name, file in files.items()}
