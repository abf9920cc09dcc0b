"""Where and how precisely a model runs."""

from __future__ import annotations

import gc
import sys
from contextlib import nullcontext
from typing import TYPE_CHECKING

from ..errors import ConfigError, first_line

if TYPE_CHECKING:
    import torch


def pick_device(name: str) -> torch.device:
    """The device of a name; `auto` is the first GPU, else the CPU.

    Raises:
        ConfigError: if there is no such device here.
    """
    import torch

    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda", torch.cuda.current_device())
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ConfigError(f"model.device: {name!r} cannot be used here: {first_line(error)}") from None
    return device


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """The dtype of a name; `auto` is bfloat16 where the GPU computes it, else float32."""
    import torch

    if name == "auto":
        fast = device.type == "cuda" and torch.cuda.is_bf16_supported()
        return torch.bfloat16 if fast else torch.float32
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def upload(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A tensor of the CPU on a device. A GPU copies out of pinned memory by itself, and is waited for otherwise."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def release_memory(device: torch.device) -> None:
    """Gives freed memory back, so that the next part of a model finds it."""
    import torch

    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory was not enough: the GPU's, or the computer's."""
    import torch

    if isinstance(error, torch.OutOfMemoryError):
        return True
    # the CPU's and Apple's allocators raise no class of their own
    told = ("can't allocate memory", "not enough memory", "MPS backend out of memory")
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(text in str(error) for text in told)
    )


def peak_memory(device: torch.device) -> int:
    """Most memory used so far, in bytes: of the GPU where we run on one, else of this process."""
    import torch

    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    if sys.platform == "win32":
        import psutil

        return int(psutil.Process().memory_info().peak_wset)
    import resource

    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, Linux kilobytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def free_memory(device: torch.device) -> int:
    """Bytes that are free on a device; on a CPU those of the computer."""
    import torch

    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + unused
    if device.type == "mps":
        return int(torch.mps.recommended_max_memory()) - int(torch.mps.current_allocated_memory())
    import psutil

    return int(psutil.virtual_memory().available)


def forget_peak(device: torch.device) -> None:
    """The most memory used is that from now on, where the device counts it."""
    import torch

    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def training_memory(device: torch.device) -> int | None:
    """Most bytes that tensors took since `forget_peak`; None where nobody counts them (on a CPU)."""
    return peak_memory(device) if device.type == "cuda" else None


def autocast(device: torch.device, dtype: torch.dtype) -> torch.autocast | nullcontext[None]:
    """Runs fp32 LoRA layers in a model's precision; nothing to do where that is fp32."""
    import torch

    return nullcontext() if dtype == torch.float32 else torch.autocast(device.type, dtype=dtype)
