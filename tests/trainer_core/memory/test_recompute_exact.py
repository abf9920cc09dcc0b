"""Recomputed blocks of diffusers' models: gradients bit for bit those without, in every combination of settings."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from trainer_core.memory.blocks import blocks_of
from trainer_core.memory.offload import Copies, Copy
from trainer_core.memory.recompute import recompute_blocks

from .models import adapted, flux, gradients, products, unet

MODELS = {"flux": flux, "unet": unet}


class Late(Copies):
    """Copies at the last moment, and makes what was copied useless where it was."""

    def __init__(self) -> None:
        self.log: list[str] = []

    def leave(self, tensor: Tensor) -> Copy:
        self.log.append("leave")
        return Copy(tensor.clone())

    def come(self, copy: Copy) -> None:
        self.log.append("come")

    def wait_back(self, copy: Copy) -> None:
        self.log.append("wait")
        copy.device, copy.host = copy.host.clone(), torch.full_like(copy.host, float("nan"))


@pytest.fixture(scope="module", params=list(MODELS))
def expected(request: pytest.FixtureRequest) -> tuple[Callable[[], nn.Module], list[Tensor]]:
    model = MODELS[request.param]()
    adapter = adapted(model)
    recompute_blocks(model, blocks_of(model).values(), every=0)
    return MODELS[request.param], gradients(model, adapter)


@pytest.mark.parametrize(
    "settings",
    [
        {"every": 1},
        {"every": 2},
        {"every": 3, "keep_attention": True},
        {"keep_attention": True},
        {"copies": Late()},
        {"every": 2, "keep_attention": True, "copies": Late()},
    ],
)
def test_no_setting_changes_a_bit(
    settings: dict[str, Any], expected: tuple[Callable[[], nn.Module], list[Tensor]]
) -> None:
    """In the first pass, in which it is learned what can be left out, and in the next."""
    make, wanted = expected
    model = make()
    adapter = adapted(model)
    recompute_blocks(model, blocks_of(model).values(), **settings)
    for _ in range(2):
        assert all(map(torch.equal, gradients(model, adapter), wanted))


def test_an_ordinary_graph_has_the_same_gradients(expected: tuple[Callable[[], nn.Module], list[Tensor]]) -> None:
    """Bit for bit in FLUX; where blocks' inputs are read elsewhere, as in U-Nets, but for the order of sums."""
    make, wanted = expected
    model = make()
    found = gradients(model, adapted(model))
    size = max(float(one.abs().max()) for one in wanted)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-7 * size)
    assert make is unet or all(map(torch.equal, found, wanted))


def test_inputs_come_back_one_block_ahead() -> None:
    model, copies = flux(double=2, single=2), Late()
    adapter = adapted(model)
    recompute_blocks(model, blocks_of(model).values(), copies=copies)
    forward: list[str] = []

    def backward(loss: Tensor) -> None:
        forward.extend(copies.log)
        copies.log.clear()
        loss.backward()

    gradients(model, adapter, backward)
    assert forward == ["leave"] * 6, "text and picture of each block, but for the first one's, which have no graph"
    assert copies.log == ["come"] * 4 + ["wait"] * 2 + (["come"] * 2 + ["wait"] * 2) + ["wait"] * 2


def test_nothing_comes_back_of_a_pass_without_backward() -> None:
    model, copies = flux(), Late()
    adapter = adapted(model)
    recompute_blocks(model, blocks_of(model).values(), copies=copies)
    gradients(model, adapter, lambda loss: None if loss.grad_fn is None else copies.log.clear() or loss.backward())
    told = list(copies.log)
    with pytest.raises(AssertionError):
        gradients(model, adapter, lambda _: None)
    gradients(model, adapter, lambda loss: copies.log.clear() or loss.backward())
    assert copies.log == told


def test_kept_attention_is_not_computed_again() -> None:
    """And nothing else is left out for it."""

    def counted(keep_attention: bool) -> Counter[Any]:
        model = flux()
        adapter = adapted(model)
        recompute_blocks(model, blocks_of(model).values(), keep_attention=keep_attention)
        gradients(model, adapter)
        return products(lambda: gradients(model, adapter))

    without, kept = counted(False), counted(True)
    left_out = without - kept
    assert {operation for operation, _ in left_out} == {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu}
    assert left_out.total() == 4, "once in each block"
    assert not kept - without


class Alive(TorchDispatchMode):
    """Counts the bytes of what was allocated meanwhile and is still there, and the most that there were."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self._seen: weakref.WeakSet[Any] = weakref.WeakSet()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self._seen.update(one.untyped_storage() for one in args if isinstance(one, Tensor))
        for one in result if isinstance(result, tuple | list) else [result]:
            if isinstance(one, Tensor) and (storage := one.untyped_storage()) not in self._seen:
                self._seen.add(storage)
                self.now += storage.nbytes()
                self.most = max(self.most, self.now)
                weakref.finalize(storage, self._gone, storage.nbytes())
        return result

    def _gone(self, size: int) -> None:
        self.now -= size


def test_one_block_is_there_at_a_time() -> None:
    """The peak of a backward pass does not grow with the number of blocks, but for the blocks' inputs."""

    def measured(single: int, recomputed: bool) -> int:
        model = flux(double=1, single=single)
        adapter = adapted(model)
        if recomputed:
            recompute_blocks(model, blocks_of(model).values())
        gradients(model, adapter)
        with Alive() as alive:
            gradients(model, adapter)
        return alive.most

    inputs = 2 * 17 * 32 * 4  # text and picture, in bytes
    trained = 4 * (3 * (32 + 32) + (32 + 128) + (160 + 32)) * 4  # the gradients of a single block's LoRA
    assert measured(6, True) - measured(2, True) <= 4 * (inputs + trained)
    assert measured(6, False) - measured(2, False) > 4 * 12 * inputs
