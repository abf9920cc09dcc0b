"""What the zoo knows of a model, and how it makes a tiny one of ComfyUI's own class."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

Shape = tuple[int, ...]

NO_GRADIENT = "ComfyUI's code of it can make pictures, but has no gradients to train with"
"""A reason why a model is not trained that has nothing to do with data."""
RESTORES = "it enlarges or restores a given picture or clip, and a data set has no spoiled copies to start from"


class Draw:
    """Normal random tensors, the same for the same seed; `Draw(seed)(1, 7, 64)` has that shape.

    Args:
        tokens: how long the prompt is, for models that do not pad it.
    """

    def __init__(self, seed: int, tokens: int = 7) -> None:
        import torch

        self.tokens = tokens
        self._source = torch.Generator().manual_seed(seed)

    def __call__(self, *shape: int) -> Any:
        import torch

        return torch.randn(shape, generator=self._source)

    def ids(self, *shape: int, below: int) -> Any:
        """Token numbers."""
        import torch

        return torch.randint(below, shape, generator=self._source)


def ones(*shape: int) -> Any:
    """A mask that lets everything through."""
    import torch

    return torch.ones(shape)


def seen(draw: Draw, *shape: int) -> Any:
    """What a CLIP vision encoder hands over of a picture, as far as models look at it."""
    hidden = draw(*shape)
    return SimpleNamespace(penultimate_hidden_states=hidden, last_hidden_state=hidden, image_embeds=hidden[:, 0])


Given = Callable[[Draw], dict[str, Any]]


def nothing(draw: Draw) -> dict[str, Any]:
    return {}


@dataclass(frozen=True)
class Model:
    """A tiny model: which class, how small, what it is given."""

    name: str
    kind: str
    """Its class in `comfy.supported_models`."""
    config: dict[str, Any]
    """The smallest `unet_config` that the class accepts; keys that detection would add among them."""
    latents: tuple[Shape, ...]
    """Shapes of one sample's streams, batch first: main, then sound if there is any."""
    text: Given
    """What its text encoder makes of a prompt of `draw.tokens`: `cross_attn`, and the options beside it
    (`pooled_output`, masks, …)."""
    given: Given = nothing
    """What nodes add to that: reference latents, latents to concatenate, masks, rates."""
    category: str = "image"
    """image, edit or video."""
    refused: str = ""
    """Why no LoRA of it is trained, in the user's words; empty where one is."""
    alone: str = ""
    """Why it is right with one sample at a time only; empty where samples of a batch do not mix."""
    filled: tuple[str, ...] = ()
    """Buffers of the diffusion model that a file holds (others are computed)."""
    files: Given = nothing
    """Tensors that the class takes from its file on creation."""
    smaller: Callable[[Any], None] | None = None
    """Cuts away what the configuration cannot make small."""

    def found(self) -> Any:
        """What ComfyUI's detection would find in the model's file: an object of its class in `supported_models`."""
        import comfy.supported_models

        found = getattr(comfy.supported_models, self.kind)(dict(self.config))
        fixed = type(found).unet_extra_config
        found.unet_config |= {name: value for name, value in self.config.items() if name in fixed}
        return found

    def make(self, seed: int = 0) -> Any:
        """A `ModelPatcher` over the model, with weights that depend on the seed alone, as stock loaders leave it:
        frozen fp32 inference tensors on the CPU."""
        import comfy.model_management
        import comfy.model_patcher
        import torch

        found = self.found()
        found.set_inference_dtype(torch.float32, None)
        cpu = torch.device("cpu")
        with torch.inference_mode():
            model = found.get_model(self.files(Draw(seed)), "", device=cpu)
            if self.smaller is not None:
                self.smaller(model.diffusion_model)
            draw = Draw(seed + 1)
            for name, weight in model.diffusion_model.named_parameters():
                weight.data = _start(name, weight, draw)
            for name in self.filled:
                buffer = model.diffusion_model.get_buffer(name)
                buffer.copy_(draw(*buffer.shape))
        return comfy.model_patcher.CoreModelPatcher(
            model, load_device=cpu, offload_device=comfy.model_management.unet_offload_device()
        )

    def streams(self, seed: int = 2) -> list[Any]:
        """Random latents of one sample: main, then sound."""
        draw = Draw(seed)
        return [draw(*shape) for shape in self.latents]

    def conditioning(self, seed: int = 3) -> list[list[Any]]:
        """As a text encoder and the nodes behind it would hand it over: `[[cross_attn, options]]`."""
        draw = Draw(seed)
        options = {"pooled_output": None} | self.text(draw) | self.given(draw)
        return [[options.pop("cross_attn", None), options]]


def _start(name: str, weight: Any, draw: Draw) -> Any:
    """Weights that keep activations of order one, and no gate shut: so every layer counts."""
    shape, last = weight.shape, name.rpartition(".")[2]
    if last == "weight" and weight.dim() > 1:
        return (draw(*shape) * (weight[0].numel() ** -0.5)).to(weight.dtype)
    start = 1 if last in ("weight", "gamma", "scale") else 0
    return (start + draw(*shape) * (0.1 if weight.dim() < 2 else 0.3)).to(weight.dtype)
