"""LoRA (Hu et al. 2021) on a frozen denoiser, through peft: y = W x + (alpha / rank) · B A x."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..config import AdapterConfig
from ..errors import AdapterError
from ..randomness import generator, seed_of

_NAME = "default"
"""peft's name of the one adapter."""


class SeededDropout(nn.Module):
    """Dropout whose mask is a function of (place, layer), so that it is the same when activations are recomputed."""

    def __init__(self, rate: float, layer: str) -> None:
        super().__init__()
        self.rate, self.layer = rate, layer
        self.place: tuple[int | str, ...] = ()

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or not self.place:
            return x
        source = torch.Generator(device=x.device).manual_seed(seed_of("lora_dropout", self.layer, *self.place))
        keep = torch.rand(x.shape, generator=source, device=x.device) >= self.rate
        return x * keep / (1 - self.rate)


class LoraAdapter:
    """The LoRA layers inside one denoiser. A starts uniform (Kaiming, as in the reference), B at zero."""

    def __init__(self, denoiser: nn.Module, config: AdapterConfig, targets: Sequence[str], seed: int) -> None:
        """Puts layers on every linear module whose whole path matches one of `targets`.

        Raises:
            AdapterError: if none does.
        """
        from peft import LoraConfig, inject_adapter_in_model

        self.config = config
        lora = LoraConfig(
            r=config.rank,
            lora_alpha=config.scale * config.rank,  # type: ignore[arg-type]  # peft computes with it as a float
            lora_dropout=config.dropout,
            target_modules="|".join(f"(?:{target})" for target in targets),
        )
        first = next(denoiser.parameters())
        try:
            # peft and nn.Linear draw their own start from the global generators, which are not ours to move
            with torch.random.fork_rng(devices=[first.device] if first.is_cuda else []):
                inject_adapter_in_model(lora, denoiser, adapter_name=_NAME)
        except ValueError as error:
            raise AdapterError(f"adapter.targets: no layer of the base matches: {error}") from None
        self.layers: dict[str, Any] = {
            name: module
            for name, module in denoiser.named_modules()
            if hasattr(module, "lora_A") and _NAME in module.lora_A
        }
        for name, layer in self.layers.items():
            down, up = layer.lora_A[_NAME].weight, layer.lora_B[_NAME].weight
            # kaiming_uniform with a = √5, as nn.Linear and the reference do, is U(±1 / √in)
            bound = 1 / math.sqrt(down.shape[1])
            start = torch.empty(down.shape).uniform_(-bound, bound, generator=generator(seed, "lora_init", name))
            # peft gives adapters of a bf16 base that precision; ours are trained in fp32 always
            layer.lora_A[_NAME].weight = nn.Parameter(start.to(down.device))
            layer.lora_B[_NAME].weight = nn.Parameter(torch.zeros(up.shape, device=up.device))
            if config.dropout > 0:
                layer.lora_dropout[_NAME] = SeededDropout(config.dropout, name)

    def parameters(self) -> list[nn.Parameter]:
        """Trainable parameters, fp32, in a fixed order: A and B of each layer."""
        return list(self._named().values())

    def state(self) -> dict[str, Tensor]:
        """Copies of all weights: `<module path>.lora_A.weight` (rank, in) and `.lora_B.weight` (out, rank)."""
        return {name: parameter.detach().cpu().clone() for name, parameter in self._named().items()}

    def load(self, state: dict[str, Tensor]) -> None:
        """Sets all weights.

        Raises:
            AdapterError: if names or shapes differ.
        """
        mine = self._named()
        if mine.keys() != state.keys():
            odd = sorted(mine.keys() ^ state.keys())
            raise AdapterError(f"the saved LoRA has other layers than this job's: {odd[0]} and {len(odd) - 1} more")
        for name, parameter in mine.items():
            if parameter.shape != state[name].shape:
                raise AdapterError(
                    f"the saved LoRA's {name} has shape {tuple(state[name].shape)}, this job's {tuple(parameter.shape)}"
                )
            parameter.data.copy_(state[name])

    def weights(self) -> dict[str, tuple[Tensor, Tensor]]:
        """(A, B) of each layer by module path, on the CPU."""
        state = self.state()
        return {name: (state[f"{name}.lora_A.weight"], state[f"{name}.lora_B.weight"]) for name in self.layers}

    def seed_dropout(self, *place: int | str) -> None:
        """Says where the next forward pass is, for dropout."""
        if self.config.dropout > 0:
            for layer in self.layers.values():
                layer.lora_dropout[_NAME].place = place

    def set_strength(self, strength: float) -> None:
        """Multiplies the adapter's output from now on; 1 is normal."""
        for layer in self.layers.values():
            layer.scaling[_NAME] = self.config.scale * strength

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """The base as it is without the adapter."""
        for layer in self.layers.values():
            layer.enable_adapters(False)
        try:
            yield
        finally:
            for layer in self.layers.values():
                layer.enable_adapters(True)

    def _named(self) -> dict[str, nn.Parameter]:
        named = {}
        for name, layer in self.layers.items():
            named[f"{name}.lora_A.weight"] = layer.lora_A[_NAME].weight
            named[f"{name}.lora_B.weight"] = layer.lora_B[_NAME].weight
        return named
