"""Run by test_lora_keys.py in a process of its own: ComfyUI reads adapters of the real models, all on the meta device.

Prints {"<family> <adapter>": {…}} as JSON: how many layers were adapted, how many of ComfyUI's weights the file
changes, the keys that ComfyUI did not load, and what it logged while it computed the changed weights; under
"<family> originals" the layers whose original names are others to us than to ComfyUI. Arguments: ComfyUI's folder and
the pack's.
"""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import Any

comfyui, pack = (Path(argument) for argument in sys.argv[1:])
sys.argv = ["main.py", "--cpu"]
sys.path.insert(0, str(comfyui))
sys.path.append(str(pack))

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()

import comfy.lora  # noqa: E402
import comfy.lora_convert  # noqa: E402
import comfy.model_detection  # noqa: E402
import comfy.sd1_clip  # noqa: E402
import comfy.sdxl_clip  # noqa: E402
import comfy.supported_models  # noqa: E402
import diffusers  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402

from trainer_core.adapters.adapter import Adapter  # noqa: E402
from trainer_core.adapters.comfy_format import to_comfy  # noqa: E402
from trainer_core.config import AdapterConfig  # noqa: E402
from trainer_core.families.flux1.model import Flux  # noqa: E402
from trainer_core.families.flux1.single_file import FLUX1  # noqa: E402
from trainer_core.families.stable_diffusion.layouts import SD1, SDXL  # noqa: E402
from trainer_core.families.stable_diffusion.sd15 import StableDiffusion  # noqa: E402
from trainer_core.families.stable_diffusion.sdxl import StableDiffusionXL  # noqa: E402

ADAPTERS: dict[str, dict[str, Any]] = {
    "lora": {"rank": 4},
    "lora with text encoders": {"rank": 4, "text_encoders": True},
    "lora with convolutions": {"rank": 4, "conv_rank": 2},
    "lora with all": {"rank": 4, "targets": "all", "conv_rank": 2, "conv_alpha": 1.0, "text_encoders": True},
    "dora with all": {"type": "dora", "rank": 4, "targets": "all", "conv_rank": 2, "text_encoders": True},
    "lokr": {"type": "lokr", "rank": 1000},
    "lokr with all": {"type": "lokr", "rank": 4, "targets": "all", "conv_rank": 2, "text_encoders": True},
    "loha with all": {"type": "loha", "rank": 2, "targets": "all", "conv_rank": 2, "text_encoders": True},
}
CLIPS = {
    "sd1": {"text_encoder": transformers.CLIPTextModel},
    "sdxl": {"text_encoder": transformers.CLIPTextModel, "text_encoder_2": transformers.CLIPTextModelWithProjection},
    "flux1": {},
}

LAYOUTS = {layout.name: layout for layout in (FLUX1, SD1, SDXL)}


def in_comfyui(layout: str, denoiser: torch.nn.Module) -> tuple[Any, Any]:
    """ComfyUI's own denoiser and text encoders of the same size."""
    if layout == "flux1":
        wide = 24 * 128
        shapes: dict[str, tuple[int, ...]] = {
            "double_blocks.0.img_attn.norm.key_norm.scale": (128,),
            "img_in.weight": (wide, 64),
            "img_in.bias": (wide,),
            "txt_in.weight": (wide, 4096),
            "vector_in.in_layer.weight": (wide, 768),
            "guidance_in.in_layer.weight": (wide, 256),
            "guidance_in.in_layer.bias": (wide,),
            **{f"double_blocks.{k}.img_attn.proj.weight": (wide, wide) for k in range(19)},
            **{f"single_blocks.{k}.linear2.weight": (wide, 5 * wide) for k in range(38)},
        }
        state = {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}
        config = comfy.supported_models.Flux(comfy.model_detection.detect_unet_config(state, ""))
        return config.get_model({}, "", device="meta"), None
    config = comfy.model_detection.model_config_from_diffusers_unet(denoiser.state_dict())
    clip = comfy.sd1_clip.SD1ClipModel if layout == "sd1" else comfy.sdxl_clip.SDXLClipModel
    return config.get_model({}, "", device="meta"), clip(device="meta", dtype=torch.float32)


