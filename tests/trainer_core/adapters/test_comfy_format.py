"""A LoRA in ComfyUI's names means what it meant in training: dense differences built by plain loops, and round trips.

ComfyUI's side is written out by hand from its FLUX model (comfy/ldm/flux/layers.py): qkv is one linear with q, k, v
rows in this order; a single block's linear1 is q, k, v and then the MLP; final_layer keeps (shift, scale).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn

from trainer_core.adapters.adapter import Adapter
from trainer_core.adapters.applied import applied
from trainer_core.adapters.comfy_format import to_comfy
from trainer_core.adapters.deltas import LowRank
from trainer_core.adapters.layers import fitted
from trainer_core.adapters.parsing import for_modules, parse
from trainer_core.config import AdapterConfig
from trainer_core.errors import AdapterError

if TYPE_CHECKING:
    from trainer_core.families.base import Base

D, MLP = 128, 512
"""The embedded base's width and its MLP's."""
PLACES = {
    # ours: (ComfyUI's, first row, rows there)
    "transformer_blocks.1.attn.to_q": ("double_blocks.1.img_attn.qkv", 0, 3 * D),
    "transformer_blocks.1.attn.to_k": ("double_blocks.1.img_attn.qkv", D, 3 * D),
    "transformer_blocks.1.attn.to_v": ("double_blocks.1.img_attn.qkv", 2 * D, 3 * D),
    "transformer_blocks.0.attn.add_q_proj": ("double_blocks.0.txt_attn.qkv", 0, 3 * D),
    "transformer_blocks.0.attn.add_k_proj": ("double_blocks.0.txt_attn.qkv", D, 3 * D),
    "transformer_blocks.0.attn.add_v_proj": ("double_blocks.0.txt_attn.qkv", 2 * D, 3 * D),
    "transformer_blocks.0.attn.to_out.0": ("double_blocks.0.img_attn.proj", 0, D),
    "transformer_blocks.0.attn.to_add_out": ("double_blocks.0.txt_attn.proj", 0, D),
    "transformer_blocks.0.ff.net.0.proj": ("double_blocks.0.img_mlp.0", 0, MLP),
    "transformer_blocks.0.ff.net.2": ("double_blocks.0.img_mlp.2", 0, D),
    "transformer_blocks.0.ff_context.net.0.proj": ("double_blocks.0.txt_mlp.0", 0, MLP),
    "transformer_blocks.0.ff_context.net.2": ("double_blocks.0.txt_mlp.2", 0, D),
    "transformer_blocks.0.norm1.linear": ("double_blocks.0.img_mod.lin", 0, 6 * D),
    "transformer_blocks.0.norm1_context.linear": ("double_blocks.0.txt_mod.lin", 0, 6 * D),
    "single_transformer_blocks.3.attn.to_q": ("single_blocks.3.linear1", 0, 3 * D + MLP),
    "single_transformer_blocks.3.attn.to_k": ("single_blocks.3.linear1", D, 3 * D + MLP),
    "single_transformer_blocks.3.attn.to_v": ("single_blocks.3.linear1", 2 * D, 3 * D + MLP),
    "single_transformer_blocks.3.proj_mlp": ("single_blocks.3.linear1", 3 * D, 3 * D + MLP),
    "single_transformer_blocks.0.proj_out": ("single_blocks.0.linear2", 0, D),
    "single_transformer_blocks.0.norm.linear": ("single_blocks.0.modulation.lin", 0, 3 * D),
}
SELECTIONS = {
    "all": list(PLACES),
    "q and v alone": [path for path in PLACES if path.endswith(("to_q", "to_v", "add_q_proj", "add_v_proj"))],
    "the MLP of a single block": ["single_transformer_blocks.3.proj_mlp"],
    "k alone": ["single_transformer_blocks.3.attn.to_k"],
    "in another order": list(reversed(PLACES)),
}

Weights = dict[str, tuple[Tensor, Tensor]]


@pytest.fixture(scope="module")
def denoiser(base: Base) -> nn.Module:
    return base.load_denoiser()


def random_weights(denoiser: nn.Module, paths: Iterable[str], rank: int) -> Weights:
    source, modules = torch.Generator().manual_seed(0), dict(denoiser.named_modules())
    return {
        path: (
            torch.randn(rank, modules[path].in_features, generator=source),
            torch.randn(modules[path].out_features, rank, generator=source),
        )
        for path in paths
    }


def changes_of(weights: Weights, scale: float) -> dict[str, LowRank]:
    return {path: LowRank(down, up, scale) for path, (down, up) in weights.items()}


def dense(down: Tensor, up: Tensor, scale: float) -> Tensor:
    """scale · up @ down, entry by entry, in double precision."""
    change = torch.zeros(up.shape[0], down.shape[1], dtype=torch.float64)
    for r in range(down.shape[0]):
        for row in range(up.shape[0]):
            change[row] += scale * up[row, r].double() * down[r].double()
    return change


def comfy_change(tensors: dict[str, Tensor], path: str) -> Tensor:
    """What ComfyUI adds to a weight: alpha / rows of A · B @ A (weight_adapter/lora.py)."""
    down, up = (tensors[f"diffusion_model.{path}.lora_{half}.weight"] for half in "AB")
    return dense(down, up, tensors[f"diffusion_model.{path}.alpha"].item() / down.shape[0])


@pytest.mark.parametrize("scale", [1.0, 0.25, 3.0])
@pytest.mark.parametrize("selection", SELECTIONS.values(), ids=list(SELECTIONS))
def test_fused_lora_equals_its_parts(selection: list[str], scale: float, base: Base, denoiser: nn.Module) -> None:
    weights = random_weights(denoiser, selection, rank=3)
    tensors = to_comfy(changes_of(weights, scale), base, torch.float32)
    expected: dict[str, Tensor] = {}
    for path, (down, up) in weights.items():
        name, first, rows = PLACES[path]
        change = expected.setdefault(name, torch.zeros(rows, down.shape[1], dtype=torch.float64))
        change[first : first + up.shape[0]] += dense(down, up, scale)
    assert {key.rsplit(".lora_", 1)[0].removesuffix(".alpha") for key in tensors} == {
        f"diffusion_model.{name}" for name in expected
    }
    assert len(tensors) == 3 * len(expected)
    for name, change in expected.items():
        torch.testing.assert_close(comfy_change(tensors, name), change, rtol=1e-6, atol=1e-6)


def test_halves_of_the_last_modulation_are_swapped(base: Base) -> None:
    down, up = torch.ones(1, 4), torch.tensor([[1.0], [2.0], [30.0], [40.0]])
    tensors = to_comfy(changes_of({"norm_out.linear": (down, up)}, 1.0), base, torch.float32)
    assert tensors["diffusion_model.final_layer.adaLN_modulation.1.lora_B.weight"].flatten().tolist() == [30, 40, 1, 2]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_precision_of_the_file(dtype: torch.dtype, base: Base, denoiser: nn.Module) -> None:
    weights = random_weights(denoiser, PLACES, rank=2)
    tensors = to_comfy(changes_of(weights, 0.5), base, dtype)
    for key, value in tensors.items():
        assert value.is_contiguous()
        assert value.dtype == (torch.float32 if key.endswith(".alpha") else dtype)
    down, up = weights["transformer_blocks.0.ff.net.2"]
    assert torch.equal(tensors["diffusion_model.double_blocks.0.img_mlp.2.lora_A.weight"], down.to(dtype))
    assert torch.equal(tensors["diffusion_model.double_blocks.0.img_mlp.2.lora_B.weight"], up.to(dtype))


@pytest.mark.parametrize("selection", SELECTIONS.values(), ids=list(SELECTIONS))
def test_round_trip(selection: list[str], base: Base, denoiser: nn.Module) -> None:
    weights = random_weights(denoiser, selection, rank=3)
    back = for_modules(parse(to_comfy(changes_of(weights, 0.25), base, torch.float32)), denoiser, base)
    touched = {PLACES[path][0] for path in weights}
    assert weights.keys() <= back.keys() <= {path for path in all_places() if place(path, base) in touched}
    for path, change in back.items():
        expected = dense(*weights[path], 0.25) if path in weights else torch.zeros(change.up.shape[0], 1)
        ours = dense(change.down, change.up, change.scale)
        torch.testing.assert_close(ours, expected.double().expand_as(ours), rtol=1e-6, atol=1e-6)


def all_places() -> list[str]:
    return list(PLACES)


def place(path: str, base: Base) -> str:
    return base.lora_place(path).name


def test_round_trip_of_the_swapped_halves(base: Base, denoiser: nn.Module) -> None:
    weights = random_weights(denoiser, ["norm_out.linear"], rank=2)
    back = for_modules(parse(to_comfy(changes_of(weights, 1.0), base, torch.float32)), denoiser, base)
    assert torch.equal(back["norm_out.linear"].up, weights["norm_out.linear"][1])


def test_a_lora_applied_to_the_modules_is_the_weights_changed(base: Base, denoiser: nn.Module) -> None:
    """`applied` against merging the difference into the weights, at two strengths; afterwards nothing is left."""
    deltas = for_modules(
        parse(to_comfy(changes_of(random_weights(denoiser, PLACES, 2), 0.1), base, torch.float32)), denoiser, base
    )
    modules = dict(denoiser.named_modules())
    for path in PLACES:
        linear = modules[path]
        x = torch.randn(2, 5, linear.in_features, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            plain = linear(x)
            for strength in (1.0, 0.5, -0.7):
                merged = linear.weight.double() + strength * dense(*vars_of(deltas[path]))
                expected = nn.functional.linear(x.double(), merged, linear.bias.double())
                with applied(denoiser, deltas, strength):
                    torch.testing.assert_close(linear(x).double(), expected, rtol=1e-4, atol=1e-4)
            assert torch.equal(linear(x), plain)


def vars_of(change: object) -> tuple[Tensor, Tensor, float]:
    return change.down, change.up, change.scale  # type: ignore[attr-defined]


def test_applied_is_taken_off_when_something_fails(denoiser: nn.Module, base: Base) -> None:
    deltas = for_modules(
        parse(to_comfy(changes_of(random_weights(denoiser, PLACES, 2), 1.0), base, torch.float32)), denoiser, base
    )

    def fail() -> None:
        with applied(denoiser, deltas, 1.0):
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert not any(module._forward_hooks for module in denoiser.modules())


# --- files of others -------------------------------------------------------------------------------------------------

PROJ = "diffusion_model.double_blocks.0.img_attn.proj"


def test_a_file_without_alpha_has_scale_one() -> None:
    """As ComfyUI: a missing alpha is no division."""
    (change,) = parse({f"{PROJ}.lora_A.weight": torch.ones(4, D), f"{PROJ}.lora_B.weight": torch.ones(D, 4)}).values()
    assert change.scale == 1.0


def test_kohya_halves_are_read(base: Base, denoiser: nn.Module) -> None:
    tensors = {
        f"{PROJ}.lora_down.weight": torch.ones(4, D, dtype=torch.bfloat16),
        f"{PROJ}.lora_up.weight": torch.ones(D, 4, dtype=torch.bfloat16),
        f"{PROJ}.alpha": torch.tensor(2.0),
    }
    deltas = for_modules(parse(tensors), denoiser, base)
    assert list(deltas) == ["transformer_blocks.0.attn.to_out.0"]
    assert deltas["transformer_blocks.0.attn.to_out.0"].scale == 0.5
    assert deltas["transformer_blocks.0.attn.to_out.0"].down.dtype == torch.float32


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({}, "no LoRA layers"),
        ({"lora_unet_x.lora_down.weight": torch.ones(1, 1)}, "lora_unet_x"),
        ({f"{PROJ}.lora_A.weight": torch.ones(4, D)}, "double_blocks.0.img_attn.proj"),
        ({f"{PROJ}.alpha": torch.tensor(1.0)}, "double_blocks.0.img_attn.proj"),
        ({f"{PROJ}.oft_blocks": torch.ones(1, 1)}, "OFT"),
        ({f"{PROJ}.hada_w1_a": torch.ones(1, 1)}, "hada_w1_b"),
        ({f"{PROJ}.hada_w1_a": torch.ones(1, 1), f"{PROJ}.hada_t1": torch.ones(1, 1, 1, 1)}, "Tucker"),
        ({f"{PROJ}.lokr_w1": torch.ones(2, 2)}, "lokr_w2_a"),
        ({f"{PROJ}.lora_A.weight": torch.ones(0, D), f"{PROJ}.lora_B.weight": torch.ones(D, 0)}, "img_attn.proj"),
    ],
    ids=[
        "nothing",
        "other names",
        "half",
        "alpha alone",
        "another kind",
        "half a LoHa",
        "Tucker",
        "half a LoKr",
        "rank 0",
    ],
)
def test_files_that_are_no_lora_of_ours_are_refused(tensors: dict[str, Tensor], message: str) -> None:
    with pytest.raises(AdapterError) as caught:
        parse(tensors)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("path", "shape", "message"),
    [
        ("double_blocks.99.img_attn.proj", (D, D), "double_blocks.99"),
        ("double_blocks.0.img_attn.proj", (2 * D, D), "double_blocks.0.img_attn.proj"),
        ("double_blocks.0.img_attn.proj", (D, 64), "double_blocks.0.img_attn.proj"),
        ("double_blocks.0.img_attn.qkv", (D, D), "double_blocks.0.img_attn.qkv"),
        ("single_blocks.0.linear1", (7 * 100, D), "single_blocks.0.linear1"),
    ],
)
def test_loras_of_another_base_are_refused(
    path: str, shape: tuple[int, int], message: str, base: Base, denoiser: nn.Module
) -> None:
    tensors = {
        f"diffusion_model.{path}.lora_A.weight": torch.ones(2, shape[1]),
        f"diffusion_model.{path}.lora_B.weight": torch.ones(shape[0], 2),
    }
    with pytest.raises(AdapterError) as caught:
        for_modules(parse(tensors), denoiser, base)
    assert message in str(caught.value)


def test_halves_of_different_rank_are_refused(base: Base, denoiser: nn.Module) -> None:
    tensors = {f"{PROJ}.lora_A.weight": torch.ones(4, D), f"{PROJ}.lora_B.weight": torch.ones(D, 3)}
    with pytest.raises(AdapterError, match="img_attn"):
        for_modules(parse(tensors), denoiser, base)


# --- to go on training from a file -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("rank", "scale"), [(3, 0.25), (3, 1.0), (8, 2.0)])
def test_fitting_changes_nothing(rank: int, scale: float, base: Base, denoiser: nn.Module) -> None:
    weights = random_weights(denoiser, PLACES, rank=3)
    back = for_modules(parse(to_comfy(changes_of(weights, 0.25), base, torch.float32)), denoiser, base)
    for path, change in back.items():
        fresh = torch.randn(rank, change.down.shape[1], generator=torch.Generator().manual_seed(2))
        down, up = fitted(change, rank, scale, fresh)
        assert (down.shape, up.shape) == (fresh.shape, (change.up.shape[0], rank))
        torch.testing.assert_close(dense(down, up, scale), dense(*weights[path], 0.25), rtol=1e-6, atol=1e-6)
        assert torch.equal(down[3:], fresh[3:]), "what is free to be learned starts as usual"
        if (rank, scale) == (3, 0.25):
            assert torch.equal(down, weights[path][0])
            assert torch.equal(up, weights[path][1])


def test_fitting_into_too_small_a_rank_is_refused(base: Base, denoiser: nn.Module) -> None:
    weights = random_weights(denoiser, ["transformer_blocks.0.ff.net.2"], rank=3)
    (change,) = for_modules(parse(to_comfy(changes_of(weights, 1.0), base, torch.float32)), denoiser, base).values()
    with pytest.raises(AdapterError, match="rank is 3"):
        fitted(change, 2, 1.0, torch.zeros(2, MLP))


# --- LoKr and LoHa on layers that ComfyUI fuses ----------------------------------------------------------------------

QKV = "lora_unet_double_blocks_0_img_attn_qkv"
"""As LyCORIS names it, which trains the fused layer."""


def parts_of(deltas: dict[str, Any]) -> list[Any]:
    return [deltas[f"transformer_blocks.0.attn.to_{part}"] for part in "qkv"]


def test_a_loha_on_a_fused_layer_is_cut_into_its_rows(base: Base, denoiser: nn.Module) -> None:
    source = torch.Generator().manual_seed(0)
    left, right = (torch.randn(shape, generator=source) for shape in ((2, 3 * D, 4), (2, 4, D)))
    tensors = {f"{QKV}.hada_w{k + 1}_{ab}": (left, right)[ab == "b"][k] for k in range(2) for ab in "ab"}
    found = parts_of(for_modules(parse({**tensors, f"{QKV}.alpha": torch.tensor(2.0)}), denoiser, base))
    ours = torch.cat([one.scale * (one.w1_a @ one.w1_b) * (one.w2_a @ one.w2_b) for one in found])
    torch.testing.assert_close(ours, 0.5 * (left[0] @ right[0]) * (left[1] @ right[1]))


def test_a_lokr_on_a_fused_layer_is_cut_where_its_blocks_allow(base: Base, denoiser: nn.Module) -> None:
    source = torch.Generator().manual_seed(0)
    w1, w2 = torch.randn(12, 8, generator=source), torch.randn(32, 16, generator=source)
    found = parts_of(for_modules(parse({f"{QKV}.lokr_w1": w1, f"{QKV}.lokr_w2": w2}), denoiser, base))
    torch.testing.assert_close(torch.cat([torch.kron(one.w1, one.w2) for one in found]), torch.kron(w1, w2))
    across = {f"{QKV}.lokr_w1": torch.ones(16, 8), f"{QKV}.lokr_w2": torch.ones(24, 16)}
    with pytest.raises(AdapterError, match="cannot be cut"):
        for_modules(parse(across), denoiser, base)


@pytest.mark.parametrize("kind", ["dora", "lokr", "loha"])
def test_what_cannot_be_fused_keeps_diffusers_names(kind: str, base: Base) -> None:
    denoiser = base.load_denoiser()
    targets = (r"transformer_blocks\.0\.attn\.to_(q|out\.0)", r"norm_out\.linear")
    adapter = Adapter(denoiser, AdapterConfig(type=kind, rank=2), targets, seed=0)  # type: ignore[arg-type]
    source = torch.Generator().manual_seed(0)
    adapter.load_state_dict(
        {n: v + torch.randn(v.shape, generator=source) * 0.1 for n, v in adapter.state_dict().items()}
    )
    file = to_comfy(adapter.deltas(), base, torch.float32)
    names = {key.removesuffix(".alpha") for key in file if key.endswith(".alpha")}
    assert names == {
        "transformer.transformer_blocks.0.attn.to_q",
        "diffusion_model.double_blocks.0.img_attn.proj",
        "transformer.norm_out.linear" if kind == "lokr" else "diffusion_model.final_layer.adaLN_modulation.1",
    }
    plain = base.load_denoiser()
    with applied(plain, for_modules(parse(file), plain, base), 1.0):
        for path in adapter.layers:
            x = torch.randn(2, plain.get_submodule(path).in_features, generator=source)  # type: ignore[arg-type]
            ours, its = denoiser.get_submodule(path)(x), plain.get_submodule(path)(x)
            torch.testing.assert_close(its, ours, rtol=1e-4, atol=1e-5)
