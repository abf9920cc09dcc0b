"""How fast weights come to the device."""

from __future__ import annotations

import torch


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
