"""Small denoisers of diffusers, frozen and adapted, with what they are given."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from diffusers import FluxTransformer2DModel, UNet2DConditionModel
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from trainer_core.adapters.adapter import Adapter
from trainer_core.config import AdapterConfig

from ..families.small_models import seeded


def flux(double: int = 2, single: int = 2, heads: int = 2) -> nn.Module:
    return seeded(
        lambda: FluxTransformer2DModel(
            in_channels=16,
            num_layers=double,
            num_single_layers=single,
            attention_head_dim=16,
            num_attention_heads=heads,
            joint_attention_dim=24,
            pooled_projection_dim=8,
            axes_dims_rope=(4, 6, 6),
        )
    )


def unet() -> nn.Module:
    """As SD 1.5: attention in one of two levels, residual blocks in both."""
    return seeded(
        lambda: UNet2DConditionModel(
            sample_size=8,
            block_out_channels=(32, 64),
            layers_per_block=1,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            cross_attention_dim=24,
            attention_head_dim=8,
        )
    )


def given(model: nn.Module, batch: int = 2) -> dict[str, Any]:
    """Arguments of a pass, the same each time."""
    source = torch.Generator().manual_seed(1)

    def values(*shape: int) -> Tensor:
        return torch.randn(batch, *shape, generator=source)

    if isinstance(model, UNet2DConditionModel):
        return {
            "sample": values(4, 8, 8),
            "timestep": torch.full((batch,), 500),
            "encoder_hidden_states": values(5, 24),
        }
    return {
        "hidden_states": values(12, 16),
        "encoder_hidden_states": values(5, 24),
        "pooled_projections": values(8),
        "timestep": torch.full((batch,), 0.5),
        "img_ids": torch.arange(12.0)[:, None].repeat(1, 3),
        "txt_ids": torch.zeros(5, 3),
    }


def adapted(model: nn.Module, leaves_out: str = "norm") -> Adapter:
    """An adapter of all linear layers of blocks but those of some name, whose weights are not at their start."""
    layers = [path for path, one in model.named_modules() if isinstance(one, nn.Linear) and "blocks." in path]
    adapter = Adapter(model, AdapterConfig(rank=4), [re.escape(path) for path in layers if leaves_out not in path], 0)
    source = torch.Generator().manual_seed(3)
    for weight in adapter.parameters():
        weight.data += torch.randn(weight.shape, generator=source) * 0.05
    with adapter.finding_siblings(), torch.no_grad():
        model(**given(model))
    return adapter


def gradients(model: nn.Module, adapter: Adapter, backward: Callable[[Tensor], None] = Tensor.backward) -> list[Tensor]:
    """Of all trained weights, after one pass."""
    backward(model(**given(model)).sample.square().mean())
    found = [weight.grad for weight in adapter.parameters()]
    for weight in adapter.parameters():
        weight.grad = None
    assert all(one is not None for one in found)
    return found  # type: ignore[return-value]


def products(work: Callable[[], object]) -> Counter[Any]:
    """The matrix products and attentions that are computed: how many of each operation and shapes."""
    seen: Counter[Any] = Counter()

    class Count(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func.overloadpacket in flop_registry or "scaled_dot_product" in func.name():
                seen[func.overloadpacket, tuple(tuple(one.shape) for one in args if isinstance(one, Tensor))] += 1
            return func(*args, **(kwargs or {}))

    with Count():
        work()
    return seen
