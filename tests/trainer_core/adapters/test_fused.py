"""LoRA on linear layers as functions of our own: the formula in float64, what they keep, and who shares work."""

from __future__ import annotations

import contextlib
import gc
import weakref
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from trainer_core.adapters.adapter import Adapter
from trainer_core.config import AdapterConfig

D, TOKENS, RANK = 24, 40, 4
TARGETS = ("q", "k", "v", "out")


class Attention(nn.Module):
    """q, k and v of one tensor; then a layer of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(D, D) for _ in range(4))
        self.between: Callable[[Tensor], Any] = lambda x: None
        """What is done to the input after q has read it."""

    def forward(self, x: Tensor) -> Tensor:
        q = self.q(x)
        self.between(x)
        k, v = self.k(x), self.v(x)
        return self.out(torch.tanh(q) * torch.sigmoid(k) + v)


def made(dtype: torch.dtype = torch.float32, known: bool = True, **config: Any) -> tuple[Attention, Adapter]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Attention().to(dtype)
        adapter = Adapter(model, AdapterConfig(rank=RANK, **config), TARGETS, seed=1)
        state = {name: value + torch.randn(value.shape) * 0.2 for name, value in adapter.state_dict().items()}
    adapter.load_state_dict(state)
    if known:
        find(model, adapter)
    return model, adapter


def find(model: nn.Module, adapter: Adapter) -> None:
    with torch.no_grad(), adapter.finding_siblings():
        model(given().to(model.q.base_layer.weight.dtype))  # type: ignore[operator, union-attr]


def given(seed: int = 3) -> Tensor:
    return torch.randn(2, TOKENS // 2, D, generator=torch.Generator().manual_seed(seed))


def gradients(model: nn.Module, adapter: Adapter, x: Tensor) -> list[Tensor]:
    """Of the input, and of what is trained."""
    for parameter in adapter.parameters():
        parameter.grad = None
    x = x.clone().requires_grad_()
    (model(x).float().square().sum() * 0.1).backward()
    return [one.grad for one in (x, *adapter.parameters())]  # type: ignore[misc]


def by_hand(adapter: Adapter, x: Tensor, strength: float) -> list[Tensor]:
    """The same by the formula, in float64, and by autograd."""
    double = x.detach().double().requires_grad_()
    weights = {name: value.double().requires_grad_() for name, value in adapter.state_dict().items()}

    def layer(name: str, x: Tensor) -> Tensor:
        own = adapter.layers[name]
        down, up = (weights[f"{name}.lora_{which}.weight"] for which in "AB")
        base = F.linear(x, own.base_layer.weight.double(), own.base_layer.bias.double())  # type: ignore[operator, union-attr]
        return base + own.scale * strength * x @ down.T @ up.T

    y = layer("out", torch.tanh(layer("q", double)) * torch.sigmoid(layer("k", double)) + layer("v", double))
    (y.square().sum() * 0.1).backward()
    return [one.grad for one in (double, *weights.values())]  # type: ignore[misc]


@pytest.mark.parametrize("known", [True, False], ids=["siblings", "each for itself"])
@pytest.mark.parametrize(("dtype", "autocast"), [("float32", False), ("bfloat16", False), ("bfloat16", True)])
def test_gradients_are_those_of_the_formula(known: bool, dtype: str, autocast: bool) -> None:
    kind = getattr(torch, dtype)
    model, adapter = made(kind, known, alpha=2.0)
    adapter.set_strength(0.7)
    x = given().to(kind)
    with torch.autocast("cpu", kind) if autocast else nullcontext():
        found = gradients(model, adapter, x)
    error = 1e-5 if kind == torch.float32 else 3e-2
    assert [one.dtype for one in found] == [kind, *[torch.float32] * 8]
    for mine, exact in zip(found, by_hand(adapter, x, 0.7), strict=True):
        assert (mine - exact).norm() <= error * exact.norm()


def test_float32_inputs_of_a_bfloat16_model_compute_in_its_precision() -> None:
    """As autocast's norms give them on a GPU. What is kept is the rounded input, and the gradient is the input's."""
    model, adapter = made(torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        found = gradients(model, adapter, given())
        memory = kept_memory(lambda: model(given().requires_grad_()))
    assert found[0].dtype == torch.float32
    assert torch.float32 not in [dtype for dtype, _ in memory]


def kept_memory(run: Callable[[], Any]) -> list[tuple[torch.dtype, int]]:
    """Precision and elements of each piece of memory that waits for the backward pass, but for parameters."""
    found: dict[int, tuple[torch.dtype, int]] = {}

    def note(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, nn.Parameter):
            memory = tensor.untyped_storage()
            found[memory.data_ptr()] = tensor.dtype, memory.nbytes() // tensor.itemsize
        return tensor

    with saved_tensors_hooks(note, lambda tensor: tensor):
        held = run()  # as long as it lives, no address is used twice
    del held
    return sorted(found.values(), key=str)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_kept(dtype: torch.dtype) -> None:
    """The input once for three layers, and A x of each, side by side; of weights at most one copy."""
    _, adapter = made(dtype)
    x = given().to(dtype).requires_grad_()
    q, k, v = (adapter.layers[name] for name in "qkv")
    kept_now = kept_memory(lambda: (q(x), k(x), v(x)))
    weights = [] if dtype == torch.float32 else [(dtype, sum(one.numel() for one in adapter.parameters()))]
    assert kept_now == sorted([(dtype, TOKENS * D), (dtype, 3 * TOKENS * RANK), *weights], key=str)


def test_siblings_are_found() -> None:
    _, adapter = made()
    layers: dict[str, Any] = dict(adapter.layers)
    names = {layer: name for name, layer in layers.items()}
    groups = {name: [names[one] for one in layer.siblings.layers] for name, layer in layers.items()}
    assert groups == {**{name: ["q", "k", "v"] for name in "qkv"}, "out": ["out"]}


def doubled(x: Tensor) -> None:
    x.mul_(2)


def test_an_input_that_changes_between_siblings() -> None:
    """k and v read other values than q: as if each layer was for itself."""
    found = []
    for known in (True, False):
        model, adapter = made(known=known)
        model.between = doubled
        with torch.autograd.graph.allow_mutation_on_saved_tensors():
            x = given().requires_grad_()
            model(x + 0).square().sum().backward()
        found.append([x.grad, *(one.grad for one in adapter.parameters())])
    for mine, plain in zip(*found, strict=True):
        torch.testing.assert_close(mine, plain, rtol=1e-5, atol=1e-5)


def test_a_change_that_autograd_forbids_is_an_error() -> None:
    model, _ = made()
    model.between = doubled
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        model(given().requires_grad_() + 0).sum().backward()


def test_calls_that_interleave() -> None:
    """Two inputs in turns, a layer that is called twice, and one that is called without its siblings."""
    found = []
    for known in (True, False):
        _, adapter = made(known=known)
        q, k, v = (adapter.layers[name] for name in "qkv")
        x, y = given(3).requires_grad_(), given(4).requires_grad_()
        outputs = [q(x), q(y), k(y), k(x), v(x), v(y), v(y), k(x)]
        sum(output.square().mean() * (number + 1) for number, output in enumerate(outputs)).backward()  # type: ignore[attr-defined]
        found.append([*outputs, x.grad, y.grad, *(adapter.parameters()[n].grad for n in range(6))])
    for mine, plain in zip(*found, strict=True):
        torch.testing.assert_close(mine, plain, rtol=1e-5, atol=1e-6)


def test_what_happens_between_two_siblings_counts() -> None:
    """Gradients switched on, weights changed, the layer disabled, a backward pass: nothing old is taken."""
    _, adapter = made()
    q, k, v = (adapter.layers[name] for name in "qkv")
    x = given()
    with torch.no_grad():
        q(x)
    k(x).sum().backward()
    assert k.trained["lora_A.weight"].grad is not None
    q(x)
    adapter.load_state_dict({name: value * 2 for name, value in adapter.state_dict().items()})
    delta = k.delta()
    torch.testing.assert_close(k(x), k.base_layer(x) + x @ delta.down.T @ delta.up.T, rtol=1e-4, atol=1e-5)
    q(x)
    with adapter.disabled():
        assert torch.equal(v(x), v.base_layer(x))
    q(x).sum().backward()
    v(x).sum().backward()


def test_a_pass_that_fails_between_siblings_leaves_nothing_in_the_next() -> None:
    """Its graph would fill the memory that the pass had not enough of."""
    model, _ = made()

    def fail(_: Tensor) -> None:
        raise torch.OutOfMemoryError

    model.between = fail
    x = given().requires_grad_() * 1
    held = weakref.ref(x)
    with contextlib.suppress(torch.OutOfMemoryError):
        model(x)
    del x
    model.between = lambda _: None
    model(given())
    gc.collect()
    assert held() is None


def test_bfloat16_follows_the_weights_from_pass_to_pass() -> None:
    """Also where an optimizer changes them without telling autograd."""
    model, adapter = made(torch.bfloat16)
    x = given().bfloat16()
    before = model(x)
    for parameter in adapter.parameters():
        parameter.data.zero_()
    after = model(x)
    assert not torch.equal(before, after)
    with adapter.disabled():
        assert torch.equal(model(x), after)


def test_recomputed_gradients_are_the_same_bit_by_bit() -> None:
    model, adapter = made()
    plain = gradients(model, adapter, given())
    twice = gradients(lambda x: checkpoint(model, x, use_reentrant=False), adapter, given())  # type: ignore[arg-type]
    assert all(map(torch.equal, plain, twice))


def test_a_backward_pass_that_stops_early_leaves_nothing_behind() -> None:
    """One for B alone, on a graph that is used again."""
    model, adapter = made()
    x = given().requires_grad_()
    loss = model(x).square().sum()
    ups = [layer.trained["lora_B.weight"] for layer in adapter.layers.values()]
    torch.autograd.grad(loss, ups, retain_graph=True)
    first = torch.autograd.grad(loss, x, retain_graph=True)
    assert torch.equal(first[0], torch.autograd.grad(loss, x, retain_graph=True)[0])
    loss.backward()
    assert torch.equal(first[0], x.grad)  # type: ignore[arg-type]


# --- the frozen product -----------------------------------------------------------------------------------------------


class Doubling(nn.Module):
    """A packed layer that says itself what its gradient is."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.bias, self.asked = layer.bias, 0
        self.register_buffer("weight", layer.weight.detach().half())

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.to(x) * 2, self.bias)  # type: ignore[operator]

    def input_gradient(self, gradient: Tensor) -> Tensor:
        self.asked += 1
        return gradient @ (self.weight.to(gradient) * 2)  # type: ignore[operator]


