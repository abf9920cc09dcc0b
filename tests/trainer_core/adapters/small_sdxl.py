"""Some layers of the small SDXL, what they give, and adapters for it."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from trainer_core.adapters.adapter import Adapter
from trainer_core.adapters.deltas import Delta, Hadamard, LowRank
from trainer_core.config import AdapterConfig
from trainer_core.families.base import Base

TO_Q = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
OUT = "mid_block.attentions.0.transformer_blocks.0.attn2.to_out.0"
CONV = "down_blocks.1.resnets.0.conv1"
FC1 = "text_model.encoder.layers.1.mlp.fc1"


def outputs(model: nn.Module) -> list[Tensor]:
    source = torch.Generator().manual_seed(2)
    with torch.no_grad():
        return [
            model.get_submodule(TO_Q)(torch.randn(2, 5, 64, generator=source)),
            model.get_submodule(OUT)(torch.randn(2, 5, 64, generator=source)),
            model.get_submodule(CONV)(torch.randn(2, 32, 4, 4, generator=source)),
        ]


def adapted(sdxl: Base, unet: nn.Module, encoders: Mapping[str, nn.Module], config: AdapterConfig) -> Adapter:
    spec = sdxl.spec
    adapter = Adapter(
        unet,
        config,
        spec.targets[config.targets],
        seed=1,
        conv_targets=spec.conv_targets,
        text_encoders={name: copy.deepcopy(one) for name, one in encoders.items()} if config.text_encoders else None,
        text_targets=spec.text_targets,
    )
    source = torch.Generator().manual_seed(4)
    adapter.load_state_dict(
        {name: value + torch.randn(value.shape, generator=source) * 0.1 for name, value in adapter.state_dict().items()}
    )
    return adapter


def dense(change: Delta) -> Tensor:
    """ΔW, by the formulas of the papers."""
    if isinstance(change, LowRank):
        return change.scale * change.up @ change.down.flatten(1)
    if isinstance(change, Hadamard):
        return change.scale * (change.w1_a @ change.w1_b) * (change.w2_a @ change.w2_b)
    w2 = change.w2.flatten(1) if change.w2 is not None else change.w2_a @ change.w2_b.flatten(1)  # type: ignore[union-attr, operator]
    return change.scale * torch.kron(change.w1, w2)
