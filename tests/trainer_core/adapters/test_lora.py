"""LoRA layers against y = W x + (alpha / rank) · B A x written out, and against peft itself."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from trainer_core.adapters.adapter import Adapter
from trainer_core.adapters.applied import applied
from trainer_core.adapters.dropout import SeededDropout
from trainer_core.config import AdapterConfig
from trainer_core.errors import AdapterError
from trainer_core.families.flux1.model import SPEC


class Small(nn.Module):
    """Three linear layers, of which `blocks.0.a` and `blocks.0.b` are to be adapted."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.ModuleDict({"a": nn.Linear(6, 8), "b": nn.Linear(8, 5), "c": nn.Linear(5, 5)})])

    def forward(self, x: Tensor) -> Tensor:
        block = self.blocks[0]
        return block["c"](torch.tanh(block["b"](torch.tanh(block["a"](x)))))


TARGETS = (r"blocks\.\d+\.a", r"blocks\.\d+\.b")
X = torch.randn(4, 6, generator=torch.Generator().manual_seed(3))


@pytest.fixture
def small() -> Small:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Small().requires_grad_(False)


def randomized(adapter: Adapter) -> dict[str, Tensor]:
    source = torch.Generator().manual_seed(9)
    state = {name: torch.randn(value.shape, generator=source) for name, value in adapter.state_dict().items()}
    adapter.load_state_dict(state)
    return state


def by_hand(small: Small, state: dict[str, Tensor], scale: float) -> Tensor:
    """The network with the LoRA, without any LoRA code."""
    x = X
    for name in "abc":
        module: Any = small.blocks[0][name]
        module = getattr(module, "base_layer", module)
        y = x @ module.weight.T + module.bias
        if name != "c":
            y = y + scale * (x @ state[f"blocks.0.{name}.lora_A.weight"].T) @ state[f"blocks.0.{name}.lora_B.weight"].T
        x = torch.tanh(y) if name != "c" else y
    return x


def test_a_new_lora_changes_nothing(small: Small) -> None:
    before = small(X)
    Adapter(small, AdapterConfig(rank=3), TARGETS, seed=1)
    assert torch.equal(small(X), before)


@pytest.mark.parametrize(("rank", "alpha"), [(3, None), (3, 1.5), (4, 16.0), (1, 0.1)])
def test_forward_is_the_formula(rank: int, alpha: float | None, small: Small) -> None:
    adapter = Adapter(small, AdapterConfig(rank=rank, alpha=alpha), TARGETS, seed=1)
    state = randomized(adapter)
    torch.testing.assert_close(small(X), by_hand(small, state, (alpha or rank) / rank), rtol=1e-5, atol=1e-5)


def test_forward_is_pefts_and_so_is_applied(small: Small) -> None:
    from peft import LoraConfig, inject_adapter_in_model

    plain, other = copy.deepcopy(small), copy.deepcopy(small)
    adapter = Adapter(small, AdapterConfig(rank=3, alpha=1.5), TARGETS, seed=1)
    state = randomized(adapter)
    inject_adapter_in_model(LoraConfig(r=3, lora_alpha=1.5, target_modules=["a", "b"]), other)
    for name, parameter in other.named_parameters():
        if "lora_" in name:
            parameter.data = state[name.replace(".default", "")]
    assert torch.equal(small(X), other(X)), "bit by bit: what was trained through peft is trained the same now"
    with applied(plain, adapter.deltas(), 1.0):
        torch.testing.assert_close(plain(X), other(X), rtol=1e-6, atol=1e-6)


def test_only_the_lora_is_trained_and_every_part_of_it(small: Small) -> None:
    adapter = Adapter(small, AdapterConfig(rank=3), TARGETS, seed=1)
    randomized(adapter)
    small(X).square().sum().backward()
    trainable = {id(parameter) for parameter in adapter.parameters()}
    assert {id(parameter) for parameter in small.parameters() if parameter.requires_grad} == trainable
    assert len(trainable) == 4
    for parameter in small.parameters():
        assert (parameter.grad is not None) == (id(parameter) in trainable)


def test_a_starts_uniform_and_b_at_zero(small: Small) -> None:
    """nn.Linear's own start, U(±1/√in): the range, and the variance 1 / (3 · in)."""
    wide = nn.ModuleDict({"a": nn.Linear(64, 4)})
    adapter = Adapter(wide, AdapterConfig(rank=512), ["a"], seed=1)
    down, up = adapter.state_dict().values()
    assert down.abs().max() <= 1 / 8
    assert down.square().mean().item() == pytest.approx(1 / (3 * 64), rel=4 * math.sqrt(0.8 / down.numel()))
    assert up.count_nonzero() == 0
    assert {parameter.dtype for parameter in adapter.parameters()} == {torch.float32}


def test_the_start_follows_from_seed_and_layer(small: Small) -> None:
    def start(seed: int) -> dict[str, Tensor]:
        return Adapter(copy.deepcopy(small), AdapterConfig(rank=6), TARGETS, seed).state_dict()

    one, again, other = start(1), start(1), start(2)
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert not torch.equal(one["blocks.0.a.lora_A.weight"], other["blocks.0.a.lora_A.weight"])
    assert not torch.equal(one["blocks.0.a.lora_A.weight"][:, :6], one["blocks.0.b.lora_A.weight"][:, :6])