def test_a_layer_that_knows_its_gradient_is_asked() -> None:
    model, _ = made()
    plain = Attention()
    for name in TARGETS:
        layer = model.get_submodule(name).base_layer  # type: ignore[operator]
        model.set_submodule(name, Doubling(layer))
        twice = nn.Linear(D, D)
        twice.weight.data, twice.bias.data = layer.weight.detach().half().float() * 2, layer.bias.detach()
        plain.set_submodule(name, twice)
    found = []
    for one in (model, plain):
        adapter = Adapter(one, AdapterConfig(rank=RANK), TARGETS, seed=1)
        found.append(gradients(one, adapter, given()))
    for mine, expected in zip(*found, strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-4, atol=1e-5)
    assert [model.get_submodule(name).base_layer.asked for name in TARGETS] == [1] * 4  # type: ignore[operator]


def test_hooks_on_the_frozen_layer_have_their_gradient() -> None:
    """A training adapter is one."""
    found = []
    extra = torch.randn(D, D, generator=torch.Generator().manual_seed(8)) / D
    for hooked in (True, False):
        model, adapter = made()
        for name in TARGETS:
            layer: Any = adapter.layers[name].base_layer
            if hooked:
                layer.register_forward_hook(lambda _, args, y: y + args[0] @ extra.T)
            else:
                layer.weight.data += extra
        found.append(gradients(model, adapter, given()))
    for mine, expected in zip(*found, strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-4, atol=1e-5)


