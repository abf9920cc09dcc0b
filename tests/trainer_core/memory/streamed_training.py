"""A small FLUX that is trained for a few steps, with blocks that are streamed or not."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor, nn

from trainer_core.adapters.adapter import Adapter
from trainer_core.config import AdapterConfig
from trainer_core.memory.blocks import blocks_of
from trainer_core.memory.packing import Packing, pack_in_place
from trainer_core.memory.recompute import recompute_blocks
from trainer_core.memory.streaming import Streamed

from .adversary import Adversary

STEPS = 5
BLOCKS = 5


class Training:
    """A small FLUX with a LoRA, trained on numbers."""

    def __init__(
        self,
        count: int = 0,
        ring: int = 2,
        seed: int = 0,
        pins: bool = True,
        recompute: bool = True,
        copier: Any = None,
        quantization: str | None = None,
    ) -> None:
        self.model = flux()
        if quantization:
            pack_in_place(self.model, Packing(quantization), torch.device("cpu"), torch.float32)
        self.adapter = Adapter(self.model, AdapterConfig(rank=2), [r".*attn\.to_[qkv]", r".*proj_mlp", r".*net\.2"], 0)
        for number, parameter in enumerate(self.adapter.parameters()):
            parameter.data += noise(parameter.shape, number) * 0.1
        blocks = blocks_of(self.model)
        assert len(blocks) == BLOCKS
        self.copier = copier or Adversary(seed, pins)
        self.streamed = Streamed(self.model, blocks, count, self.copier, ring)
        if recompute:
            recompute_blocks(self.model, blocks.values())
        self.optimizer = torch.optim.AdamW(self.adapter.parameters(), lr=1e-2)

    def predict(self, seed: int) -> Tensor:
        text, ids = noise((2, 3, 8), seed + 1), torch.zeros(4, 3)
        given = {"encoder_hidden_states": text, "pooled_projections": noise((2, 8), seed + 2)}
        given |= {"img_ids": ids, "txt_ids": ids[:3], "timestep": torch.tensor([0.3, 0.7])}
        return self.model(noise((2, 4, 4), seed), **given, guidance=torch.ones(2)).sample

    def gradients(self, seed: int) -> Tensor:
        """Of a target that the model gives without its LoRA, in two micro-batches."""
        losses = []
        for part in range(2):
            with torch.no_grad(), self.adapter.disabled():
                target = self.predict(seed + part) + noise((2, 4, 4), seed + part)
            losses.append((self.predict(seed + part) - target).square().mean())
            losses[-1].backward()
        return torch.stack(losses).detach()

    def step(self, seed: int) -> Tensor:
        self.optimizer.zero_grad()
        loss = self.gradients(seed)
        self.optimizer.step()
        return loss

    def outcome(self, between: Callable[[Training, int], None] | None = None) -> list[Tensor]:
        """Losses of all steps, and the trained weights."""
        losses = []
        for number in range(STEPS):
            if between:
                between(self, number)
            losses.append(self.step(number))
        return [*losses, *(one.detach() for one in self.adapter.parameters())]


def flux() -> nn.Module:
    sizes = {"attention_head_dim": 8, "num_attention_heads": 1, "joint_attention_dim": 8, "pooled_projection_dim": 8}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return FluxTransformer2DModel(
            in_channels=4, num_layers=2, num_single_layers=3, axes_dims_rope=(2, 2, 4), guidance_embeds=True, **sizes
        )


def noise(shape: Any, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@functools.cache
def whole() -> list[Tensor]:
    """The outcome of the model that is on the device, whose blocks are not recomputed."""
    return Training(recompute=False).outcome()


def same(found: list[Tensor], expected: list[Tensor]) -> bool:
    return all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
