"""One battery over all kinds of adapter, on linear layers and convolutions, torch's own and packed ones.

peft's own layers, on the weights that the packed ones stand for, say what is right.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from trainer_core.adapters.adapter import Adapter
from trainer_core.adapters.applied import applied
from trainer_core.adapters.deltas import row_norms
from trainer_core.adapters.layers import factors
from trainer_core.config import AdapterConfig
from trainer_core.errors import AdapterError

from .packed_layers import dequantized, packed

KINDS = {
    "lora": AdapterConfig(rank=3, alpha=1.5, conv_rank=2, conv_alpha=4.0),
    "dora": AdapterConfig(type="dora", rank=3, alpha=1.5, conv_rank=2, conv_alpha=4.0),
    "lokr": AdapterConfig(type="lokr", rank=1, alpha=0.5, conv_rank=1, conv_alpha=2.0),
    "lokr, whole": AdapterConfig(type="lokr", rank=64, alpha=16.0, conv_rank=64, factor=2),
    "loha": AdapterConfig(type="loha", rank=3, alpha=1.5, conv_rank=2, conv_alpha=4.0),
}
TARGETS, CONV_TARGETS = (r"linear", r"point"), (r"conv",)


class Small(nn.Module):
    """A convolution with stride, one of single points, a linear layer along the channels; one that is left alone."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(6, 12, 3, stride=2, padding=1)
        self.point = nn.Conv2d(12, 8, 1, bias=False)
        self.linear = nn.Linear(8, 12)
        self.rest = nn.Linear(12, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.point(torch.tanh(self.conv(x)))
        return self.rest(torch.tanh(self.linear(torch.tanh(x).movedim(1, -1))))


X = torch.randn(2, 6, 5, 5, generator=torch.Generator().manual_seed(3))


@pytest.fixture(params=["torch's", "packed"])
def small(request: pytest.FixtureRequest) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Small().requires_grad_(False)
    return packed(model, leave=("rest",)) if request.param == "packed" else model


of_torch = pytest.mark.parametrize("small", ["torch's"], indirect=True)


@pytest.fixture(params=KINDS.values(), ids=list(KINDS))
def config(request: pytest.FixtureRequest) -> AdapterConfig:
    given: AdapterConfig = request.param
    return given


def adapted(model: nn.Module, config: AdapterConfig, seed: int = 1) -> Adapter:
    return Adapter(model, config, TARGETS, seed, conv_targets=CONV_TARGETS)


def randomized(adapter: Adapter, seed: int = 9) -> dict[str, Tensor]:
    source = torch.Generator().manual_seed(seed)
    state = {
        name: value + torch.randn(value.shape, generator=source) * 0.3 for name, value in adapter.state_dict().items()
    }
    adapter.load_state_dict(state)
    return state


# --- the function ----------------------------------------------------------------------------------------------------


def pefts(model: nn.Module, config: AdapterConfig, state: dict[str, Tensor]) -> nn.Module:
    """The same adapter by peft, with the same weights."""
    from peft import LoHaConfig, LoKrConfig, LoraConfig, inject_adapter_in_model

    rank, conv_rank, conv = config.rank, config.conv_rank, "conv"
    assert conv_rank
    patterns: dict[str, Any] = {"target_modules": ["conv", "point", "linear"], "rank_pattern": {conv: conv_rank}}
    alphas = (config.scale * rank, {conv: config.conv_scale * conv_rank})
    kinds: dict[str, Any] = {
        "lora": lambda: LoraConfig(r=rank, lora_alpha=alphas[0], alpha_pattern=alphas[1], **patterns),
        "dora": lambda: LoraConfig(r=rank, lora_alpha=alphas[0], alpha_pattern=alphas[1], use_dora=True, **patterns),
        "lokr": lambda: LoKrConfig(
            r=rank, alpha=alphas[0], alpha_pattern=alphas[1], decompose_factor=config.factor, **patterns
        ),
        "loha": lambda: LoHaConfig(r=rank, alpha=alphas[0], alpha_pattern=alphas[1], **patterns),
    }
    inject_adapter_in_model(kinds[config.type](), model)
    mine = dict(state)
    for name, parameter in model.named_parameters():
        if ".default" in name:
            key = name.replace(".default", "").replace("lora_magnitude_vector.weight", "magnitude")
            parameter.data = mine.pop(key).reshape(parameter.shape)
    assert mine == {}, "peft has all weights that there are"
    return model


def test_forward_and_gradients_are_pefts(config: AdapterConfig, small: nn.Module) -> None:
    other = dequantized(small)
    adapter = adapted(small, config)
    other = pefts(other, config, randomized(adapter))
    x, its = X.clone().requires_grad_(True), X.clone().requires_grad_(True)
    found, expected = small(x), other(its)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    found.square().sum().backward()
    expected.square().sum().backward()
    torch.testing.assert_close(x.grad, its.grad, rtol=1e-4, atol=1e-5)
    theirs = {name: p.grad for name, p in other.named_parameters() if ".default" in name}
    assert len(theirs) == len(adapter.parameters())
    for name, mine in zip(adapter.state_dict(), adapter.parameters(), strict=True):
        key = next(
            one
            for one in theirs
            if one.replace(".default", "").replace("lora_magnitude_vector.weight", "magnitude") == name
        )
        assert mine.grad is not None
        torch.testing.assert_close(mine.grad, theirs[key].reshape(mine.shape), rtol=1e-4, atol=1e-5)


@of_torch
def test_a_lora_on_a_convolution_is_pefts_bit_by_bit(small: nn.Module) -> None:
    other = copy.deepcopy(small)
    adapter = adapted(small, KINDS["lora"])
    assert torch.equal(small(X), pefts(other, KINDS["lora"], adapter.state_dict())(X))
    state = randomized(adapter)
    fresh = copy.deepcopy(other)
    assert torch.equal(small(X), with_weights(fresh, state)(X))


def with_weights(model: nn.Module, state: dict[str, Tensor]) -> nn.Module:
    for name, parameter in model.named_parameters():
        if ".default" in name:
            parameter.data = state[name.replace(".default", "")].reshape(parameter.shape)
    return model


def test_a_new_adapter_changes_nothing(config: AdapterConfig, small: nn.Module) -> None:
    before = small(X)
    adapted(small, config)
    assert torch.equal(small(X), before)


def test_ranks_and_scales(small: nn.Module) -> None:
    adapter = adapted(small, KINDS["lora"])
    shapes = {name: tuple(value.shape) for name, value in adapter.state_dict().items()}
    assert shapes == {
        "conv.lora_A.weight": (2, 6, 3, 3),
        "conv.lora_B.weight": (12, 2),
        "point.lora_A.weight": (3, 12, 1, 1),
        "point.lora_B.weight": (8, 3),
        "linear.lora_A.weight": (3, 8),
        "linear.lora_B.weight": (12, 3),
    }
    assert {name: layer.scale for name, layer in adapter.layers.items()} == {"conv": 2.0, "point": 0.5, "linear": 0.5}


def test_without_a_conv_rank_convolutions_stay(small: nn.Module) -> None:
    adapter = adapted(small, KINDS["lora"].but(conv_rank=None, conv_alpha=None))
    assert list(adapter.layers) == ["point", "linear"]


@pytest.mark.parametrize("factor", [-1, 2, 4, 8, 16])
def test_factors_are_those_of_lycoris(factor: int) -> None:
    from peft.tuners.lokr.layer import factorization

    for size in (1, 7, 48, 127, 128, 250, 320, 360, 512, 640, 768, 1024, 1280, 2560, 3072, 5120, 10240, 12288, 15360):
        if size >= factor**2:  # else peft's are the wrong way round: 48 with 16 is (16, 3)
            assert factors(size, factor) == factorization(size, factor), size


def test_factors_of_sizes_that_the_factor_does_not_divide() -> None:
    """From LyCORIS' own table."""
    found = [[factors(size, factor) for factor in (-1, 2, 4, 8, 16)] for size in (127, 128, 250)]
    assert found == [
        [(1, 127)] * 5,
        [(8, 16), (2, 64), (4, 32), (8, 16), (8, 16)],
        [(10, 25), (2, 125), (2, 125), (5, 50), (10, 25)],
    ]


def test_the_strength_multiplies_what_is_added(config: AdapterConfig, small: nn.Module) -> None:
    adapter = adapted(small, config)
    randomized(adapter)
    inputs = {"conv": X, "point": torch.rand(1, 12, 2, 2), "linear": torch.rand(3, 8)}
    for name, layer in adapter.layers.items():
        added = []
        for strength in (1.0, 0.5, 0.0, -2.0):
            adapter.set_strength(strength)
            added.append(layer(inputs[name]) - layer.base_layer(inputs[name]))
        assert added[0].abs().max() > 0.01
        for change, strength in zip(added, (1.0, 0.5, 0.0, -2.0), strict=True):
            torch.testing.assert_close(change, added[0] * strength, rtol=1e-4, atol=1e-5)


def test_a_dora_keeps_its_rows_lengths(small: nn.Module) -> None:
    """W' has rows of length m whatever A and B are."""
    adapter = adapted(small, KINDS["dora"])
    state = randomized(adapter)
    layer = adapter.layers["linear"]
    weight = (layer(torch.eye(8)) - layer.bias).T
    torch.testing.assert_close(row_norms(weight), state["linear.magnitude"].abs(), rtol=1e-5, atol=1e-6)


@of_torch
def test_a_dora_of_a_row_of_zeros_is_finite(small: nn.Module) -> None:
    small.linear.weight.data[3] = 0
    adapter = adapted(small, KINDS["dora"])
    randomized(adapter)
    out = small(X)
    out.sum().backward()
    assert out.isfinite().all()
    assert all(parameter.grad.isfinite().all() for parameter in adapter.parameters())  # type: ignore[union-attr]


# --- what is trained -------------------------------------------------------------------------------------------------


def test_only_the_adapter_is_trained_and_every_part_of_it(config: AdapterConfig, small: nn.Module) -> None:
    adapter = adapted(small, config)
    randomized(adapter)
    small(X).square().sum().backward()
    trainable = {id(parameter) for parameter in adapter.parameters()}
    assert {id(p) for p in small.parameters() if p.requires_grad} == trainable
    assert all(parameter.grad is not None and parameter.grad.abs().max() > 0 for parameter in adapter.parameters())
    assert all(p.grad is None for p in small.parameters() if id(p) not in trainable)


def test_it_learns_from_its_start(config: AdapterConfig, small: nn.Module) -> None:
    """Nothing is stuck at zero: in a few steps of Adam the output comes near another."""
    target = small(X).detach() + torch.randn(2, 3, 3, 2, generator=torch.Generator().manual_seed(5)) * 0.1
    adapter = adapted(small, config)
    optimizer = torch.optim.Adam(adapter.parameters(), lr=0.02)
    losses = []
    for _ in range(60):
        loss = (small(X) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_the_start_follows_from_seed_and_layer(config: AdapterConfig, small: nn.Module) -> None:
    one, again, other = (adapted(copy.deepcopy(small), config, seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(one[name], again[name]) for name in one)
    drawn = [name for name in one if one[name].any() and "magnitude" not in name]
    assert {name.split(".")[0] for name in drawn} == {"conv", "point", "linear"}
    assert not any(torch.equal(one[name], other[name]) for name in drawn)
    values = [value.flatten()[:3].tolist() for value in map(one.__getitem__, drawn)]
    assert len({tuple(value) for value in values}) == len(values), "each tensor is drawn by itself"


def test_a_bfloat16_base_gets_a_float32_adapter(config: AdapterConfig, small: nn.Module) -> None:
    small = small.bfloat16()
    adapter = adapted(small, config)
    assert {parameter.dtype for parameter in adapter.parameters()} == {torch.float32}
    randomized(adapter)
    assert small(X.bfloat16()).dtype == torch.bfloat16
    assert {change.scale for change in adapter.deltas().values()} <= {config.scale, config.conv_scale}


def test_nothing_touches_the_global_generator(config: AdapterConfig, small: nn.Module) -> None:
    """ComfyUI shares the process. peft's LoKr and LoHa draw from it in every pass."""
    before = torch.get_rng_state()
    adapter = adapted(small.train(), config.but(dropout=0.5))
    adapter.seed_dropout(1, 2)
    small(X).sum().backward()
    assert torch.equal(torch.get_rng_state(), before)


def test_dropout_is_seeded_and_of_the_adapter_alone(config: AdapterConfig, small: nn.Module) -> None:
    base = small(X)
    adapter = adapted(small, config.but(dropout=0.5))
    randomized(adapter)
    whole = small(X)
    adapter.seed_dropout(7, 0)
    one, again = small(X), small(X)
    adapter.seed_dropout(7, 1)
    other = small(X)
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    assert not torch.equal(one, whole)
    with adapter.disabled():
        assert torch.equal(small(X), base)
    adapter.seed_dropout()
    assert torch.equal(small(X), whole), "no place, no dropout"
    adapter.seed_dropout(7, 0)
    assert torch.equal(small.eval()(X), whole)


def test_disabled_is_the_base(config: AdapterConfig, small: nn.Module) -> None:
    before = small(X)
    adapter = adapted(small, config)
    randomized(adapter)
    after = small(X)
    assert not torch.allclose(after, before, rtol=1e-2)
    with adapter.disabled():
        assert torch.equal(small(X), before)
    assert torch.equal(small(X), after)


def test_state_goes_into_a_fresh_adapter(config: AdapterConfig, small: nn.Module) -> None:
    fresh = copy.deepcopy(small)
    adapter = adapted(small, config)
    state = randomized(adapter)
    other = adapted(fresh, config, seed=5)
    other.load_state_dict(state)
    assert torch.equal(small(X), fresh(X))
    assert all(torch.equal(value, state[name]) for name, value in other.state_dict().items())
    state.pop("linear." + next(iter(other.layers["linear"].trained)))
    with pytest.raises(AdapterError, match="linear"):
        other.load_state_dict(state)


def test_its_changes_applied_to_the_plain_model_are_the_adapter(config: AdapterConfig, small: nn.Module) -> None:
    plain = copy.deepcopy(small)
    adapter = adapted(small, config)
    randomized(adapter)
    for strength in (1.0, 0.7):
        adapter.set_strength(strength)
        with applied(plain, adapter.deltas(), strength):
            torch.testing.assert_close(plain(X), small(X), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("config_of", "message"),
    [
        (lambda: (("rest.*",), ()), "matches"),
        (lambda: (("norm",), ()), "GroupNorm"),
        (lambda: (("grouped",), ()), "Conv2d"),
    ],
    ids=["nothing", "a norm", "a grouped convolution"],
)
def test_what_cannot_be_adapted_is_told(config_of: Callable[[], tuple], message: str) -> None:
    model = nn.ModuleDict({"norm": nn.GroupNorm(2, 4), "grouped": nn.Conv2d(4, 4, 3, groups=2)})
    targets, convs = config_of()
    with pytest.raises(AdapterError, match=message):
        Adapter(model, AdapterConfig(rank=1), targets, 1, conv_targets=convs)


# --- text encoders ---------------------------------------------------------------------------------------------------


def test_text_encoders_are_further_roots(config: AdapterConfig, small: nn.Module) -> None:
    encoders = {"text_encoder": nn.Sequential(nn.Linear(4, 4)), "text_encoder_2": nn.Sequential(nn.Linear(4, 4))}
    alone = adapted(copy.deepcopy(small), config)
    adapter = Adapter(
        small, config, TARGETS, 1, conv_targets=CONV_TARGETS, text_encoders=encoders, text_targets=(r"\d",)
    )
    assert list(adapter.layers) == ["conv", "point", "linear", "text_encoder.0", "text_encoder_2.0"]
    state = adapter.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in alone.state_dict().items()), "the denoiser's stay"
    drawn = [name for name, value in state.items() if name.startswith("text_encoder.") and value.abs().sum() > 0]
    assert not any(
        torch.equal(state[name], state[name.replace("text_encoder.", "text_encoder_2.")])
        for name in drawn
        if "magnitude" not in name
    )
    text = adapter.text_parameters()
    count = len(adapter.parameters()) - len(alone.parameters())
    assert [id(one) for one in text] == [id(one) for one in adapter.parameters()[-count:]]
    assert alone.text_parameters() == []
    x = torch.rand(2, 4)
    before = {name: encoder[0].base_layer(x) for name, encoder in encoders.items()}
    randomized(adapter)
    with adapter.disabled():
        assert all(torch.equal(encoder(x), before[name]) for name, encoder in encoders.items())
    assert not any(torch.allclose(encoder(x), before[name]) for name, encoder in encoders.items())
    assert not any(p.requires_grad for e in encoders.values() for n, p in e.named_parameters() if "base_layer" in n)
