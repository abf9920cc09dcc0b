"""What is kept for the backward pass has the values that it had, whatever is written where it lies."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from trainer_core.memory.saved import keep, mutable_saved, unwatched, watched


def test_only_changed_inputs_are_copied() -> None:
    """A clone costs memory: what no one changes is kept as it is."""
    with mutable_saved():
        base = torch.arange(6.0)
        whole, part, other = keep(base), keep(base[4:]), keep(torch.ones(3))
        again = keep(base.detach())
        assert whole.value().data_ptr() == base.data_ptr()
        base[0] = 9  # another address than that of what is kept
        assert whole.value().tolist() == [0, 1, 2, 3, 4, 5]
        assert part.value().tolist() == [4, 5]
        assert whole.value().data_ptr() != base.data_ptr()
        clone = whole.value()
        assert again.value() is clone
        base.zero_()
        assert whole.value() is clone
        assert other.value().tolist() == [1, 1, 1]


def test_saved_values_outlive_their_tensors() -> None:
    """New tensors at an old one's address are not taken for it, as torch's own context does now and then."""
    for _ in range(100):
        weight = torch.ones(1, requires_grad=True)
        with mutable_saved():
            total: Any = 0
            for value in range(1, 5):
                x = torch.full((1000,), float(value)) + 0
                total = total + (weight * x).sum()
                x.zero_()
                del x
            total.backward()
        assert weight.grad.item() == 10_000


def test_a_change_through_another_view_is_noticed() -> None:
    """Where torch's own context gives wrong gradients without an error."""
    weight = torch.ones(3, requires_grad=True)
    with mutable_saved():
        base = torch.arange(6.0)
        loss = (weight * base[3:]).sum()
        base.zero_()
        loss.backward()
    assert weight.grad.tolist() == [3, 4, 5]


def test_contexts_nest() -> None:
    weight = torch.ones(2, requires_grad=True)
    with mutable_saved():
        with mutable_saved():
            x = torch.ones(2)
            loss = (weight * x).sum()
        x.zero_()
        loss.backward()
    assert weight.grad.tolist() == [1, 1]


@pytest.mark.parametrize(
    "change",
    [
        lambda x: x.add_(1),
        lambda x: x.__setitem__(0, 5),
        lambda x: torch.add(x, 1, out=x),
        lambda x: torch._foreach_add_([x], 1),
        lambda x: torch._foreach_copy_([x.view(3, 2)], [torch.ones(3, 2)]),
        lambda x: x.view(torch.uint8)[8:16].fill_(3),
        lambda x: x.detach().t().copy_(torch.zeros(6)),
        lambda x: x.data.zero_(),
    ],
)
def test_every_way_to_write(change: Callable[[Any], Any]) -> None:
    with mutable_saved():
        base = torch.arange(6.0)
        kept = keep(base[1:4])
        change(base)
        assert base.tolist() != [0, 1, 2, 3, 4, 5]
        assert kept.value().tolist() == [1, 2, 3]


def test_a_pass_that_failed_leaves_nothing_behind() -> None:
    """An operation that keeps its own result, such as exp, is held by it: gc does not see that circle."""
    x = torch.ones(3, requires_grad=True)
    with mutable_saved():
        y = x.exp()
        kept = weakref.ref(y)
        del y
        gc.collect()
    assert kept() is None


def test_a_change_that_nobody_saw_is_an_error() -> None:
    x = torch.ones(3, requires_grad=True)
    with mutable_saved():
        y = x * 2
        z = y.square()
        with unwatched():
            y += 1
        with pytest.raises(RuntimeError, match="nobody saw"):
            z.sum().backward()


def test_watched_again_what_is_kept_is_copied_before_a_change() -> None:
    x = torch.ones(3, requires_grad=True)
    with mutable_saved():
        y = x * 2
        z = y.square()
        with unwatched():
            assert not is_in_torch_dispatch_mode()
            with watched():
                y += 1
        z.sum().backward()
    assert torch.equal(x.grad, torch.full((3,), 8.0))
