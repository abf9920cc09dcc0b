"""Dropout by counter: what is dropped, and that it is the same wherever it is computed."""

from __future__ import annotations

import math

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from trainer_core.adapters.dropout import SeededDropout, kept
from trainer_core.randomness import seed_of

from .test_fused import RANK, TOKENS, D, given, gradients, kept_memory, made

CPU = torch.device("cpu")


def test_dropout_drops_the_same_in_both_directions_and_when_recomputed() -> None:
    model, adapter = made(dropout=0.5)
    model.train()
    adapter.seed_dropout(1, 2)
    plain = gradients(model, adapter, given())
    assert all(map(torch.equal, plain, gradients(model, adapter, given())))
    twice = gradients(lambda x: checkpoint(model, x, use_reentrant=False), adapter, given())  # type: ignore[arg-type]
    assert all(map(torch.equal, plain, twice))
    # by the formula, with masks as a plain layer sees them
    q, x = adapter.layers["q"], given().requires_grad_()
    mask = q.dropout(torch.ones_like(x)).detach()
    assert set(mask.unique().tolist()) == {0, 2}
    down, up = q.trained.values()
    y, exact = q(x), q.base_layer(x) + (x * mask) @ down.T @ up.T
    torch.testing.assert_close(y, exact, rtol=1e-5, atol=1e-5)
    wanted = (x, down, up)
    pairs = (torch.autograd.grad(one.square().sum(), wanted) for one in (y, exact))
    for mine, expected in zip(*pairs, strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-4, atol=1e-4)


def test_dropout_keeps_no_mask() -> None:
    model, adapter = made(dropout=0.5)
    model.train()
    adapter.seed_dropout(1, 2)
    x = given().requires_grad_()
    q, k = adapter.layers["q"], adapter.layers["k"]
    assert kept_memory(lambda: (q(x), k(x))) == sorted(
        [(torch.float32, TOKENS * D), *[(torch.float32, TOKENS * RANK)] * 2], key=str
    )


def test_what_is_dropped_looks_random() -> None:
    """The share for several rates, and no relation between neighbours, rows, layers, steps or samples."""
    rows, columns = 500, 512
    for rate in (0.05, 0.3, 0.9):
        one, *others = (
            (~kept(range(*samples), rows * columns // samples[1], seed_of("lora_dropout", *place), rate, CPU))
            .reshape(rows, columns)
            .double()
            for place, samples in ((("q", 0), (0, 1)), (("q", 1), (0, 1)), (("k", 0), (0, 1)), (("q", 0), (0, rows)))
        )
        tolerance = 5 * math.sqrt(rate * (1 - rate) / one.numel())
        assert one.mean().item() == pytest.approx(rate, abs=tolerance)
        assert (one.mean(0) - rate).abs().max() < 6 * math.sqrt(rate * (1 - rate) / rows)
        pairs = [(one[:, 1:], one[:, :-1]), (one[:, 2:], one[:, :-2]), (one[1:], one[:-1])]
        pairs += [(one, other) for other in others[:2]]
        pairs += [(others[2][1:], others[2][:-1]), (others[2][1:], one[:-1])]
        for left, right in pairs:
            both = (left * right).mean().item()
            assert both == pytest.approx(rate**2, abs=6 * rate / math.sqrt(left.numel()))


def test_dropout_of_an_odd_count() -> None:
    dropout = SeededDropout(0.5, "layer")
    dropout.place = (1,)
    x = torch.ones(7)
    assert torch.equal(dropout(x), dropout(torch.ones(8))[:7])


def test_dropout_of_a_part_is_that_of_the_whole() -> None:
    """Of samples with an odd number of elements too."""
    dropout = SeededDropout(0.5, "layer")
    dropout.place, dropout.part = (1,), (0, 5)
    whole = dropout(torch.ones(5, 3, 7))
    for first, samples in ((0, 2), (1, 1), (2, 3), (4, 1)):
        dropout.part = (first, samples)
        assert torch.equal(dropout(torch.ones(samples, 3, 7)), whole[first : first + samples])
