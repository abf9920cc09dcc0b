"""How long a step takes compared to one that keeps everything, by its FLOPs and by what is copied meanwhile.

A block that is streamed is brought twice: forward, and backward for its recomputation and gradient together. While one
block computes the next is copied; what counts is the longer of the two. Forward, with T tokens in a step, b bits for
each weight, F FLOP/s, W bytes/s and the share s of blocks that are streamed, copies hide if T >= s * b * F / (16 * W).
"""

from __future__ import annotations

from dataclasses import dataclass

_EDGE = 4096
"""Of the matrices whose product is timed."""
_ACHIEVED = 2 / 3
"""Of the speed of such a product alone, in a step."""


@dataclass(frozen=True)
class Rates:
    """What a device does in a second."""

    flops: float = 130e12
    """Products in half precision, as training achieves them; an RTX 4090's if nothing is known."""
    link: float = 22e9
    """Bytes from host memory: PCIe 4.0 x16, pinned."""


def relative_time(kept: float, flops: float, streamed: float, moved: float, rates: Rates) -> float:
    """Time of a step as a multiple of that of one which keeps everything and streams nothing.

    Args:
        kept: FLOPs of a step that keeps everything: forward and backward pass.
        flops: those of this one; what is more is recomputed.
        streamed: bytes of weights that are copied to the device, forward and again backward.
        moved: bytes of blocks' inputs that go to host memory, and come back.
    """
    forward, backward = kept / 2 / rates.flops, (flops - kept / 2) / rates.flops
    out, back = max(streamed, moved) / rates.link, (streamed + moved) / rates.link  # a link works in both directions
    return (max(forward, out) + max(backward, back)) * rates.flops / kept


def measured(device: object) -> Rates:
    """The rates of a CUDA device, by a product and a copy of a few milliseconds; else the usual ones.

    It has not been run on a GPU.
    """
    import torch

    from .link import measured_link

    if not isinstance(device, torch.device) or device.type != "cuda":
        return Rates()
    half = torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    matrix = torch.ones(_EDGE, _EDGE, dtype=half, device=device)
    matrix @ matrix
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(8):
        matrix @ matrix
    end.record()
    end.synchronize()
    alone = 8 * 2 * _EDGE**3 / (start.elapsed_time(end) / 1000)
    return Rates(flops=alone * _ACHIEVED, link=measured_link(device) or Rates().link)
