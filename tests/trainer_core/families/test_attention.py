"""Attention of few tokens as products is attention, forward and backward; and where it is used."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from trainer_core.families.parts.attention import FEW, by_products, is_of_few


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).requires_grad_()


def test_it_is_attention_with_its_gradient() -> None:
    """By its formula for one query after the other, of fewer queries than keys."""
    query, key, value = drawn(1, 2, 3, 2, 4), drawn(2, 2, 5, 2, 4), drawn(3, 2, 5, 2, 4)
    y = by_products(query, key, value)
    for sample in range(2):
        for head in range(2):
            for number in range(3):
                scores = (key[sample, :, head] * query[sample, number, head]).sum(-1) / 2  # √4
                weights = scores.exp() / scores.exp().sum()
                expected = (weights[:, None] * value[sample, :, head]).sum(0)
                torch.testing.assert_close(y[sample, number, head], expected)
    assert torch.autograd.gradcheck(by_products, (query, key, value))


@pytest.mark.parametrize("differs", ["nothing", "not compiled", "tokens", "precision", "device", "autocast"])
def test_it_is_used_compiled_on_a_cpu_in_float32_for_few_tokens(differs: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: differs != "not compiled")
    dtype = torch.bfloat16 if differs == "precision" else torch.float32
    device = "meta" if differs == "device" else "cpu"
    key = torch.zeros(1, FEW + (differs == "tokens"), 1, 8, dtype=dtype, device=device)
    with torch.autocast("cpu", torch.bfloat16, enabled=differs == "autocast"):
        assert is_of_few(key[:, :3], key) == (differs == "nothing")
