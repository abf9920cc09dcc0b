"""Blocks that change what they are given, compiled: what comes out, what they leave behind, and all gradients are those
of the blocks as they are."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from functorch.compile import make_boxed_func
from torch import Tensor, nn
from torch._dynamo.backends.common import aot_autograd
from torch.utils._python_dispatch import _get_current_dispatch_mode

from trainer_core.memory import out_of_place
from trainer_core.memory.compiled import compile_blocks
from trainer_core.memory.recompute import recompute_blocks
from trainer_core.memory.saved import memory, mutable_saved
from trainer_core.runs.events import Event, Warning


@pytest.fixture(autouse=True)
def _no_compiler(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Everything but the C++ compiler, which takes a minute."""
    from torch._dynamo import lookup_backend

    monkeypatch.setattr("torch._dynamo.lookup_backend", lambda _name: lookup_backend("aot_eager"))
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


class Streams(nn.Module):
    """Two streams that a block adds to, as FLUX's and its kin do, and gives back."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        both = torch.cat([x, y], 1)
        x += self.first(nn.functional.layer_norm(both, (6,)))[:, :3]
        x += self.second(x.square()).tanh()
        y.add_(self.second(nn.functional.layer_norm(y, (6,))))
        y *= 1.5
        return x, y


class Left(Streams):
    """Changes what it is given and gives back something else."""

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        x.mul_(self.first(x).sigmoid())
        return self.second(x), y - 1


class Own(Streams):
    """Changes what it made itself, once as a whole and once in part, and is given something of another precision."""

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        half = self.first(x).bfloat16()
        half += y
        half[:, 1:] *= 2
        part = half.unflatten(-1, (2, 3))
        part -= 0.5
        return half.float() * x, y.clone()


class Part(Streams):
    """Changes a part of an input."""

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        z = self.first(x.sin())
        x[:, 1:] += z[:, 1:]
        return x, y * 2


class Viewed(Streams):
    """Reads what it has changed as another shape of it."""

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        flat = x.flatten(1)
        x *= self.first(x)
        return flat.unflatten(1, (-1, 6)), y * 2


class Copied(Streams):
    """Changes an input by something that computes nothing."""

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        z = self.first(x)
        x.copy_(z * y)
        return x, y * 2


def passed(make: Callable[[], nn.Module], way: str, told: list[Event]) -> list[Tensor]:
    """Two blocks among operations that keep what blocks change: results, what is left of their inputs, gradients."""
    blocks = [make(), make()]
    if way != "plain":
        compile_blocks(blocks, told.append, change_inputs=True)
    if "recomputed" in way:
        model = nn.ModuleList(blocks)
        recompute_blocks(model, blocks, keep_attention="attention" in way)
    found: list[Tensor] = []
    for seed in range(2):  # compiled, and then as compiled
        source = torch.Generator().manual_seed(seed)
        a, b = (torch.randn(2, 3, 6, generator=source).requires_grad_() for _ in range(2))
        with mutable_saved():
            x, y = a.sin(), b.sin()
            kept = x.exp() * x  # keeps x
            for block in blocks:
                given = x, y
                x, y = block(x, y)
                kept = kept + x.square() + given[0] * given[1]
            y += 1
            (kept.sum() + (x * y).sum()).backward()
        weights = [one.grad for block in blocks for one in block.parameters() if one.grad is not None]
        assert a.grad is not None
        assert b.grad is not None
        found += [x.detach(), y.detach(), kept.detach(), a.grad, b.grad, *weights]
    return found


WAYS = ["compiled", "compiled and recomputed", "compiled and recomputed but for attention"]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("make", [Streams, Left, Own])
def test_all_is_as_if_it_were_not_compiled(make: Any, way: str) -> None:
    told: list[Event] = []
    torch._dynamo.utils.counters.clear()
    for found, expected in zip(passed(make, way, told), passed(make, "plain", told), strict=True):
        torch.testing.assert_close(found, expected)
    assert not told
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 1


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("make", [Part, Viewed, Copied])
def test_what_cannot_be_written_otherwise_runs_as_it_is_and_the_user_is_told(make: Any, way: str) -> None:
    told: list[Event] = []
    for found, expected in zip(passed(make, way, told), passed(make, "plain", told), strict=True):
        torch.testing.assert_close(found, expected)
    (warning,) = told
    assert isinstance(warning, Warning)
    assert "input" in warning.message


def test_one_tensor_given_twice_is_changed_where_it_is_read() -> None:
    told: list[Event] = []
    found = []
    for way in ("plain", "compiled"):
        block = Streams()
        if way == "compiled":
            compile_blocks([block], told.append, change_inputs=True)
        for same in (False, True):
            a = torch.linspace(-1, 1, 36).reshape(2, 3, 6).requires_grad_()
            with mutable_saved():
                x = a.sin()
                results = block(x, x[:] if same else x.clone())
                sum(one.square().sum() for one in results).backward()
            found.append([*(one.detach() for one in results), a.grad])
    for one, other in zip(found[:2], found[2:], strict=True):
        for tensor, expected in zip(one, other, strict=True):
            torch.testing.assert_close(tensor, expected)


def test_a_block_gives_back_what_it_was_given() -> None:
    told: list[Event] = []
    block = Streams().requires_grad_(False)
    compile_blocks([block], told.append, change_inputs=True)
    with mutable_saved():
        x, y = (torch.ones(2, 3, 6, requires_grad=True).sin() for _ in range(2))
        results = block(x, y)
        assert [memory(one) for one in results] == [memory(x), memory(y)]
        assert results[0] is x
        assert results[1] is y
    assert not told


def test_code_that_changes_an_input_all_the_same_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(out_of_place, "rewrite", lambda graph: ({}, len(graph.graph.output_node().args[0])))
    block = Left().requires_grad_(False)
    compile_blocks([block], lambda _: None, change_inputs=True)
    with torch.no_grad(), pytest.raises(out_of_place.ChangedInputError):
        block(torch.ones(2, 3, 6), torch.ones(2, 3, 6))


def test_gradients_compute_unwatched_and_what_comes_then_is_watched_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also after one that failed."""
    modes: list[Any] = []

    def compiled(graph: Any, example: Any) -> Any:
        def backward(graph: Any, _example: Any) -> Any:
            def run(*given: Any) -> Any:
                modes.append(_get_current_dispatch_mode())
                if len(modes) == 2:
                    raise ValueError("no gradient")
                return graph(*given)

            return make_boxed_func(run)

        return aot_autograd(fw_compiler=lambda graph, _: make_boxed_func(graph), bw_compiler=backward)(graph, example)

    monkeypatch.setattr("torch._dynamo.lookup_backend", lambda _: compiled)
    block = Streams().requires_grad_(False)
    compile_blocks([block], lambda _: None, change_inputs=True)
    for number in range(4):
        with mutable_saved():
            active = _get_current_dispatch_mode()
            x = torch.ones(2, 3, 6, requires_grad=True)
            y = x.sin()
            y.register_hook(lambda _: modes.append(_get_current_dispatch_mode()))
            loss = sum(one.sum() for one in block(y, x.cos()))
            if number == 1:
                with pytest.raises(ValueError, match="no gradient"):
                    loss.backward()
            else:
                loss.backward()
                assert modes.pop() is active
            assert _get_current_dispatch_mode() is active
    assert modes == [None] * 4
