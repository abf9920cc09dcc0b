"""Small blocks with what ComfyUI's do to what they are given, and their gradients with and without recomputing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from trainer_core.memory.recompute import recompute_blocks
from trainer_core.memory.saved import mutable_saved


class Block(nn.Module):
    """A trained layer, and a function of it and of what the block is given."""

    def __init__(self, function: Callable[..., Any], seed: int = 0) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        for weight in self.layer.parameters():
            weight.data = torch.randn(weight.shape, generator=torch.Generator().manual_seed(seed))
        self.function, self.runs = function, 0

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        self.runs += 1
        return self.function(self.layer, *args, **kwargs)


def outcome(
    function: Callable[..., Any], around: Callable[..., Any], *, recomputed: bool, dtype: Any = None
) -> tuple[Any, list[Any]]:
    """What `around(blocks, x)` gives, and the gradients of x and of three blocks' weights."""
    blocks = nn.ModuleList(Block(function, seed) for seed in range(3)).to(dtype or torch.float32)
    x = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(9)).to(dtype or torch.float32).requires_grad_()
    if recomputed:
        recompute_blocks(blocks, blocks)
        with mutable_saved():
            said = around(blocks, x * 1)
            said.float().square().mean().backward()
        assert [block.runs for block in blocks] == [2, 2, 2]
    else:
        said = around(blocks, x * 1)
        said.float().square().mean().backward()
    return said.detach(), [x.grad, *(weight.grad for weight in blocks.parameters())]


def check(
    changes: Callable[..., Any],
    plain: Callable[..., Any],
    around: Callable[..., Any],
    around_plain: Callable[..., Any] | None = None,
    dtype: Any = None,
) -> None:
    """Blocks that change their inputs, recomputed, against blocks that do not, by ordinary autograd."""
    expected, slopes = outcome(plain, around_plain or around, recomputed=False, dtype=dtype)
    found, ours = outcome(changes, around, recomputed=True, dtype=dtype)
    assert torch.equal(found, expected)
    for one, another in zip(ours, slopes, strict=True):
        torch.testing.assert_close(one, another)
        assert one.dtype == another.dtype


def in_turn(blocks: Any, x: Any) -> Any:
    for block in blocks:
        x = block(x)
    return x
