"""Run by test_lora_keys.py in a process of its own: layers' weights with each adapter, in ComfyUI and in the trainer.

The trainer's is read off the adapted layer's output for inputs of which one value is 1. Prints {"<adapter> <layer>
<strength>": (effect of the adapter, difference between both)} as JSON, relative to the weight's norm. Arguments:
ComfyUI's folder and the pack's.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

comfyui, pack = (Path(argument) for argument in sys.argv[1:])
sys.argv = ["main.py", "--cpu"]
sys.path.insert(0, str(comfyui))
sys.path.append(str(pack))

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()

import comfy.lora  # noqa: E402
import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from trainer_core.adapters.adapter import Adapter  # noqa: E402
from trainer_core.adapters.comfy_format import to_comfy  # noqa: E402
from trainer_core.config import AdapterConfig  # noqa: E402
from trainer_core.families.stable_diffusion.sd15 import StableDiffusion  # noqa: E402

PATHS = {
    "linear": "mid_block.attentions.0.transformer_blocks.0.attn1.to_q",
    "point convolution": "mid_block.attentions.0.proj_in",
    "convolution": "mid_block.resnets.0.conv1",
}
STRENGTHS = (1.0, 0.7, -0.5)


def small_unet() -> nn.Module:
    """Three layers at places that a UNet has."""
    layers = {
        PATHS["linear"]: nn.Linear(48, 96),
        PATHS["point convolution"]: nn.Conv2d(32, 48, 1),
        PATHS["convolution"]: nn.Conv2d(32, 64, 3, padding=1),
    }
    root = nn.Module()
    for path, layer in layers.items():
        *parents, name = path.split(".")
        place = root
        for parent in parents:
            if not hasattr(place, parent):
                place.add_module(parent, nn.Module())
            place = getattr(place, parent)
        place.add_module(name, layer)
    return root


def weight_of(layer: nn.Module) -> Tensor:
    """A layer's weight, read off its output."""
    inputs = layer.weight.shape[1]
    if layer.weight.dim() == 2:
        return (layer(torch.eye(inputs)) - layer.bias).T
    kernel = layer.weight.shape[2]
    points = torch.zeros(inputs, inputs, kernel, kernel)
    points[range(inputs), range(inputs), kernel // 2, kernel // 2] = 1
    seen = layer(points) - layer.bias.view(-1, 1, 1)
    return seen.transpose(0, 1).flip(2, 3)


@torch.no_grad()
def main() -> None:
    random = torch.Generator().manual_seed(0)
    base = object.__new__(StableDiffusion)  # its names need no weights
    found = {}
    for kind in ("lora", "dora", "lokr", "loha"):
        unet = small_unet()
        weights = {name: unet.get_submodule(path).weight.clone() for name, path in PATHS.items()}
        config = AdapterConfig(type=kind, rank=3, alpha=2.0, conv_rank=2, conv_alpha=3.0, factor=4)
        targets, convs = base.spec.targets["all"], base.spec.conv_targets
        adapter = Adapter(unet, config, targets, seed=0, conv_targets=convs)
        adapter.load_state_dict(
            {
                name: value + torch.randn(value.shape, generator=random) * 0.2
                for name, value in adapter.state_dict().items()
            }
        )
        file = to_comfy(adapter.deltas(), base, torch.float32)
        keys = {f"lora_unet_{path.replace('.', '_')}": name for name, path in PATHS.items()}
        patches = comfy.lora.load_lora(file, keys)
        for name, path in PATHS.items():
            for strength in STRENGTHS:
                adapter.set_strength(strength)
                plain = weights[name]
                patch = (strength, patches[name], 1.0, None, lambda a: a)
                theirs = comfy.lora.calculate_weight([patch], plain.clone(), name)
                ours = weight_of(unet.get_submodule(path))
                found[f"{kind} {name} {strength}"] = (
                    float((theirs - plain).norm() / plain.norm()),
                    float((ours - theirs).norm() / theirs.norm()),
                )
    print("RESULT" + json.dumps(found))


main()
