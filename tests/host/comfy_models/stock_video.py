"""What ComfyUI's own nodes make of a first frame, as its templates wire them, for the zoo."""

from __future__ import annotations

from typing import Any

from .stock_edit import Conditioned, extra

Given = tuple[Conditioned, dict[str, Any]]
"""The conditioning and the LATENT that KSampler takes."""
FRAMES = 9


def begun(name: str, text: Conditioned, vae: Any, image: Any, size: tuple[int, int], frames: int) -> Given:
    """What a graph gives KSampler for a video that goes on from an image.

    Args:
        image: as LoadImage hands it over.
        size: width and height.
    """
    node = NODES[name]
    width, height = size
    shape = {"width": width, "height": height, "length": frames, "batch_size": 1}
    if name.startswith("cogvideox"):  # it has no node of its own
        empty = extra("nodes_hunyuan").EmptyHunyuanLatentVideo.execute(width, height, frames).result[0]
        options = {**text[0][1], "concat_latent_image": vae.encode(image)}
        return [[text[0][0], options]], empty
    kind = getattr(extra(node[0]), node[1])
    if node[1] == "HunyuanImageToVideo":
        return kind.execute(text, vae, **shape, guidance_type="v1 (concat)", start_image=image).result
    if node[1] == "LTXVImgToVideo":
        positive, _, latent = kind.execute(text, text, image, vae, **shape, strength=1.0).result
        return extra("nodes_lt").LTXVConditioning.execute(positive, positive, 25).result[0], latent
    if node[1].endswith("Latent"):
        return text, kind.execute(vae, **shape, start_image=image).result[0]
    found = kind.execute(text, text, vae, **shape, start_image=image).result
    return found[0], found[2]


NODES: dict[str, tuple[str, str]] = {
    **dict.fromkeys(("wan21_i2v", "wan21_flf2v", "wan22_i2v_high"), ("nodes_wan", "WanImageToVideo")),
    **dict.fromkeys(("hunyuan_video_i2v", "skyreels_i2v"), ("nodes_hunyuan", "HunyuanImageToVideo")),
    "hunyuan_video15": ("nodes_hunyuan", "HunyuanVideo15ImageToVideo"),
    "cogvideox_i2v": ("", ""),
    "kandinsky5": ("nodes_kandinsky5", "Kandinsky5ImageToVideo"),
    "wan22_5b": ("nodes_wan", "Wan22ImageToVideoLatent"),
    **dict.fromkeys(("ltxv", "ltx2"), ("nodes_lt", "LTXVImgToVideo")),
    "cosmos_i2v": ("nodes_cosmos", "CosmosImageToVideoLatent"),
    "cosmos2_i2v": ("nodes_cosmos", "CosmosPredict2ImageToVideoLatent"),
}
"""Model → the node's module and class."""
ALWAYS = {"wan21_i2v", "wan21_flf2v", "wan22_i2v_high", "hunyuan_video_i2v", "skyreels_i2v", "cogvideox_i2v"}
"""Models that are never without a first frame."""
KEPT = {"kandinsky5", "wan22_5b", "ltxv", "ltx2", "cosmos_i2v", "cosmos2_i2v"}
"""Models that hand on the first frame."""
