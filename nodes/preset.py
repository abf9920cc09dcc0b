"""Preset: settings to start from, for what is learned and for the GPU's memory; the page can fill them in too."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from comfy_api.latest import io

from ..trainer_core import api
from ..trainer_core.config import AdapterConfig, ModelConfig, validated
from ..trainer_core.errors import ConfigError, FoundryError
from . import host, sockets
from .base_files import EMBEDDED
from .base_model import AUTO, source_of
from .comfy_models.spec import FAMILY
from .node import Node
from .preset_view import Filled, filled, told, training_options
from .text_fields import WHOLE_NUMBERS

_SIZES = [f"{size} GB" for size in api.VRAM_GB]
_UNKNOWN = "what the base is shows when it is loaded; these are settings for one of {0} pixels"


class Preset(Node):
    """Gives out the values of a preset; where a link is left out, the node's own widget says."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        subject = "What the LoRA is to learn: a character (a person or a figure), a style, or an object."
        return io.Schema(
            node_id="FoundryPreset",
            display_name="Preset (Foundry)",
            category=sockets.CATEGORY,
            description=(
                "Settings to start from, for a character, a style or an object and for the memory of the GPU. Each "
                "output goes to the input of the same name; what is not linked stays as its own node says."
            ),
            search_aliases=["preset", "recipe", "template", "character", "style", "object", "vram"],
            inputs=[
                sockets.Base.Input("base", tooltip="From Base Model: the preset is made for its family."),
                io.Combo.Input("subject", options=list(api.SUBJECTS), default="character", tooltip=subject),
                io.Combo.Input("vram", options=_SIZES, default="12 GB", tooltip="Memory of the GPU."),
            ],
            outputs=[
                sockets.LoraConfig.Output("lora", tooltip="For Train LoRA, in place of Configure LoRA."),
                sockets.TrainingOptions.Output(
                    "training_options", tooltip="For Train LoRA, in place of Training Options."
                ),
                io.Int.Output("steps", tooltip="For Train LoRA."),
                io.Float.Output("learning_rate", tooltip="For Train LoRA."),
                io.Int.Output("batch_size", tooltip="For Train LoRA."),
                io.Int.Output("gradient_accumulation", tooltip="For Train LoRA."),
                io.String.Output("resolutions", tooltip="For Load Dataset."),
            ],
        )

    @classmethod
    def execute(cls, base: ModelConfig, subject: Any, vram: str) -> io.NodeOutput:
        spec, size = _spec(base), float(vram.split()[0])
        changes = api.preset(subject, size, spec)
        parts = api.by_part(changes)
        train = parts["train"]
        return io.NodeOutput(
            validated(AdapterConfig, parts["adapter"]),
            training_options(train),
            train["steps"],
            train["learning_rate"],
            train["batch_size"],
            train["gradient_accumulation"],
            WHOLE_NUMBERS.show(parts["dataset"]["resolutions"]),
            ui=host.shown_text(told(changes, api.preset_warning(size, spec))),
        )


def fill_in(settings: Mapping[str, Any]) -> list[Filled]:
    """The values of the other nodes' widgets for what is to be learned, each with its reason.

    Args:
        settings: `subject` and `vram` as the node's widgets show them; `base`, the values of Base Model's widgets
            `family`, `source` and `folder_or_repo`. For a MODEL that is linked, `source` is the file of its loader
            (`checkpoints/NAME` or `diffusion_models/NAME`), or None if it has none.

    Returns:
        `node` is a node's type, as `FoundryTrainLoRA`. What the user should know beside that comes first, as values of
        the preset's own node.

    Raises:
        ConfigError: for settings that there are not.
        FoundryError: if the base cannot be read.
    """
    subject, vram = settings.get("subject"), settings.get("vram")
    if subject not in api.SUBJECTS:
        raise ConfigError(f"subject: there are: {', '.join(api.SUBJECTS)}")
    if vram not in _SIZES:
        raise ConfigError(f"vram: there are: {', '.join(_SIZES)}")
    spec, known = _spec_before_the_run(settings.get("base") or {})
    size = float(str(vram).split()[0])
    notes = [] if known else [_UNKNOWN.format(spec.sampling.width)]
    if known and (warning := api.preset_warning(size, spec)):
        notes.append(warning)
    others = [change for one in api.SUBJECTS for change in api.preset(one, size, spec)]
    return [
        *(Filled(node="FoundryPreset", widget="vram", value=vram, why=note) for note in notes),
        *filled(api.preset(subject, size, spec), others),
    ]


def _spec(base: ModelConfig) -> api.FamilySpec:
    """The family of a base. The embedded one is small, whatever is known of its family."""
    spec = api.spec_of(base)
    if base.source != EMBEDDED:
        return spec
    return replace(spec, title="the embedded base", vram_gb="1 GB", sampling=api.open_base(base).sampling)


def _spec_before_the_run(base: Any) -> tuple[api.FamilySpec, bool]:
    """The family of the base that a node's widgets name, and whether it is known before the base is loaded."""
    if not isinstance(base, Mapping) or not all(isinstance(one, str | None) for one in base.values()):
        raise ConfigError("base: send the values of Base Model's widgets")
    family, source, other = (base.get(name) for name in ("family", "source", "folder_or_repo"))
    if source is None:
        return api.family_spec(FAMILY), False
    model = validated(ModelConfig, {"family": family or AUTO, "source": source_of(source, other or "", None)})
    try:
        model = api.with_family(model, download=False)
    except FoundryError:
        if model.family != AUTO:
            raise
        return api.family_spec(FAMILY), False  # a repository that is not here yet
    if model.family == FAMILY:  # to look closer, ComfyUI would have to load it
        return api.family_spec(FAMILY), False
    return _spec(model), True
