"""What a file seems to be, for the message that refuses it."""

from __future__ import annotations

import re
from pathlib import Path

from ...errors import BaseModelError
from ..names import Shapes

_PICKLES = {".ckpt", ".pt", ".pth", ".bin", ".pkl"}


def refuse_foreign(path: Path) -> None:
    """Refuses what is no safetensors file, by its first bytes and its ending; nothing is unpickled.

    Raises:
        BaseModelError: saying what it is.
    """
    try:
        with path.open("rb") as file:
            head = file.read(64)
    except OSError as error:
        raise BaseModelError(f"{path}: cannot be read ({error.strerror or error})") from None
    if head[8:9] == b"{":
        return  # a safetensors file's header, after its length, which can begin with any bytes
    if head.startswith(b"GGUF") or path.suffix.lower() == ".gguf":
        raise BaseModelError(f"{path}: is a GGUF file, which cannot be trained on. Use the fp16, bf16 or fp8 version")
    if head.startswith((b"PK\x03\x04", b"\x80")) or (path.suffix.lower() in _PICKLES):
        raise BaseModelError(
            f"{path}: is a pickle (.ckpt, .pt, .bin), which can run any code when it is opened, so it is not. Use the "
            "model's .safetensors version"
        )
    if head.startswith(b"version https://git-lfs"):
        raise BaseModelError(f"{path}: is a Git LFS pointer, not the file itself. Run `git lfs pull`")
    if head.lstrip().lower().startswith((b"<!doctype", b"<html")):
        raise BaseModelError(f"{path}: is a web page: the download was refused or asked for a login. Download it again")


_KINDS = {
    "a LoRA": r"\.(lora_(down|up|A)\.weight|lora\.up\.weight|hada_w1_a|lokr_w1(_a)?)$",
    "a ControlNet": r"^(control_model\.|controlnet_|input_hint_block\.)",
    "a T2I-Adapter": r"^(adapter\.body|body\.0\.resnets)\.",
    "an IP-Adapter": r"^(image_proj|ip_adapter)\.",
    "a textual inversion": r"^(emb_params|clip_[lg])$",
    "an upscaler": r"^(conv_first\.weight$|(model\.1\.sub|params_ema|layers\.0\.residual_group)\.)",
    "a small preview VAE (TAESD)": r"^(taesd_|decoder\.1\.weight)",
    "a VAE": r"^decoder\.conv(_in|1)\.weight$",
    "a CLIP vision model": r"^(vision_model|visual\.transformer)\.",
}
"""Kinds of files by the name of a tensor that no other kind has; the first that is found counts."""
_PREFIX = r"^((model\.)?diffusion_model\.|model\.)?"
_DENOISERS = {
    "Chroma": r"distilled_guidance_layer\.",
    "FLUX.2": r"double_stream_modulation_img\.",
    "HunyuanVideo": r"txt_in\.individual_token_refiner\.",
    "SD 3": r"joint_blocks\.0\.",
    "Qwen-Image": r"transformer_blocks\.0\.img_mod\.",
    "FLUX.1": r"(double_blocks\.0\.img_attn\.|transformer_blocks\.0\.attn\.norm_added_k)",
    "Wan": r"blocks\.0\.self_attn\.norm_k",
    "LTX Video": r"patchify_proj\.",
    "Lumina 2 or Z-Image": r"cap_embedder\.",
    "HiDream": r"caption_projection\.0\.",
    "PixArt": r"csize_embedder\.",
    "AuraFlow": r"double_layers\.0\.",
    "Stable Cascade": r"clip_txt_mapper\.",
}
_VAE = ("first_stage_model.", "vae.")


def seems_to_be(shapes: Shapes) -> str:
    """What a safetensors file holds, in words."""
    kind = next((kind for kind, mark in _KINDS.items() if _finds(mark, shapes)), None)
    if kind or all(name.startswith(_VAE) for name in shapes):
        return kind or "a VAE"
    if title := _unet(shapes) or next(
        (f"a {one}" for one, mark in _DENOISERS.items() if _finds(_PREFIX + mark, shapes)), None
    ):
        return f"{title} checkpoint" if any(name.startswith(_VAE) for name in shapes) else f"{title} diffusion model"
    return _text_encoder(shapes) or "something that LoRA Foundry does not know"


def _finds(pattern: str, shapes: Shapes) -> str | None:
    """The first name that a pattern finds."""
    return next(filter(re.compile(pattern).search, shapes), None)


def _unet(shapes: Shapes) -> str | None:
    """Which Stable Diffusion's denoiser it is, in the original or diffusers' names; None if it is none."""
    first = _finds(_PREFIX + r"(input_blocks\.0\.0|conv_in)\.weight$", shapes)
    if first is None or not _finds(_PREFIX + r"(input_blocks\.1|down_blocks\.0)\.", shapes):
        return None
    if _finds(_PREFIX + r"(label_emb\.0\.0|add_embedding\.linear_1)\.weight$", shapes):
        return "an SDXL refiner" if shapes[first][0] == 384 else "an SDXL"
    linear = any(name.endswith(".proj_in.weight") and len(shape) == 2 for name, shape in shapes.items())
    return "an SD 2.x" if linear else "an SD 1.5"


def _text_encoder(shapes: Shapes) -> str | None:
    for name, shape in shapes.items():
        if name.endswith("token_embedding.weight") and len(shape) == 2:
            return {768: "a CLIP-L", 1024: "a CLIP-H", 1280: "a CLIP-G"}.get(shape[1], "a CLIP") + " text encoder"
        if name.endswith("layer.0.SelfAttention.q.weight"):
            return "a T5 text encoder"
        if name.endswith("layers.0.self_attn.q_proj.weight"):
            return "a language model (a text encoder of another family)"
    return None
