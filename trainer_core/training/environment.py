"""What the last bits of a result depend on beside job, data and base."""

from __future__ import annotations

import platform
from importlib import metadata
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


LAYERS = "adapter layers"
"""What tells how they compute: the order of their sums, and which inputs dropout drops."""
FIRST_LAYERS = "version 1"
"""Of runs that do not tell."""
_LAYERS = "version 3"


def environment(device: torch.device, optimizer: str | None = None) -> dict[str, str]:
    """Versions, device, threads, precision.

    Args:
        optimizer: the job's, whose package counts as well; None for what the encoders make, which no optimizer touches.
    """
    import diffusers
    import PIL
    import torch
    import transformers

    from .optimizers import PACKAGES

    found = {package.__name__: str(package.__version__) for package in (torch, diffusers, transformers)}
    found["Pillow"] = PIL.__version__  # decodes and scales the pictures
    if optimizer:
        found[LAYERS] = _LAYERS
    package = PACKAGES.get(optimizer or "")
    if package and package not in found:
        found[package] = metadata.version(package)
    if device.type == "cuda":
        found["device"] = torch.cuda.get_device_name(device)
    else:
        found["device"] = f"{device.type} ({platform.machine()})"
    if device.type == "cpu":  # sums are cut into one part for each thread, and into vectors as wide as the CPU's
        found["threads"] = str(torch.get_num_threads())
        found["instructions"] = torch.backends.cpu.get_cpu_capability()
    try:
        found["float32 products"] = torch.get_float32_matmul_precision()
    except RuntimeError:  # torch refuses to tell when its older and its newer setting were both used
        found["float32 products"] = "set for each library"
    return found
