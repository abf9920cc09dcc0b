"""Streamed blocks: losses and gradients of a model that is on the device as a whole, bit for bit, whatever the timing.

The copier of these tests delays, reorders and poisons (`adversary.py`). ComfyUI's models are in tests/host/.
"""

from __future__ import annotations

import gc
import itertools
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from trainer_core.errors import TrainingError
from trainer_core.memory.blocks import blocks_of
from trainer_core.memory.recompute import recompute_blocks
from trainer_core.memory.saved import mutable_saved
from trainer_core.memory.streaming import Streamed, evenly_spread

from .adversary import Adversary
from .streamed_training import BLOCKS, Training, flux, noise, same, whole


@pytest.mark.parametrize(
    ("count", "ring"),
    [(count, ring) for count in range(BLOCKS + 1) for ring in (1, 2, 3) if ring <= count or ring == 3],
)
def test_losses_and_weights_are_those_of_the_whole_model(count: int, ring: int) -> None:
    streaming = Training(count, ring, seed=ring)
    assert same(streaming.outcome(), whole())
    assert streaming.copier.allocations == min(count, ring)
    assert bool(streaming.copier.copies) == bool(count)


@pytest.mark.parametrize("quantization", ["int8", "4bit"])
def test_quantized_weights_are_streamed_as_they_are(quantization: str) -> None:
    streaming = Training(4, seed=1, quantization=quantization)
    assert {torch.uint8, torch.int8} & {one.dtype for _, one in flux_tensors(streaming)}
    assert same(streaming.outcome(), Training(recompute=False, quantization=quantization).outcome())


def test_weights_that_cannot_be_page_locked_stay_where_they_are() -> None:
    streaming = Training(4, pins=False)
    before = {name: one.data_ptr() for name, one in flux_tensors(streaming)}
    assert same(streaming.outcome(), whole())
    assert {name: one.data_ptr() for name, one in flux_tensors(streaming)} == before


def flux_tensors(training: Training) -> Iterator[tuple[str, Tensor]]:
    for path, module in training.model.named_modules():
        yield from ((f"{path}.{name}", one) for name, one in vars(module).items() if isinstance(one, Tensor))


@pytest.mark.parametrize("ring", [1, 2, 3])
def test_a_pass_may_fail_anywhere(ring: int) -> None:
    """In any block, without gradients, forward, or when it is computed again: each ring meets every third moment."""
    moments = itertools.count(ring, 3)

    def between(training: Training, _number: int) -> None:
        for _ in range(2):
            fail_at, calls = next(moments), itertools.count(1)

            def fail(*_: object, calls: Iterator[int] = calls, fail_at: int = fail_at) -> None:
                if next(calls) == fail_at:
                    raise MemoryError

            hooks = [block.norm.register_forward_hook(fail) for block in training.model.single_transformer_blocks]
            hooks += [block.ff.register_forward_pre_hook(fail) for block in training.model.transformer_blocks]
            with pytest.raises(MemoryError):
                training.gradients(0)
            for hook in hooks:
                hook.remove()

    streaming = Training(4, ring, seed=7)
    assert same(streaming.outcome(between), whole())
    assert next(moments) > 2 * (3 * BLOCKS - 1)  # passes of a step


def test_a_copy_may_fail() -> None:
    def between(training: Training, number: int) -> None:
        training.copier.fails_at = training.copier.copies + 3 + number
        with pytest.raises(RuntimeError, match="the link is down"):
            training.gradients(0)

    assert same(Training(4, 2, seed=3).outcome(between), whole())


@pytest.mark.parametrize("ring", [1, 2, 3])
def test_passes_without_gradients_come_between(ring: int) -> None:
    def between(training: Training, number: int) -> None:
        mode = torch.no_grad if number % 2 else torch.inference_mode
        with mode():
            assert training.predict(77).isfinite().all()
            training.model.eval()
            assert torch.equal(training.predict(78), training.predict(78))
            training.model.train()

    assert same(Training(3, ring, seed=ring).outcome(between), whole())