def test_injection_leaves_the_global_generator_alone(small: Small) -> None:
    """ComfyUI shares the process: what it draws next must not depend on whether a job was started."""
    before = torch.get_rng_state()
    Adapter(small, AdapterConfig(rank=3), TARGETS, seed=1)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_bfloat16_base_gets_a_float32_lora(small: Small) -> None:
    adapter = Adapter(small.bfloat16(), AdapterConfig(rank=3), TARGETS, seed=1)
    assert {parameter.dtype for parameter in adapter.parameters()} == {torch.float32}


def test_targets_match_whole_paths(small: Small) -> None:
    adapter = Adapter(copy.deepcopy(small), AdapterConfig(rank=1), [r"blocks\.\d+\.a"], seed=1)
    assert list(adapter.layers) == ["blocks.0.a"]
    with pytest.raises(AdapterError, match="targets"):
        Adapter(copy.deepcopy(small), AdapterConfig(rank=1), [r"\d+\.a"], seed=1)


def test_state_is_a_copy_and_load_puts_it_back(small: Small) -> None:
    adapter = Adapter(small, AdapterConfig(rank=3), TARGETS, seed=1)
    state = randomized(adapter)
    kept = adapter.state_dict()
    for parameter in adapter.parameters():
        parameter.data.zero_()
    assert all(torch.equal(kept[name], state[name]) for name in state)
    adapter.load_state_dict(kept)
    assert all(torch.equal(value, state[name]) for name, value in adapter.state_dict().items())


@pytest.mark.parametrize(
    "change",
    [
        lambda state: state.pop("blocks.0.a.lora_A.weight"),
        lambda state: state.update({"blocks.0.c.lora_A.weight": torch.zeros(3, 5)}),
        lambda state: state.update({"blocks.0.a.lora_A.weight": torch.zeros(2, 6)}),
    ],
    ids=["a layer less", "a layer more", "another rank"],
)
def test_a_state_that_does_not_fit_is_refused_and_changes_nothing(change: Callable[[dict], Any], small: Small) -> None:
    adapter = Adapter(small, AdapterConfig(rank=3), TARGETS, seed=1)
    before, state = adapter.state_dict(), {name: value + 1 for name, value in adapter.state_dict().items()}
    change(state)
    with pytest.raises(AdapterError, match=r"blocks\.0"):
        adapter.load_state_dict(state)
    assert all(torch.equal(value, before[name]) for name, value in adapter.state_dict().items())


def test_disabled_is_the_base(small: Small) -> None:
    before = small(X)
    adapter = Adapter(small, AdapterConfig(rank=3), TARGETS, seed=1)
    randomized(adapter)
    after = small(X)
    with adapter.disabled():
        assert torch.equal(small(X), before)
    assert torch.equal(small(X), after)
    assert all(parameter.requires_grad for parameter in adapter.parameters())


# --- dropout ---------------------------------------------------------------------------------------------------------


def test_dropout_drops_its_share_and_keeps_the_mean() -> None:
    dropout, x = SeededDropout(0.3, "layer"), torch.ones(100_000)
    dropout.place = (1, 2, 3)
    y = dropout(x)
    assert (y == 0).double().mean().item() == pytest.approx(0.3, abs=4 * math.sqrt(0.21 / x.numel()))
    assert sorted(set(y.tolist())) == pytest.approx([0, 1 / 0.7])


def test_dropout_follows_from_its_place_alone() -> None:
    x = torch.ones(1000)
    one, other = SeededDropout(0.5, "layer"), SeededDropout(0.5, "other")
    one.place = other.place = (42, 0, 0)
    first = one(x)
    assert torch.equal(first, one(x)), "activations that are computed again see the same mask"
    assert not torch.equal(first, other(x))
    one.place = (42, 1, 0)
    assert not torch.equal(first, one(x))
    assert torch.equal(one.eval()(x), x)


def test_dropout_reaches_the_layers_in_training_only(small: Small) -> None:
    adapter = Adapter(small, AdapterConfig(rank=3, dropout=0.5), TARGETS, seed=1)
    state = randomized(adapter)
    before = torch.get_rng_state()
    small.train()
    adapter.seed_dropout(42, 0, 0)
    first, again = small(X), small(X)
    adapter.seed_dropout(42, 1, 0)
    other = small(X)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    torch.testing.assert_close(small.eval()(X), by_hand(small, state, 1.0), rtol=1e-5, atol=1e-5)
    assert torch.equal(torch.get_rng_state(), before)


def test_fluxs_targets_are_what_they_say() -> None:
    """On the real architecture, without its weights: one double block and one single block."""
    from diffusers import FluxTransformer2DModel

    with torch.device("meta"):
        flux = FluxTransformer2DModel(num_layers=1, num_single_layers=1, guidance_embeds=True)
    counts = {"attention": 8 + 3, "attention_mlp": 8 + 4 + 3 + 2, "all": 8 + 4 + 2 + 3 + 2 + 1}
    inside = [name for name, m in flux.named_modules() if isinstance(m, nn.Linear) and "blocks." in name]
    import re

    for name, count in counts.items():
        matched = [path for path in inside if any(re.fullmatch(target, path) for target in SPEC.targets[name])]
        assert len(matched) == count
    assert len(inside) == counts["all"], "`all` is every linear layer of the blocks"
