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


def part_of(part: int, whole: int) -> str:
    """Of so many: "8.6 of 11.9 billion ", "3 of 4 "."""
    unit, name = next(one for one in ((10**9, "billion "), (10**6, "million "), (1, "")) if max(whole, 1) >= one[0])
    return f"{part / unit:.{1 if name else 0}f} of {whole / unit:.{1 if name else 0}f} {name}"


def duration(seconds: float) -> str:
    """0:07, 12:34, 1:02:03."""
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