def test_blocks_in_any_order_are_copied_when_they_are_called() -> None:
    """Skipped, called twice, backwards."""
    streaming, plain = Training(5, seed=5), Training(recompute=False)
    orders = [[3, 1, 0, 1], [4, 4, 0], [2], [0, 1, 2, 3, 4, 0]]
    for order in orders:
        found = []
        for training in (streaming, plain):
            blocks = [*blocks_of(training.model).values()]
            x = noise((1, 4, 8), 1).requires_grad_()
            y = x
            for number in order:
                y = blocks[number].norm(y, noise((1, 8), 2))[0] if number > 1 else blocks[number].ff(y)
            found.append((y, x))
        assert torch.equal(found[0][0], found[1][0])


class _Allocating(TorchDispatchMode):
    """Counts operations whose results are new memory."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = func(*args, **(kwargs or {}))
        self.count += not any(one.alias_info for one in func._schema.returns)
        return given


def test_nothing_is_allocated_after_the_first_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither slots nor anything else of the streaming's own."""
    streaming, allocating = Training(4), _Allocating()
    first = streaming.step(0)
    assert first.isfinite().all()
    for name in ("copy", "wait", "free"):
        run = getattr(streaming.copier, name)

        def counted(*args: Any, run: Any = run) -> None:
            with allocating:
                run(*args)

        monkeypatch.setattr(streaming.copier, name, counted)
    before = streaming.copier.allocations, streaming.copier.copies
    for number in range(1, 4):
        streaming.step(number)
    assert streaming.copier.allocations == before[0] == 2
    assert streaming.copier.copies > before[1]
    assert allocating.count == 0


def test_copies_are_asked_for_before_they_are_needed_and_no_more_often_than_needed() -> None:
    """In a step with recomputed blocks each streamed block comes twice, but for those at the turn, which stay."""
    streaming = Training(4, ring=2)
    copier = streaming.copier
    streaming.predict(0).mean().backward()
    assert copier.late == 1  # the very first
    copier.copies = 0
    for _ in range(3):
        streaming.predict(0).mean().backward()
    assert copier.copies == 3 * (2 * 4 - 2 * 2)
    with torch.no_grad():  # after the last block comes the first again
        streaming.predict(0)
        copier.copies = 0
        streaming.predict(0)
        assert copier.copies == 4
    streaming.predict(0).mean().backward()
    assert copier.late == 1


def test_streamed_blocks_must_be_recomputed() -> None:
    streaming = Training(2, recompute=False)
    with torch.no_grad():
        streaming.predict(0)
    with pytest.raises(TrainingError, match=r"memory\.layer_offloading"):
        streaming.predict(0)


def test_autograd_notices_when_weights_that_it_keeps_are_overwritten() -> None:
    layer, shown = nn.Linear(3, 3), Training(1)
    weights = shown.streamed._weights[0]
    slot = shown.copier.allocate(weights.size)
    weights.write(slot.memory)
    weight = next(one for one in weights.views(slot.memory) if one.dim() == 2)
    y = nn.functional.linear(noise((2, weight.shape[1]), 0).requires_grad_(), weight).sum()
    weights.write(slot.memory)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward()
    assert layer.weight.requires_grad


def test_number_of_streamed_blocks_may_change_between_steps() -> None:
    def between(training: Training, number: int) -> None:
        training.streamed.choose([2, 5, 0, 3, 1][number])

    assert same(Training(4).outcome(between), whole())


def test_unloaded_in_between_as_when_another_expert_trains() -> None:
    def between(training: Training, _number: int) -> None:
        training.streamed.unload()
        assert all(one.device.type == "cpu" for _, one in flux_tensors(training))

    assert same(Training(4).outcome(between), whole())


