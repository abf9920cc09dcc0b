"""Layers as quantizing nodes write them: no nn.Linear, a packed 4-bit weight, a forward pass without graph."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Packed(nn.Module):
    """Two 4-bit codes in each byte of a flat `weight`, and a scale for each row."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        rows = layer.weight.detach().flatten(1)
        scale = rows.abs().amax(1, keepdim=True) / 7
        codes = ((rows / scale.clamp_min(1e-12)).round() + 8).to(torch.uint8).flatten()
        self.register_buffer("weight", codes[::2] << 4 | codes[1::2])
        self.register_buffer("scale", scale)
        self.bias = layer.bias
        self.shape = tuple(layer.weight.shape)

    def dequantize(self) -> Tensor:
        codes = torch.stack([self.weight >> 4, self.weight & 15], -1)  # type: ignore[operator]
        rows = (codes.flatten().view(self.shape[0], -1).to(self.scale.dtype) - 8) * self.scale  # type: ignore[operator, arg-type]
        return rows.view(self.shape)


class PackedLinear(Packed):
    def __init__(self, layer: nn.Linear) -> None:
        super().__init__(layer)
        self.in_features, self.out_features = layer.in_features, layer.out_features

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.dequantize().to(x.dtype), self.bias)


class PackedConv(Packed):
    def __init__(self, layer: nn.Conv2d) -> None:
        super().__init__(layer)
        self.in_channels, self.out_channels, self.kernel_size = layer.in_channels, layer.out_channels, layer.kernel_size
        self.stride, self.padding = layer.stride, layer.padding

    @torch.inference_mode()
    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.dequantize().to(x.dtype), self.bias, self.stride, self.padding)  # type: ignore[arg-type]


def packed(model: nn.Module, leave: tuple[str, ...] = ()) -> nn.Module:
    """A copy of a model with packed layers, but for those to leave."""
    return _replaced(model, leave, {nn.Linear: PackedLinear, nn.Conv2d: PackedConv})


def dequantized(model: nn.Module) -> nn.Module:
    """A copy of a model of which packed layers are torch's own again, with the weights that they stand for."""
    return _replaced(model, (), {PackedLinear: _linear, PackedConv: _conv})


def _linear(layer: Any) -> nn.Module:
    return _with_weights(nn.Linear(layer.in_features, layer.out_features, layer.bias is not None), layer)


def _conv(layer: Any) -> nn.Module:
    sizes = (layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride, layer.padding)
    return _with_weights(nn.Conv2d(*sizes, bias=layer.bias is not None), layer)


def _with_weights(plain: Any, layer: Packed) -> nn.Module:
    plain.weight.data = layer.dequantize()
    if layer.bias is not None:
        plain.bias.data = layer.bias.detach().clone()
    plain.requires_grad_(False)
    return plain  # type: ignore[no-any-return]


def _replaced(model: nn.Module, leave: tuple[str, ...], by: dict[type, Any]) -> nn.Module:
    model = copy.deepcopy(model)
    for path, module in list(model.named_modules()):
        if type(module) in by and path not in leave:
            model.set_submodule(path, by[type(module)](module))
    return model
