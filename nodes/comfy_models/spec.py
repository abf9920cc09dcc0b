"""What ComfyUI has loaded as data: the trainer's `FamilySpec` of it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ...trainer_core.errors import BaseModelError
from ...trainer_core.families.spec import Expert, FamilySpec, Part, SamplingDefaults
from . import controls, files, layers, sound, traits, video

if TYPE_CHECKING:
    from .loading import Linked
    from .schedule import ComfySchedule

FAMILY = "comfyui"

SPEC = FamilySpec(
    name=FAMILY,
    title="a model of ComfyUI",
    category="image",
    default_repo="",
    gated=False,
    vram_gb="as in ComfyUI",
    streams=(),
    bucket_divisor=16,
    default_timestep_type="sigmoid",
    sampling=SamplingDefaults(width=1024, height=1024, steps=20, guidance=4.0),
    parts=(
        Part("model", "denoiser", ""),
        Part(files.LOW_NOISE, "denoiser", "", optional=True),
        *(Part(name, "text_encoder", "", optional=True) for name in files.TEXT_ENCODERS),
        Part("vae", "vae", "", optional=True),
        Part(files.TRAINING_ADAPTER, "adapter", "", optional=True),
    ),
    targets={"attention": (), "attention_mlp": (), "all": ()},
)
"""What is known before a model is there."""


def spec_of(linked: Linked, schedule: ComfySchedule) -> FamilySpec:
    """A base's models as data.

    Raises:
        BaseModelError: if they cannot be trained.
    """
    model, audio_vae = linked.models[0].model, linked.audio_vae
    name = traits.name_of(model)
    if reason := traits.refusal(model):
        raise BaseModelError(f"{name}: no LoRA of this model can be trained here: {reason}")
    if other := next((one for one in linked.models[1:] if traits.name_of(one.model) != name), None):
        raise BaseModelError(f"the MODEL for high noise is {name}, that for low noise {traits.name_of(other.model)}")
    sound.check(model, audio_vae)
    flow = schedule.prediction == "flow"
    moves = traits.is_video(model)
    return replace(
        SPEC,
        name=f"{FAMILY}_{name}",
        title=f"{name} in ComfyUI",
        category="video" if moves else "edit" if controls.most(model) else "image",
        streams=(*traits.streams(model), *([] if audio_vae is None else [sound.stream(audio_vae)])),
        sample_rate=None if audio_vae is None else sound.sample_rate(audio_vae),
        bucket_divisor=traits.divisor(model),
        default_timestep_type="sigmoid" if flow else "linear",
        sampling=traits.sampling_defaults(model),
        targets=layers.targets(model.diffusion_model),
        conv_targets=layers.conv_targets(model.diffusion_model),
        max_controls=controls.most(model),
        text_sees_controls=controls.text_sees(model),
        own_controls=controls.have_own_size(model),
        frame_rate=traits.frame_rate(model),
        first_frame=video.always_goes_on(model),
        first_frame_chosen=video.can_go_on(model),
        first_frame_kept=video.keeps_first_frame(model),
        experts=_experts(model) if len(linked.models) > 1 else (Expert(),),
    )


def _experts(model: Any) -> tuple[Expert, Expert]:
    """Wan 2.2's two, and the time at which its authors change from one to the other."""
    boundary = 0.9 if getattr(model, "image_to_video", False) else 0.875
    return Expert("high_noise", low=boundary), Expert("low_noise", high=boundary)
