"""What a file seems to be, for the message that refuses it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ...errors import BaseModelError
from ..names import Shapes

_PICKLES = {".ckpt", ".pt", ".pth", ".bin", ".pkl"}
_PREFIXES = ("model.diffusion_model.", "diffusion_model.", "model.", "")


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


def seems_to_be(shapes: Shapes) -> str:
    """What a safetensors file holds, in words."""
    for what, test in _KINDS:
        if test(shapes):
            return what
    for prefix in _PREFIXES:
        part = {name.removeprefix(prefix): shape for name, shape in shapes.items() if name.startswith(prefix)}
        if title := _denoiser(part):
            whole = any(name.startswith(("first_stage_model.", "vae.")) for name in shapes)
            return f"{title} checkpoint" if whole else f"{title} diffusion model"
    return _text_encoder(shapes) or "something that LoRA Foundry does not know"


def _ends(*endings: str) -> Callable[[Shapes], bool]:
    return lambda shapes: any(name.endswith(endings) for name in shapes)


def _starts(*beginnings: str) -> Callable[[Shapes], bool]:
    return lambda shapes: any(name.startswith(beginnings) for name in shapes)


_KINDS: tuple[tuple[str, Callable[[Shapes], bool]], ...] = (
    (
        "a LoRA",
        _ends(
            ".lora_down.weight",
            ".lora_up.weight",
            ".lora_A.weight",
            ".lora.up.weight",
            ".hada_w1_a",
            ".lokr_w1",
            ".lokr_w1_a",
        ),
    ),
    ("a ControlNet", _starts("control_model.", "controlnet_", "input_hint_block.", "controlnet_cond_embedding.")),
    ("a T2I-Adapter", _starts("adapter.body.", "body.0.resnets.")),
    ("an IP-Adapter", _starts("image_proj.", "ip_adapter.")),
    ("a textual inversion", lambda shapes: "emb_params" in shapes or set(shapes) in ({"clip_l", "clip_g"}, {"clip_g"})),
    (
        "an upscaler",
        lambda shapes: (
            "conv_first.weight" in shapes
            or ("model.0.weight" in shapes and _starts("model.1.sub.")(shapes))
            or _starts("params_ema.", "layers.0.residual_group.")(shapes)
        ),
    ),
    ("a small preview VAE (TAESD)", _starts("taesd_", "decoder.1.weight")),
    (
        "a VAE",
        lambda shapes: (
            "decoder.conv_in.weight" in shapes
            or "decoder.conv1.weight" in shapes
            or all(name.startswith(("first_stage_model.", "vae.")) for name in shapes)
        ),
    ),
    ("a CLIP vision model", _starts("vision_model.", "visual.transformer.")),
)
_DENOISERS = (
    ("Chroma", "distilled_guidance_layer."),
    ("FLUX.2", "double_stream_modulation_img."),
    ("HunyuanVideo", "txt_in.individual_token_refiner."),
    ("FLUX.1", "double_blocks.0.img_attn."),
    ("SD 3", "joint_blocks.0."),
    ("Qwen-Image", "transformer_blocks.0.img_mod."),
    ("FLUX.1", "transformer_blocks.0.attn.norm_added_k"),
    ("Wan", "blocks.0.self_attn.norm_k"),
    ("LTX Video", "patchify_proj."),
    ("Lumina 2 or Z-Image", "cap_embedder."),
    ("HiDream", "caption_projection.0."),
    ("PixArt", "csize_embedder."),
    ("AuraFlow", "double_layers.0."),
    ("Stable Cascade", "clip_txt_mapper."),
)


def _denoiser(shapes: Shapes) -> str | None:
    """The family of a diffusion model's weights, or None."""
    first = shapes.get("input_blocks.0.0.weight") or shapes.get("conv_in.weight")
    if first is not None and _starts("input_blocks.1.", "down_blocks.0.")(shapes):
        return _unet(shapes, first)
    return next((f"a {title}" for title, mark in _DENOISERS if _starts(mark)(shapes)), None)


def _unet(shapes: Shapes, first: tuple[int, ...]) -> str:
    added = shapes.get("label_emb.0.0.weight") or shapes.get("add_embedding.linear_1.weight")
    if added is not None:
        return "an SDXL refiner" if first[0] == 384 else "an SDXL"
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
