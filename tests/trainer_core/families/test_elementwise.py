"""FLUX.1's blocks with functions of our own are diffusers' blocks, forward and backward; and what they keep."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional as F

from trainer_core.adapters.adapter import Adapter
from trainer_core.config import AdapterConfig
from trainer_core.families.flux1.model import SPEC
from trainer_core.families.parts.elementwise import gated, gelu, modulated, norm_rotated
from trainer_core.memory.again import again, from_now_on


def drawn(*shape: int, seed: int = 1, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


SCALE, SHIFT = drawn(2, 1, 8, seed=2), drawn(2, 1, 8, seed=3)
TURNS = torch.stack([drawn(5, 4, seed=4).cos(), drawn(5, 4, seed=4).sin()], -1)
NORMS = [drawn(8, seed=5), drawn(8, seed=6)]


def rotated(parts: list[Tensor], turns: Tensor) -> Tensor:
    """RMSNorm by its formula, and each pair of channels turned."""
    normed = [
        part / (part.square().mean(-1, keepdim=True) + 1e-6).sqrt() * norm
        for part, norm in zip(parts, NORMS, strict=True)
    ]
    real, imaginary = torch.cat(normed, 1).unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = turns[:, None].unbind(-1)
    return torch.stack([real * cos - imaginary * sin, real * sin + imaginary * cos], -1).flatten(-2)


def in_pairs(x: Tensor) -> Tensor:
    """Channels in their own order: compiled, the second ones of all pairs come last."""
    return x.unflatten(-1, (2, -1)).transpose(-1, -2).flatten(-2) if torch.compiler.is_compiling() else x


CASES: dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor], list[tuple[int, ...]]]] = {
    "modulated": (
        lambda x: modulated(x, SCALE, SHIFT, 1e-6),
        lambda x: F.layer_norm(x, (8,), eps=1e-6) * (1 + SCALE) + SHIFT,
        [(2, 5, 8)],
    ),
    "modulated, one sample": (
        lambda x: modulated(x, SCALE[:1], SHIFT[:1], 1e-6),
        lambda x: F.layer_norm(x, (8,), eps=1e-6) * (1 + SCALE[:1]) + SHIFT[:1],
        [(1, 5, 8)],
    ),
    "gated": (lambda x, y: gated(x, SCALE, y), lambda x, y: x + SCALE * y, [(2, 5, 8), (2, 5, 8)]),
    "gelu": (gelu, lambda u: F.gelu(u, approximate="tanh"), [(2, 5, 8)]),
    "gelu behind": (
        lambda u, x: gelu(u, x),
        lambda u, x: torch.cat([x, F.gelu(u, approximate="tanh")], -1),
        [(2, 5, 8), (2, 5, 3)],
    ),
    "norm_rotated": (
        lambda one, two: in_pairs(norm_rotated([one, two], NORMS, 1e-6, TURNS)),
        lambda one, two: rotated([one, two], TURNS),
        [(2, 2, 3, 8), (2, 3, 3, 8)],
    ),
}


@pytest.mark.parametrize("compiling", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_functions_are_their_plain_operations(name: str, compiling: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """As they are, and as torch.compile is given them."""
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: compiling)
    ours, plain, shapes = CASES[name]
    inputs = [drawn(*shape, seed=10 + number).requires_grad_() for number, shape in enumerate(shapes)]
    torch.testing.assert_close(ours(*inputs), plain(*inputs))
    assert torch.autograd.gradcheck(ours, inputs)


def test_a_compiled_gelu_stands_large_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    u = torch.tensor([-1e12, -300.0, -9.0, 0.0, 9.0, 300.0, 1e12], requires_grad=True)
    y = gelu(u)
    y.sum().backward()
    torch.testing.assert_close(y, F.gelu(u, approximate="tanh"), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(u.grad, torch.tensor([0, 0, 0, 0.5, 1, 1, 1]), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("layout", [lambda g: g.mT.contiguous().mT, lambda g: F.pad(g, (0, 1))[..., :-1]])
def test_gradients_may_be_laid_out_anyhow(layout: Callable[[Tensor], Tensor]) -> None:
    """As some kernels of attention lay them out."""
    ours, _, shapes = CASES["norm_rotated"]
    inputs = [drawn(*shape, seed=10 + number).requires_grad_() for number, shape in enumerate(shapes)]
    y = ours(*inputs)
    gradient = drawn(*y.shape, seed=20)
    expected = torch.autograd.grad(y, inputs, gradient, retain_graph=True)
    torch.testing.assert_close(torch.autograd.grad(y, inputs, layout(gradient)), expected)


def test_modulation_that_is_trained_has_its_gradient() -> None:
    x, scale, shift = drawn(2, 5, 8).requires_grad_(), SCALE.clone().requires_grad_(), SHIFT.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda *all_: modulated(*all_, 1e-6), (x, scale, shift))
    assert torch.autograd.gradcheck(gated, (x, scale, drawn(2, 5, 8, seed=7).requires_grad_()))


def small_flux(dtype: torch.dtype) -> nn.Module:
    from diffusers import FluxTransformer2DModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = FluxTransformer2DModel(
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            axes_dims_rope=[4, 6, 6],
            in_channels=16,
            joint_attention_dim=12,
            pooled_projection_dim=12,
            guidance_embeds=False,
        )
        for norm in (one for one in model.modules() if isinstance(one, nn.RMSNorm)):
            nn.init.normal_(norm.weight)
        made: nn.Module = model.requires_grad_(False).to(dtype)
    return made


def of_flux(model: nn.Module, dtype: torch.dtype, kept: dict[int, Tensor] | None = None) -> tuple[Tensor, Tensor]:
    """What it predicts, and a gradient to its input."""
    image, text = (drawn(1, count, width, dtype=dtype).requires_grad_() for count, width in ((16, 16), (4, 12)))

    def note(tensor: Tensor) -> Tensor:
        if kept is not None and not isinstance(tensor, nn.Parameter):
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with saved_tensors_hooks(note, lambda tensor: tensor):
        predicted = model(
            hidden_states=image,
            encoder_hidden_states=text,
            pooled_projections=drawn(1, 12, dtype=dtype),
            timestep=torch.full((1,), 0.5, dtype=dtype),
            img_ids=torch.arange(48.0).view(16, 3) % 5,
            txt_ids=torch.zeros(4, 3),
            return_dict=False,
        )[0]
    predicted.float().square().sum().backward()
    assert image.grad is not None
    return predicted.detach(), image.grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_whole_model_is_diffusers(dtype: torch.dtype) -> None:
    from trainer_core.families.flux1.blocks import install  # imports diffusers

    plain = small_flux(dtype)
    ours = copy.deepcopy(plain)
    install(ours)
    assert [*plain.state_dict()] == [*ours.state_dict()]
    for model in (plain, ours):
        Adapter(model, AdapterConfig(rank=2), SPEC.targets["attention_mlp"], seed=1)
    kept: list[dict[int, Tensor]] = [{}, {}]
    pairs = (of_flux(one, dtype, memory) for one, memory in zip((plain, ours), kept, strict=True))
    for theirs, mine in zip(*pairs, strict=True):
        assert (mine.double() - theirs.double()).norm() <= (1e-5 if dtype == torch.float32 else 2e-2) * theirs.norm()
    sizes = [sum(one.untyped_storage().nbytes() for one in memory.values()) for memory in kept]
    assert sizes[1] < (1.0 if dtype == torch.float32 else 0.8) * sizes[0]


def test_the_last_block_computes_nothing_for_the_text_but_keys_and_values() -> None:
    from trainer_core.families.flux1.blocks import install

    model: Any = small_flux(torch.float32)
    install(model)
    tokens: dict[str, int] = {}
    for path, layer in model.single_transformer_blocks.named_modules():
        if isinstance(layer, nn.Linear):
            layer.register_forward_hook(lambda _, args, y, path=path: tokens.update({path: y.shape[1]}))
    of_flux(model, torch.float32, {})
    whole = {path: count for path, count in tokens.items() if not path.endswith("norm.linear")}
    last = f"{len(model.single_transformer_blocks) - 1}."
    fewer = {f"{last}{name}" for name in ("attn.to_q", "proj_mlp", "proj_out")}
    assert whole == {path: 16 if path in fewer else 20 for path in whole}


def test_an_input_that_can_be_computed_again_is_forgotten_when_it_changes() -> None:
    x = drawn(3, 4, dtype=torch.bfloat16)
    y = from_now_on(x * 2, lambda x: x * 2, x)
    how = again(y)
    assert how is not None
    assert torch.equal(how(how.inputs), y)
    assert again(y + 0) is None
    x.add_(1)
    assert again(y) is None
    z: Any = from_now_on(x * 2, lambda x: x * 2, x)
    z.add_(1)
    assert again(z) is None
