"""What ComfyUI's own nodes make of a prompt and of pictures to edit, as its templates wire them, for the zoo."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import comfy.sd
import node_helpers

Conditioned = list[list[Any]]
Stock = Callable[[Any, Any, str, Sequence[Any]], Conditioned]
"""(CLIP, VAE or None, prompt, IMAGEs) → conditioning."""


@cache
def extra(name: str) -> Any:
    """A module of ComfyUI's further nodes; those that ask its own `nodes` for a limit get that alone."""
    limits = ModuleType("nodes")
    limits.MAX_RESOLUTION = 16384  # type: ignore[attr-defined]
    with mock.patch.dict(sys.modules, {"nodes": limits}):
        return importlib.import_module(f"comfy_extras.{name}")


@cache
def inpainting() -> Any:
    """InpaintModelConditioning of ComfyUI's own nodes, which are loaded under another name than theirs."""
    file = Path(comfy.sd.__file__).parents[1] / "nodes.py"
    spec = importlib.util.spec_from_file_location("comfyui_nodes", file)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.InpaintModelConditioning()


def result(output: Any, number: int = 0) -> Any:
    return output.result[number]


def text(clip: Any, prompt: str) -> Conditioned:
    """CLIPTextEncode."""
    found: Conditioned = clip.encode_from_tokens_scheduled(clip.tokenize(prompt))
    return found


def references(scale: Callable[[Any], Any]) -> Stock:
    """A picture scaled, encoded and set by ReferenceLatent, one after the other."""

    def make(clip: Any, vae: Any, prompt: str, images: Sequence[Any]) -> Conditioned:
        found = text(clip, prompt)
        for image in images if vae else ():
            latent = {"samples": vae.encode(scale(image))}
            found = result(extra("nodes_edit_model").ReferenceLatent.execute(found, latent))
        return found

    return make


def total_pixels(method: str) -> Callable[[Any], Any]:
    node = extra("nodes_post_processing").ImageScaleToTotalPixels
    return lambda image: result(node.execute(image, method, 1.0, 1))


def kontext(image: Any) -> Any:
    return result(extra("nodes_flux").FluxKontextImageScale.execute(image))


def qwen(clip: Any, vae: Any, prompt: str, images: Sequence[Any]) -> Conditioned:
    named = {f"image{k}": image for k, image in enumerate(images, 1)}
    return result(extra("nodes_qwen").TextEncodeQwenImageEditPlus.execute(clip, prompt, vae, **named))


def krea(clip: Any, vae: Any, prompt: str, images: Sequence[Any]) -> Conditioned:
    return by_method(qwen(clip, vae, prompt, images), "index_timestep_zero")


def longcat(clip: Any, vae: Any, prompt: str, images: Sequence[Any]) -> Conditioned:
    found = result(extra("nodes_qwen").TextEncodeQwenImageEdit.execute(clip, prompt, vae, *images))
    return by_method(found, "index")


def by_method(found: Conditioned, method: str) -> Conditioned:
    return result(extra("nodes_flux").FluxKontextMultiReferenceLatentMethod.execute(found, method))


def boogu(clip: Any, vae: Any, prompt: str, images: Sequence[Any]) -> Conditioned:
    """Both outputs: the blank prompt is the negative one."""
    named = {f"image_{k}": image for k, image in enumerate(images, 1)}
    found = extra("nodes_boogu").TextEncodeBooguEdit.execute(clip, prompt, "", vae, named)
    return result(found, 0 if prompt else 1)


def mage(clip: Any, vae: Any, prompt: str, images: Sequence[Any]) -> Conditioned:
    named = {f"image_{k}": image for k, image in enumerate(images, 1)}
    found = extra("nodes_mage").TextEncodeMageFlowEdit.execute(clip, prompt, "", vae, named)
    return result(found, 0 if prompt else 1)


def joy(clip: Any, vae: Any, prompt: str, images: Sequence[Any]) -> Conditioned:
    named = {f"image{k}": image for k, image in enumerate(images)}
    return result(extra("nodes_joyimage").TextEncodeJoyImageEdit.execute(clip, prompt, vae, named))


def omni(clip: Any, vae: Any, prompt: str, images: Sequence[Any]) -> Conditioned:
    named = {f"image{k}": image for k, image in enumerate(images, 1)}
    return result(extra("nodes_zimage").TextEncodeZImageOmni.execute(clip, prompt, vae=vae, **named))


def concatenated(clip: Any, vae: Any, prompt: str, images: Sequence[Any]) -> Conditioned:
    """InstructPixToPixConditioning, for HiDream E1 as well."""
    found = text(clip, prompt)
    return result(extra("nodes_ip2p").InstructPixToPixConditioning.execute(found, found, *images, vae))


def filled(clip: Any, vae: Any, prompt: str, images: Sequence[Any]) -> Conditioned:
    """The second picture's red is the mask."""
    found = text(clip, prompt)
    picture, mask = images
    return inpainting().encode(found, found, picture, vae, mask[..., 0], False)[0]


def guided(found: Conditioned, guidance: float) -> Conditioned:
    """FluxGuidance."""
    return node_helpers.conditioning_set_values(found, {"guidance": guidance})


STOCK: dict[str, Callable[[], Stock]] = {
    "flux1_kontext": lambda: references(kontext),
    "flux2_edit": lambda: references(total_pixels("lanczos")),
    "omnigen2_edit": lambda: references(total_pixels("area")),
    "longcat": lambda: longcat,
    "qwen_edit": lambda: qwen,
    "qwen_edit_3": lambda: qwen,
    "qwen_edit_2511": lambda: qwen,
    "krea2_edit": lambda: krea,
    "boogu_edit": lambda: boogu,
    "mage_flow_edit": lambda: mage,
    "joyimage_edit": lambda: joy,
    "z_image_omni": lambda: omni,
    "hidream_e1": lambda: concatenated,
    "sd15_ip2p": lambda: concatenated,
    "sdxl_ip2p": lambda: concatenated,
    "flux1_fill": lambda: filled,
    "sd15_inpainting": lambda: filled,
    "sdxl_inpainting": lambda: filled,
}
"""By the zoo's name."""
