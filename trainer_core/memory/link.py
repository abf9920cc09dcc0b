"""How fast weights come to the device, and from when on that costs no time."""

from __future__ import annotations

import torch


def transfer_seconds(size: float, link: float) -> float:
    """How long so many bytes take over a link of so many bytes per second."""
    return size / link


def tokens_to_hide(share: float, bits: float, flops: float, link: float) -> float:
    """From how many tokens per step on a streamed block comes while the others compute.

    A forward pass makes two operations per weight and token. A backward pass that computes its blocks again makes four,
    and half as many tokens do.

    Args:
        share: of the weights, that are streamed.
        bits: per weight.
        flops: operations that the device achieves per second.
        link: bytes per second.
    """
    return share * bits * flops / (16 * link)


def measured_link(device: torch.device, size: int = 64 * 2**20) -> float | None:
    """Bytes per second from page-locked host memory to a CUDA device; None for others. Not run on a GPU yet."""
    if device.type != "cuda":
        return None
    source = torch.empty(size, dtype=torch.uint8, pin_memory=True)
    target = torch.empty(size, dtype=torch.uint8, device=device)
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    with torch.cuda.device(device):
        target.copy_(source, non_blocking=True)  # the first one wakes the link up
        start.record()
        for _ in range(4):
            target.copy_(source, non_blocking=True)
        end.record()
        end.synchronize()
    return 4 * size / (start.elapsed_time(end) / 1000)
