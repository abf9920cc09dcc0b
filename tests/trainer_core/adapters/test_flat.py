"""Trained tensors in one buffer: whatever happens to the model, layers and buffer are the same memory."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from trainer_core.adapters.adapter import Adapter
from trainer_core.config import AdapterConfig

X = torch.randn(2, 8, generator=torch.Generator().manual_seed(3))


class Attention(nn.Module):
    """Three layers that read the same; one that is not run."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out, self.unused = (nn.Linear(8, 8 + 4 * wide) for wide in (0, 0, 1, 0, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.q(x) * self.k(x)) + self.v(x)[:, :8]


def adapted(rank: int = 2, text: bool = False) -> Adapter:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        encoders = {"text_encoder": nn.Sequential(nn.Linear(8, 8))} if text else None
        model = Attention()
    adapter = Adapter(
        model, AdapterConfig(rank=rank), ["q|k|v|out|unused"], 5, text_encoders=encoders, text_targets=["0"]
    )
    state = adapter.state_dict()
    for name in state:  # B at zero would leave A without a gradient
        state[name] = torch.randn(state[name].shape, generator=torch.Generator().manual_seed(len(name)))
    adapter.load_state_dict(state)
    return adapter


def backward(adapter: Adapter) -> None:
    adapter.roots[""](X).square().sum().backward()
    for flat in adapter.flats():
        flat.collect()


def test_a_write_to_the_buffer_is_one_to_the_layers_and_the_other_way_round() -> None:
    adapter = adapted(rank=3)  # 3 · 8 is no multiple of 16: there are gaps
    (flat,) = adapter.flats()
    assert flat.size > sum(one.numel() for one in adapter.parameters())
    assert flat.weights.count_nonzero() == sum(one.count_nonzero() for one in flat.parameters)  # the gaps are zero

    before = adapter.state_dict()
    flat.weights.mul_(2)
    after = adapter.state_dict()
    assert all(torch.equal(after[name], 2 * before[name]) for name in before)

    adapter.load_state_dict(before)
    assert torch.equal(flat.view(flat.weights, 0), before["q.lora_A.weight"])


def test_gradients_add_up_in_the_buffer_and_what_is_not_reached_has_none() -> None:
    adapter = adapted()
    (flat,) = adapter.flats()
    assert flat.reached == [False] * 10
    backward(adapter)
    named = dict(zip(adapter.state_dict(), adapter.parameters(), strict=True))
    once = {name: one.grad.clone() for name, one in named.items() if one.grad is not None}
    assert named.keys() - once.keys() == {"unused.lora_A.weight", "unused.lora_B.weight"}
    assert flat.gradient.square().sum() > 0

    backward(adapter)
    for number, parameter in enumerate(flat.parameters):
        if parameter.grad is not None:
            assert torch.equal(parameter.grad, flat.view(flat.gradient, number))
    assert all(torch.equal(named[name].grad, 2 * one) for name, one in once.items())  # type: ignore[arg-type]

    flat.zero()
    assert not any(one.grad.any() for one in flat.parameters if one.grad is not None)


def test_a_model_that_was_moved_gives_one_buffer_again() -> None:
    adapter = adapted()
    (flat,) = adapter.flats()
    backward(adapter)
    before, reached, old = adapter.state_dict(), flat.reached, flat.weights
    flat.follow()
    assert flat.weights is old  # nothing was moved
    for parameter in flat.parameters:  # what nn.Module.to does with each, where the device is another one
        parameter.data = parameter.data.clone()
    flat.follow()
    flat.weights.mul_(3)
    assert all(torch.equal(value, 3 * before[name]) for name, value in adapter.state_dict().items())
    assert flat.reached == reached
    assert not flat.gradient.any()


def test_text_encoders_have_a_buffer_of_their_own() -> None:
    adapter = adapted(text=True)
    denoiser, text = adapter.flats()
    assert len(text.parameters) == 2
    assert {id(one) for one in text.parameters} == {id(one) for one in adapter.text_parameters()}
    assert {id(one) for one in (*denoiser.parameters, *text.parameters)} == {id(one) for one in adapter.parameters()}
