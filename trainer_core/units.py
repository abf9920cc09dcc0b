"""Numbers for people: one unit for sizes, one way to write a time."""

from __future__ import annotations

GB = 2**30
"""Bytes in what we call a GB, of memory and on disks: that of GPUs' names, nvidia-smi, ComfyUI and Windows."""


def size(count: float) -> str:
    """Bytes: 512 B, 3.4 MB, 1.2 GB."""
    for unit in ("B", "kB", "MB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} GB"


def duration(seconds: float) -> str:
    """0:07, 12:34, 1:02:03."""
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
