"""An embedding by a vision model that the user has: CLIP, SigLIP or DINOv2, in a file or a folder. None is fetched."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config.model_files import model_file
from ..errors import BaseModelError, first_line
from ..reading import is_file, read_json

if TYPE_CHECKING:
    import torch
    from PIL import Image
    from torch import Tensor

VISION = "clip_vision"
"""What files of this kind are asked for by, in `register_model_files`."""
_FILES = (
    "sigclip_vision_patch14_384.safetensors",
    "clip_vision_h.safetensors",
    "CLIP-ViT-H-14-laion2B-s32B-b79K.safetensors",
    "clip_vision_vit_h.safetensors",
    "clip_vision_g.safetensors",
    "clip-vit-large-patch14.safetensors",
    "clip_vision_l.safetensors",
)
"""What they are called where ComfyUI's templates have them downloaded to."""
_REPOSITORIES = (
    "facebook/dinov2-base",
    "facebook/dinov2-small",
    "facebook/dinov2-large",
    "openai/clip-vit-large-patch14",
    "openai/clip-vit-base-patch32",
)
"""Looked for in Hugging Face's cache."""
_CLASSES = {
    "clip": "CLIPVisionModelWithProjection",
    "clip_vision_model": "CLIPVisionModelWithProjection",
    "siglip": "SiglipVisionModel",
    "siglip_vision_model": "SiglipVisionModel",
    "dinov2": "Dinov2Model",
}
"""`model_type` in a configuration → class of transformers."""
_NORMS = {
    "clip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    "siglip": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "dinov2": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}
"""Mean and standard deviation of the pixels that each was trained on."""
_DINO_SIZE = 224
"""Pixels that it is usually shown; its position embeddings are made for more and are interpolated."""
_BATCH = 16


def find_vision() -> Path | None:
    """A vision model that is on this machine: among a host's files, or in Hugging Face's cache."""
    for name in _FILES:
        if found := model_file(VISION, name):
            return found
    for repository in _REPOSITORIES:
        if (found := _cached(repository)) is not None:
            return found
    return None


class Vision:
    """A vision model in memory; embeddings have length 1."""

    def __init__(self, path: Path, device: torch.device) -> None:
        """Loads a file of weights, or a folder in transformers' layout.

        Raises:
            BaseModelError: if it is none that is known, or cannot be loaded.
        """
        self.name = path.name if is_file(path) else _called(path)
        self._device = device
        try:
            model = _from_file(path) if is_file(path) else _from_folder(path)
        except BaseModelError:
            raise
        except (OSError, RuntimeError, ValueError, KeyError, TypeError) as error:
            raise BaseModelError(f"{path}: cannot be loaded as a vision model ({first_line(error)})") from None
        self._model = model.to(device).eval().requires_grad_(False)
        kind = model.config.model_type.partition("_")[0]
        self._mean, self._std = _NORMS[kind]
        self._size: int = _DINO_SIZE if kind == "dinov2" else model.config.image_size

    def embed(self, pictures: Sequence[Image.Image]) -> Tensor:
        """(N, D), fp32, on the CPU. Of each picture the centre square is seen."""
        import torch

        rows = []
        with torch.no_grad():
            for start in range(0, len(pictures), _BATCH):
                pixels = torch.stack([self._pixels(one) for one in pictures[start : start + _BATCH]])
                found = self._model(pixel_values=pixels.to(self._device))
                rows.append(found.image_embeds if "image_embeds" in found else found.pooler_output)
        return torch.nn.functional.normalize(torch.cat(rows).float().cpu(), dim=-1)

    def _pixels(self, picture: Image.Image) -> Tensor:
        """(3, S, S), normalised."""
        import numpy as np
        import torch
        from PIL import Image, ImageOps

        seen = ImageOps.fit(picture.convert("RGB"), (self._size, self._size), Image.Resampling.BICUBIC)
        values = (torch.from_numpy(np.array(seen)).float() / 255 - torch.tensor(self._mean)) / torch.tensor(self._std)
        return values.permute(2, 0, 1)


def _cached(repository: str) -> Path | None:
    """The folder of a repository in Hugging Face's cache, if its configuration and its weights are there."""
    from huggingface_hub import try_to_load_from_cache

    found = [try_to_load_from_cache(repository, name) for name in ("config.json", "model.safetensors")]
    return Path(found[0]).parent if all(isinstance(one, str) for one in found) else None  # type: ignore[arg-type]


def _called(folder: Path) -> str:
    """A folder's name; in Hugging Face's cache that is a hash, and the repository's is above it."""
    above = folder.parent.parent.name
    return above.removeprefix("models--").replace("--", "/") if above.startswith("models--") else folder.name


def _from_folder(folder: Path) -> Any:
    import transformers

    from ..families.sources.untrusted import check_part

    check_part(folder)
    kind = read_json(folder / "config.json").get("model_type")
    if kind not in _CLASSES:
        raise BaseModelError(f"{folder}: is no CLIP, SigLIP or DINOv2 (its model_type is {kind!r})")
    return getattr(transformers, _CLASSES[kind]).from_pretrained(
        folder, local_files_only=True, use_safetensors=True, trust_remote_code=False
    )


def _from_file(path: Path) -> Any:
    import transformers

    from ..safetensors_file import read_header, read_tensors

    shapes = {name: entry["shape"] for name, entry in read_header(path).items() if name != "__metadata__"}
    config = described(shapes)
    if config is None:
        raise BaseModelError(
            f"{path}: is no CLIP, SigLIP or DINOv2 vision model that is known. Name another, or its folder with "
            "config.json"
        )
    kind = config["model_type"]
    made = transformers.AutoConfig.for_model(**config)
    tensors = {name: value.float() for name, value in read_tensors(path).items()}
    model, loaded = getattr(transformers, _CLASSES[kind]).from_pretrained(
        None, config=made, state_dict=tensors, output_loading_info=True
    )
    if missing := sorted(loaded["missing_keys"]):
        raise BaseModelError(f"{path}: lacks {missing[0]} and {len(missing) - 1} more weights of a vision model")
    return model


def described(shapes: Mapping[str, Sequence[int]]) -> dict[str, Any] | None:
    """The configuration of a single file in transformers' names, by its shapes; None if it is none that is known.

    What shapes do not tell is that of the published ones: ViT-B, L, H and G of CLIP, SigLIP's B and so400m, DINOv2.
    """
    with suppress(KeyError):
        dino = "embeddings.cls_token" in shapes
        # transformers' own SigLIP lacks the prefix since version 5
        head = "vision_model." if "vision_model.embeddings.patch_embedding.weight" in shapes else ""
        patches = shapes[
            "embeddings.patch_embeddings.projection.weight" if dino else f"{head}embeddings.patch_embedding.weight"
        ]
        places = shapes["embeddings.position_embeddings" if dino else f"{head}embeddings.position_embedding.weight"][-2]
        layer = "encoder.layer.{}.norm1.weight" if dino else head + "encoder.layers.{}.layer_norm1.weight"
        size, clip = patches[0], f"{head}embeddings.class_embedding" in shapes
        layers = 0
        while layer.format(layers) in shapes:
            layers += 1
        config: dict[str, Any] = {
            "hidden_size": size,
            "num_hidden_layers": layers,
            "num_attention_heads": {384: 6, 768: 12, 1536: 24}.get(size, 16),
            "patch_size": patches[-1],
            "image_size": round((places - (clip or dino)) ** 0.5) * patches[-1],
        }
        if dino:
            giant = "encoder.layer.0.mlp.weights_in.weight" in shapes
            return {**config, "model_type": "dinov2", "use_swiglu_ffn": giant}
        config["intermediate_size"] = shapes[f"{head}encoder.layers.0.mlp.fc1.weight"][0]
        if not clip:
            return {**config, "model_type": "siglip_vision_model"}
        act = "quick_gelu" if size in (768, 1024) else "gelu"  # OpenAI's, and those of LAION
        projection = shapes["visual_projection.weight"][0]
        return {**config, "model_type": "clip_vision_model", "hidden_act": act, "projection_dim": projection}
    return None
