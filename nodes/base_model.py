"""Base Model: which base model is trained on, and how precisely it is held."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from comfy_api.latest import io

from ..trainer_core.api import family_names, open_base
from ..trainer_core.config import ModelConfig, description, validated
from ..trainer_core.errors import BaseModelError, ConfigError, FoundryError
from . import host, sockets
from .base_files import EMBEDDED, FROM_SOURCE, NO_ADAPTER, OPTIONAL, PARTS, file_of, named_source, source_names
from .comfy_models.files import TRAINING_ADAPTER
from .comfy_models.links import linked_model
from .comfy_models.spec import FAMILY
from .node import Node
from .setting import NEEDS, NOT_LINKED, UNLINKED, values
from .settings import BASE_MODEL, QUANTIZATION, QUANTIZED
from .widgets import widgets

AUTO = ModelConfig().family
_NO_MODEL = {UNLINKED: ["model"]}
_SETTINGS = (*BASE_MODEL, *QUANTIZATION)
_SOURCE = (
    "Where the weights come from: `embedded` (the tiny base that ships with LoRA Foundry and trains on any computer), "
    "or a file of ComfyUI's models folders. For a folder or a repository use folder_or_repo."
)
_FAMILY = "Family of the base model; auto finds it by the source."
_WHICH = {"2": "second", "3": "third", "4": "fourth"}
_FOLDER = (
    "In place of source: a folder in diffusers layout (below models/diffusers, or a whole path), or a Hugging Face "
    "repository id (downloaded when the job starts). Empty: source."
)
_MODEL = (
    "In place of source: a MODEL of any loader, with its clip and vae. It is trained as it is: in its precision, with "
    "the shift, LoRAs and patches that other nodes gave it. With a family by name only its file is read."
)
_ADAPTER = (
    "For turbo models that ComfyUI has loaded: a LoRA that is on while training and off while drawing, and never part "
    "of the result, such as the training adapter of Z-Image Turbo. Without it such models lose their few steps."
)
_CLIP = "The CLIP that the model is sampled with, from its loader."
_VAE = "The VAE that the model is sampled with, from its loader."
_LOW_NOISE = "For models with two experts (Wan 2.2): the MODEL for low noise, where `model` is the one for high noise."
_AUDIO_VAE = (
    "For models that make sound too (LTX-2): the VAE of Load LTXV Audio VAE. Without it they learn no sound of the "
    "clips."
)


class BaseModel(Node):
    """The base model. Of a file only the header is read here: training and previews open it when they run."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        families = [AUTO, *family_names()]
        return io.Schema(
            node_id="FoundryQuantizeBase",
            display_name="Base Model (Foundry)",
            category=sockets.CATEGORY,
            description="Chooses the base model that the LoRA is trained for, and the precision that it is held in.",
            search_aliases=[
                "base model",
                "quantize base",
                "quantize",
                "quantization",
                "checkpoint",
                "load model",
                "load checkpoint",
                "diffusion model",
                "flux",
                "sdxl",
                "precision",
            ],
            is_output_node=True,  # so that it can be run alone, to see what is found of linked models
            inputs=[
                io.Combo.Input("family", options=families, default=AUTO, tooltip=_FAMILY),
                io.Combo.Input(
                    "source",
                    options=source_names(host.model_names),
                    default=EMBEDDED,
                    tooltip=_SOURCE,
                    extra_dict=_NO_MODEL,
                ),
                *widgets(BASE_MODEL),
                io.String.Input("folder_or_repo", default="", tooltip=_FOLDER, advanced=True, extra_dict=_NO_MODEL),
                *(_part(name) for name in PARTS if name not in OPTIONAL),
                io.Model.Input("model", optional=True, tooltip=_MODEL),
                io.Clip.Input("clip", optional=True, tooltip=_CLIP),
                io.Vae.Input("vae_model", optional=True, tooltip=_VAE),
                io.Model.Input("model_low_noise_link", optional=True, tooltip=_LOW_NOISE),
                *(_part(name) for name in OPTIONAL),
                io.Vae.Input("audio_vae", optional=True, tooltip=_AUDIO_VAE),
                *widgets(QUANTIZATION),
                io.Combo.Input(
                    "recovery_adapter",
                    options=[NO_ADAPTER, *host.model_names("loras")],
                    default=NO_ADAPTER,
                    tooltip=description(ModelConfig, "recovery_adapter"),
                    advanced=True,
                    optional=True,
                    extra_dict={NEEDS: {"quantization": QUANTIZED}},
                ),
            ],
            outputs=[sockets.Base.Output("base", tooltip="The base, for Train LoRA and Preview Samples.")],
        )

    @classmethod
    def validate_inputs(
        cls, family: str | None, source: str | None, folder_or_repo: str | None = "", model: Any = NOT_LINKED
    ) -> bool | str:
        """Refuses a source that is not there, and a family that it is not of, before anything runs."""
        if model is not NOT_LINKED or family is None or source is None or folder_or_repo is None:
            return True
        try:
            base = validated(ModelConfig, {"family": family, "source": source_of(source, folder_or_repo, None)})
            if base.source == EMBEDDED:
                _check_embedded(family)
        except FoundryError as error:
            return cls.in_widgets(error)
        return True if family in (AUTO, *family_names()) else f"family: there are: {', '.join(family_names())}"

    @classmethod
    def execute(
        cls,
        family: str,
        source: str,
        folder_or_repo: str,
        model: Any = None,
        clip: Any = None,
        vae_model: Any = None,
        model_low_noise_link: Any = None,
        audio_vae: Any = None,
        recovery_adapter: str = NO_ADAPTER,
        **settings: Any,
    ) -> io.NodeOutput:
        chosen = {part: settings.pop(part, FROM_SOURCE) for part in PARTS}
        files = {
            part: str(host.model_file(PARTS[part], name))
            for part, name in chosen.items()
            if name not in (FROM_SOURCE, NO_ADAPTER)
        }
        held = values(_SETTINGS, settings)["model"]
        if recovery_adapter != NO_ADAPTER:
            held["recovery_adapter"] = str(host.model_file("loras", recovery_adapter))
        if model is not None and family in (AUTO, FAMILY):
            models = (model,) if model_low_noise_link is None else (model, model_low_noise_link)
            own = {part: file for part, file in files.items() if part == TRAINING_ADAPTER}
            fields = {"device": host.device(), "files": own, **held}
            linked, text = linked_model(models, clip, vae_model, fields, audio_vae)
            return io.NodeOutput(linked, ui=host.shown_text(text))
        fields = {
            "family": family,
            "source": source_of(source, folder_or_repo, model),
            "device": host.device(),
            "files": files,
            **held,
        }
        base = validated(ModelConfig, fields)
        if base.source != EMBEDDED and not Path(base.source).exists():  # a repository that would be downloaded
            return io.NodeOutput(base)
        try:
            opened = open_base(base)
            told = opened.precision_told()  # says now what is wrong with a file
        except BaseModelError as error:
            where = "model" if model is not None else "folder_or_repo" if folder_or_repo.strip() else "source"
            raise BaseModelError(str(error).replace("model.source", where)) from None
        what = f"{opened.spec.title} (family {opened.spec.name}), {str(opened.dtype).removeprefix('torch.')}"
        return io.NodeOutput(base, ui=host.shown_text("\n".join([what, *told])))