def test_nothing_that_moves_a_model_finds_its_streamed_weights() -> None:
    streaming = Training(BLOCKS)
    frozen = [name for name, one in streaming.model.named_parameters() if not one.requires_grad]
    assert frozen
    assert not [name for name in frozen if "transformer_blocks" in name]
    inside = sum(one.numel() * 4 for name, one in flux().named_parameters() if "transformer_blocks" in name)
    assert inside <= streaming.streamed.host_bytes < inside + 256 * len(dict(flux().named_parameters()))
    assert streaming.streamed.device_bytes < streaming.streamed.host_bytes
    expected = {name: one for name, one in flux().state_dict().items() if name.startswith("transformer_blocks.0.ff")}
    streaming.streamed.choose(0)
    found = {name.replace("base_layer.", ""): one for name, one in streaming.model.state_dict().items()}
    for name, value in expected.items():
        assert torch.equal(found[name], value)


def test_memory_goes_with_the_last_who_needs_it() -> None:
    streaming = Training(3)
    streaming.predict(0).mean().backward()
    gone, copier = weakref.ref(streaming.model), streaming.copier
    del streaming
    gc.collect()
    assert gone() is None
    assert copier.closed


@pytest.mark.parametrize(
    ("count", "total", "expected"), [(0, 4, []), (1, 5, [2]), (2, 8, [2, 6]), (4, 4, [0, 1, 2, 3])]
)
def test_spread(count: int, total: int, expected: list[int]) -> None:
    assert evenly_spread(count, total) == expected


def test_blocks_of_other_kinds() -> None:
    """Buffers, integers, strided and empty tensors, numbers, what several parts share, and what is trained itself."""

    class Odd(nn.Module):
        def __init__(self, width: int, shared: nn.Linear, seed: int) -> None:
            super().__init__()
            self.up = nn.Linear(4, width).requires_grad_(False)
            self.up.weight = nn.Parameter(noise((4, width), seed).T, requires_grad=False)
            self.down = nn.Linear(width, 4, bias=False).requires_grad_(False)
            self.same, self.shared = self.down, shared
            self.register_buffer("index", torch.arange(4).flip(0))
            self.register_buffer("scale", torch.tensor(0.5 + seed), persistent=False)
            self.register_buffer("bent", noise((3, 4), seed)[:, ::2].bfloat16().T)
            self.register_buffer("nothing", torch.empty(0, 3))
            self.gate = nn.Parameter(noise((4,), seed))

        def forward(self, x: Tensor) -> Tensor:
            y = self.down(self.up(x[..., self.index]).tanh()) * self.scale + self.bent.float().sum() + self.shared(x)
            return x + y * self.gate + self.nothing.sum()

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            shared = nn.Linear(4, 4).requires_grad_(False)
            self.blocks = nn.ModuleDict({str(k): Odd(3 + 2 * k, shared, k) for k in range(4)})

    def outcome(count: int) -> list[Tensor]:
        with torch.random.fork_rng():
            torch.manual_seed(1)
            model = Model()
        blocks = {f"blocks.{name}": block for name, block in model.blocks.items()}
        state = model.state_dict()
        streamed = Streamed(model, blocks, count, Adversary(2), ring=2)
        recompute_blocks(model, blocks.values())
        x = noise((2, 4), 5).requires_grad_()
        for _ in range(3):
            y = x
            with mutable_saved():
                for block in blocks.values():
                    y = block(y)
                y.square().sum().backward()
        streamed.choose(0)
        assert model.state_dict().keys() == state.keys()
        assert all(torch.equal(model.state_dict()[name], value) for name, value in state.items())
        assert model.blocks["1"].up.weight.stride() == (1, 5)
        return [y.detach(), x.grad, *(block.gate.grad for block in blocks.values())]

    expected = outcome(0)
    assert all(one.isfinite().all() for one in expected)
    for count in (1, 2, 4):
        assert same(outcome(count), expected)
