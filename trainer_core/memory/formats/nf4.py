"""NF4 by bitsandbytes (Dettmers et al. 2023): 16 levels of a normal distribution, in groups of 64 with fp32 scales.

Bit for bit what its `Linear4bit` holds without double quantization, which is diffusers' default too.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...errors import ConfigError
from .format import Format, grouped, groups

_COMPUTED = (torch.float32, torch.float16, torch.bfloat16)


class Nf4(Format):
    group = 64

    def blank(self, rows: int, columns: int, device: torch.device) -> dict[str, Tensor]:
        number = groups(columns, self.group)
        return {
            "codes": torch.empty(rows, number * self.group // 2, dtype=torch.uint8, device=device),
            "scale": torch.empty(rows, number, device=device),
        }

    def encode(self, weight: Tensor) -> dict[str, Tensor]:
        codes, state = _functions().quantize_4bit(
            grouped(weight, self.group).contiguous(), blocksize=self.group, quant_type="nf4"
        )
        return {"codes": codes.view(len(weight), -1), "scale": state.absmax.view(len(weight), -1)}

    def decode(self, parts: dict[str, Tensor], columns: int, dtype: torch.dtype) -> Tensor:
        codes, functions = parts["codes"], _functions()
        state = functions.QuantState(
            absmax=parts["scale"].flatten(),
            shape=torch.Size((len(codes), 2 * codes.shape[1])),
            dtype=dtype if dtype in _COMPUTED else torch.float32,
            blocksize=self.group,
            quant_type="nf4",
        )
        found: Tensor = functions.dequantize_4bit(codes.view(-1, 1), state)
        return found[:, :columns].to(dtype).contiguous()


def _functions() -> Any:
    try:
        import bitsandbytes.functional as functions
    except ImportError:
        raise ConfigError(
            "model.quantization: nf4 needs bitsandbytes (pip install bitsandbytes). 4bit needs nothing, and loses less"
        ) from None
    return functions