def _part(name: str) -> io.Input:
    none, what = FROM_SOURCE, f"{_WHICH[name[-1]]} {name[:-2]}" if name[-1] in _WHICH else name
    tooltip = f"File of the {what.replace('_', ' ')}, where the source does not hold it or another is meant."
    if name == TRAINING_ADAPTER:
        none, tooltip = NO_ADAPTER, _ADAPTER
    options = [none, *host.model_names(PARTS[name])]
    return io.Combo.Input(
        name, options=options, default=none, tooltip=tooltip, advanced=True, optional=name in OPTIONAL
    )


def _check_embedded(family: str) -> None:
    """Raises ConfigError if the embedded base is not of a family."""
    try:
        if family == FAMILY:
            raise BaseModelError
        open_base(ModelConfig(family=family))
    except BaseModelError:
        own = open_base(ModelConfig()).spec
        raise ConfigError(
            f"family: the embedded base is {own.title} and no {family}. Set family to auto, or choose the model's file "
            "in source, or link its MODEL"
        ) from None


def source_of(name: str, folder_or_repo: str, model: Any) -> str:
    """Where the weights come from.

    Raises:
        ConfigError: if it lies in no root or no list, or if two inputs name it.
    """
    if model is not None:
        if folder_or_repo.strip():
            raise ConfigError("folder_or_repo and model both stand for the source: use one of them")
        return str(host.base_file(file_of(model)))
    if folder_or_repo.strip():
        return host.base_source(folder_or_repo)
    return EMBEDDED if name == EMBEDDED else str(host.model_file(*named_source(name)))