def test_a_layer_with_hooks_skips_nothing() -> None:
    """Its gradient is not that of its weight alone."""
    _, adapter = made()
    layer = adapter.layers["out"]
    layer.base_layer.register_forward_hook(lambda _, args, y: y * 2 + args[0])
    x = given()
    exact = layer(x)
    layer.skips_product = True
    assert torch.equal(layer(x), exact)


def test_the_first_layers_give_no_gradient_to_an_input_that_needs_none() -> None:
    model, adapter = made()
    asked = []
    for name in TARGETS:
        layer = adapter.layers[name]
        layer.base_layer = Doubling(layer.base_layer)  # type: ignore[assignment, arg-type]
        asked.append(layer.base_layer)
    model(given()).sum().backward()
    assert [one.asked for one in asked] == [0, 0, 0, 1]


def test_a_product_that_nobody_reads_is_skipped_with_the_same_graph() -> None:
    model, adapter = made()
    exact = gradients(model, adapter, given())
    for parameter in adapter.parameters():
        parameter.grad = None
    x = given().requires_grad_()
    upstream = 0.2 * model(x).detach()
    layer: Any = adapter.layers["out"]
    layer.base_layer.forward = None  # whoever calls it fails
    layer.skips_product = True
    y = model(x)
    assert (y.shape, y.dtype) == (upstream.shape, upstream.dtype)
    y.backward(upstream)
    for mine, expected in zip([x, *adapter.parameters()], exact, strict=True):
        torch.testing.assert_close(mine.grad, expected, rtol=1e-6, atol=1e-7)
