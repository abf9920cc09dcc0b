"""Where a model runs, and what it takes."""

from __future__ import annotations

import torch

from trainer_core.families.device import peak_memory, pick_dtype


def test_peak_memory_is_a_peak() -> None:
    """It rises with what is used (256 MB here) and does not fall when that is given back."""
    cpu = torch.device("cpu")
    before = peak_memory(cpu)
    block = torch.ones(64 << 20)
    during = peak_memory(cpu)
    assert during >= block.nbytes
    del block
    assert before <= during <= peak_memory(cpu)


def test_auto_precision_on_a_cpu_is_float32() -> None:
    assert pick_dtype("auto", torch.device("cpu")) is torch.float32
    assert pick_dtype("bfloat16", torch.device("cpu")) is torch.bfloat16
