"""Writes a model in diffusers layout as the single files that ComfyUI's users have.

The names are put together here from the layouts' own tables; that these are the original ones is what
test_single_file_names.py asks diffusers' converters.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from trainer_core.families.flux1 import single_file as flux
from trainer_core.families.names import Naming, Place
from trainer_core.families.parts import clip
from trainer_core.families.parts import kl_names as vae
from trainer_core.families.registry import family_spec
from trainer_core.families.sources.layout import Layout
from trainer_core.families.spec import FamilySpec
from trainer_core.families.stable_diffusion import unet

Weights = dict[str, Tensor]

PREFIXES = {
    "sd1": {
        "unet": "model.diffusion_model.",
        "vae": "first_stage_model.",
        "text_encoder": "cond_stage_model.transformer.",
    },
    "sdxl": {
        "unet": "model.diffusion_model.",
        "vae": "first_stage_model.",
        "text_encoder": "conditioner.embedders.0.transformer.",
        "text_encoder_2": "conditioner.embedders.1.model.",
    },
    "flux1": {
        "transformer": "model.diffusion_model.",
        "vae": "vae.",
        "text_encoder": "text_encoders.clip_l.transformer.",
        "text_encoder_2": "text_encoders.t5xxl.transformer.",
    },
}
"""Where the parts begin in published checkpoints."""


def weights_of(folder: Path) -> Weights:
    """All weights of a part's folder."""
    found: Weights = {}
    for file in sorted(folder.glob("*.safetensors")):
        found |= load_file(file)
    return found


def original(layout: str, part: str, weights: Weights) -> Weights:
    """A part's weights in original names and shapes, without prefix."""
    return gathered(weights, _naming(layout, part, weights))


def gathered(weights: Weights, naming: Naming) -> Weights:
    """Weights under their original names: fused ones put together, transposed ones turned."""
    pieces: dict[str, list[tuple[Place, Tensor]]] = {}
    for name, tensor in weights.items():
        origin = naming(name)
        pieces.setdefault(origin.name, []).append((origin, tensor))
    made: Weights = {}
    for name, found in pieces.items():
        tensors = []
        for origin, tensor in sorted(found, key=lambda piece: piece[0].start):
            tensor = tensor.t() if origin.transposed else tensor
            tensors.append(torch.cat(tensor.chunk(2)[::-1]) if origin.swap_halves else tensor)
        made[name] = (torch.cat(tensors) if found[0][0].total > 1 else tensors[0]).contiguous()
    return made


def _naming(layout: str, part: str, weights: Weights) -> Naming:
    shapes = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    if part == "unet":
        plan = unet.diffusers_unet(shapes)
        assert plan is not None
        return unet.original_names(plan)
    if part == "vae":
        names = (name for name in shapes if name.startswith("decoder.up_blocks."))
        return vae.original_names(1 + max(int(name.split(".")[2]) for name in names))
    if part == "transformer":
        return flux.original_names("scale")
    if (layout, part) == ("sdxl", "text_encoder_2"):
        return clip.openclip_names({"text_projection": ()})
    if part == "text_encoder":
        return lambda name: Place("text_model." + name.removeprefix("text_model."))
    return Place


def conv_attention(weights: Weights) -> Weights:
    """The VAE's attention as the original has it: 1x1 convolutions."""
    parts = (".q.weight", ".k.weight", ".v.weight", ".proj_out.weight")
    return {
        name: tensor[:, :, None, None] if ".attn_1." in name and name.endswith(parts) else tensor
        for name, tensor in weights.items()
    }


def parts_in_original_names(folder: Path, layout: Layout) -> dict[str, Weights]:
    """Part → its weights as separate files hold them."""
    parts = {part: original(layout.name, part, weights_of(folder / part)) for part in layout.parts}
    return {**parts, "vae": conv_attention(parts["vae"])}


def write_checkpoint(
    folder: Path,
    layout: Layout,
    path: Path,
    change: Callable[[Weights], Weights] = dict,
    metadata: Mapping[str, str] | None = None,
) -> Path:
    """A checkpoint with all parts of a model, in original names.

    Args:
        folder: the model in diffusers layout.
        layout: SD1, SDXL or FLUX1.
        change: what to do to the weights before they are written.
    """
    whole = {
        PREFIXES[layout.name][part] + name: tensor
        for part, weights in parts_in_original_names(folder, layout).items()
        for name, tensor in weights.items()
    }
    save_file(change(whole), path, metadata=dict(metadata or {}))
    return path


def write_parts(folder: Path, layout: Layout, into: Path) -> dict[str, Path]:
    """Each part as a file of its own, as ComfyUI's folders hold them."""
    into.mkdir(parents=True, exist_ok=True)
    files = {}
    for part, weights in parts_in_original_names(folder, layout).items():
        if (layout.name, part) == ("sdxl", "text_encoder_2"):  # clip_g.safetensors has transformers' names
            weights = weights_of(folder / part)
        files[part] = into / f"{part}.safetensors"
        save_file(weights, files[part])
    return files


def spec_of(layout: Layout) -> FamilySpec:
    """The family that a layout is of."""
    return family_spec({"sd1": "sd15"}.get(layout.name, layout.name))
