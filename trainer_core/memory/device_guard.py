"""Tracing and compiling in one thread after another, where torch is built for CUDA and finds no GPU."""

from __future__ import annotations

import threading
from functools import cache

import torch


@cache
def keep_device_guard() -> None:
    """To be called before fake tensors are made or code is compiled.

    Without a GPU torch then makes a stand-in for its device guard, in memory of the thread that is the first to ask,
    and uses it in all threads: once that one has ended, the process crashes (torch 2.11). So one asks that never ends.
    """
    make = getattr(torch._C, "_ensureCUDADeviceGuardSet", None)  # noqa: SLF001
    if make is None or torch.cuda.is_available():
        return
    made = threading.Event()

    def live() -> None:
        make()
        made.set()
        threading.Event().wait()

    threading.Thread(target=live, name="lora-foundry device guard", daemon=True).start()
    made.wait()