class Messages(logging.Handler):
    """Keeps what ComfyUI logs as a warning or worse."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())


def loaded(file: dict[str, torch.Tensor], model: Any, clip: Any) -> dict[str, Any]:
    """What ComfyUI makes of a file: as comfy.sd.load_lora_for_models, and then the weights that it computes."""
    messages = Messages()
    logging.getLogger().addHandler(messages)
    keys: dict[str, Any] = comfy.lora.model_lora_keys_unet(model, {})
    if clip is not None:
        keys = comfy.lora.model_lora_keys_clip(clip, keys)
    patches = comfy.lora.load_lora(comfy.lora_convert.convert_lora(file), keys)
    weights = dict(model.state_dict())
    if clip is not None:
        weights |= clip.state_dict()
    wrong = []
    for target, adapter in patches.items():
        key, offset, function = (*target, None, None)[:3] if isinstance(target, tuple) else (target, None, None)
        weight = weights[key]
        before = len(messages.texts)
        patch = (1.0, adapter, 1.0, offset, function or (lambda a: a))
        changed = comfy.lora.calculate_weight([patch], weight.clone(), key)
        if changed.shape != weight.shape or len(messages.texts) > before:
            wrong.append(f"{key}: {messages.texts[before:]}")
    logging.getLogger().removeHandler(messages)
    unloaded = [text for text in messages.texts if "not loaded" in text]
    return {"patches": len(patches), "unloaded": unloaded, "wrong": wrong}


def main() -> None:
    results: dict[str, Any] = {}
    for family, layout, part, kind in (
        (StableDiffusion, "sd1", "unet", diffusers.UNet2DConditionModel),
        (StableDiffusionXL, "sdxl", "unet", diffusers.UNet2DConditionModel),
        (Flux, "flux1", "transformer", diffusers.FluxTransformer2DModel),
    ):
        base = object.__new__(family)  # its names need no weights
        for name, settings in ADAPTERS.items():
            if not CLIPS[layout]:  # nor convolutions
                if name in ("lora with text encoders", "lora with convolutions"):
                    continue
                settings = {**settings, "conv_rank": None, "conv_alpha": None, "text_encoders": False}
            config = AdapterConfig(**settings)
            with torch.device("meta"):
                denoiser = kind.from_config(LAYOUTS[layout].config(part))
                encoders = {
                    one: clip(transformers.CLIPTextConfig(**LAYOUTS[layout].config(one)))
                    for one, clip in CLIPS[layout].items()
                }
            if name == "lora":
                model, clips = in_comfyui(layout, denoiser)
            adapter = Adapter(
                denoiser,
                config,
                base.spec.targets[config.targets],
                seed=0,
                conv_targets=base.spec.conv_targets,
                text_encoders=encoders if config.text_encoders else None,
                text_targets=base.spec.text_targets,
            )
            file = to_comfy(adapter.deltas(), base, torch.bfloat16)
            if layout != "flux1" and name == "lora with all":
                natives = comfy.lora.model_lora_keys_unet(model, {})
                shapes = {one.replace(".base_layer", ""): tuple(v.shape) for one, v in denoiser.state_dict().items()}
                originals = base.original_modules(shapes)
                results[f"{layout} originals"] = [
                    path
                    for path in adapter.layers
                    if not path.startswith("text_encoder")
                    and natives[f"lora_unet_{path.replace('.', '_')}"] != f"diffusion_model.{originals[path]}.weight"
                ]
            results[f"{layout} {name}"] = {
                "layers": len(adapter.layers),
                "text layers": sum(one.startswith("text_encoder") for one in adapter.layers),
                "modules": sum(key.endswith(".alpha") for key in file),
                **loaded(file, model, clips),
            }
    print("RESULT" + json.dumps(results))


main()
