"""Which layers are adapted: for families of our own the same as there, for others what their blocks are made of."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import pytest

from ..pack import module
from .zoo import MODELS

pytestmark = pytest.mark.filterwarnings("ignore:To copy construct from a tensor")

CHOICES = ["attention", "attention_mlp", "all"]
FLUX: dict[str, Any] = {
    "image_model": "flux",
    "in_channels": 16,
    "out_channels": 16,
    "patch_size": 2,
    "vec_in_dim": 768,
    "context_in_dim": 4096,
    "hidden_size": 3072,
    "mlp_ratio": 4.0,
    "num_heads": 24,
    "depth": 19,
    "depth_single_blocks": 38,
    "axes_dim": [16, 56, 56],
    "theta": 10000,
    "qkv_bias": True,
    "guidance_embed": True,
    "txt_ids_dims": [],
}


def layers() -> Any:
    return module("nodes.comfy_models.layers")


def matched(model: Any, patterns: Iterable[str]) -> set[str]:
    """The paths of a model that an adapter would take, as it takes them; each pattern is for one of them."""
    one_of = re.compile("|".join(patterns))
    found = {path for path, _ in model.named_modules() if one_of.fullmatch(path)}
    assert len(found) == len(list(patterns))
    return found


def names(name: str, choice: str = "all") -> set[str]:
    """What is adapted of a model of the zoo, with N for every number."""
    denoiser = MODELS[name].make().model.diffusion_model
    return {re.sub(r"\d+", "N", path) for path in matched(denoiser, layers().targets(denoiser)[choice])}


@pytest.fixture(scope="module")
def flux() -> Any:
    """The real size, without memory."""
    import comfy.supported_models

    return comfy.supported_models.Flux(dict(FLUX)).get_model({}, "", device="meta").diffusion_model


@pytest.mark.parametrize("choice", CHOICES)
def test_flux_as_in_our_own_family(choice: str, flux: Any) -> None:
    import diffusers
    import torch

    family = module("trainer_core.families.flux1.model")
    naming = module("trainer_core.families.flux1.names")
    config = module("trainer_core.families.flux1.single_file").FLUX1.config("transformer")
    with torch.device("meta"):
        ours: Any = diffusers.FluxTransformer2DModel.from_config(config)
    chosen = re.compile("|".join(family.SPEC.targets[choice]))
    expected = {naming.flux_place(path).name for path, _ in ours.named_modules() if chosen.fullmatch(path)}
    assert matched(flux, layers().targets(flux)[choice]) == expected


@pytest.fixture(scope="module", params=["SD1", "SDXL"])
def unet(request: pytest.FixtureRequest) -> tuple[Any, Any, dict[str, str]]:
    """ComfyUI's U-Net of the real size, our family's targets, and where ComfyUI has each of its layers."""
    import comfy.model_detection
    import diffusers
    import torch

    layout = getattr(module("trainer_core.families.stable_diffusion.layouts"), request.param)
    kind = module(f"trainer_core.families.stable_diffusion.{'sdxl' if request.param == 'SDXL' else 'sd15'}")
    with torch.device("meta"):
        ours: Any = diffusers.UNet2DConditionModel.from_config(layout.config("unet"))
    state = ours.state_dict()
    found = comfy.model_detection.model_config_from_diffusers_unet(state)
    theirs = found.get_model({}, "", device="meta").diffusion_model
    shapes = {name: tuple(value.shape) for name, value in state.items()}
    originals = module("trainer_core.families.stable_diffusion.unet").original_modules(shapes)
    return theirs, kind.SPEC, originals


@pytest.mark.parametrize("choice", [*CHOICES, "convolutions"])
def test_unets_as_in_our_own_families(choice: str, unet: tuple[Any, Any, dict[str, str]]) -> None:
    theirs, spec, originals = unet
    patterns = spec.conv_targets if choice == "convolutions" else spec.targets[choice]
    chosen = re.compile("|".join(patterns))
    expected = {original for path, original in originals.items() if chosen.fullmatch(path)}
    found = layers().conv_targets(theirs) if choice == "convolutions" else layers().targets(theirs)[choice]
    assert matched(theirs, found) == expected


@pytest.mark.parametrize("name", MODELS)
def test_every_model_has_blocks_with_layers_that_an_adapter_fits(name: str) -> None:
    """All that are chosen can be adapted, attention is part of the default, and that of all."""
    denoiser = MODELS[name].make().model.diffusion_model
    found = layers().targets(denoiser)
    attention, default, everything = (matched(denoiser, found[choice]) for choice in CHOICES)
    assert attention < default <= everything
    operations = module("trainer_core.adapters.operations")
    assert all(operations.operation_of(denoiser.get_submodule(path)) for path in everything)
    blocks = module("trainer_core.memory.blocks").blocks_of(denoiser)
    assert all(denoiser.get_submodule(path) is block for path, block in blocks.items())
    assert not any(path.startswith(f"{other}.") for path in blocks for other in blocks)
    around = {path for path in everything if not any(path.startswith(f"{block}.") for block in blocks)}
    assert all(re.search(r"\.(proj_in|proj_out|time_pos_embed\.\d)$", path) for path in around), "of SD's U-Nets only"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("chroma", {"img_attn.qkv", "img_attn.proj", "txt_attn.qkv", "txt_attn.proj", "linearN"}
         | {"img_mlp.N", "txt_mlp.N"}),
        ("z_image", {"attention.qkv", "attention.out", "feed_forward.wN", "adaLN_modulation.N"}),
        ("omnigen2", {"attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.N", "feed_forward.linear_N", "normN.linear"}),
        ("wan21_i2v", {f"{kind}_attn.{one}" for kind in ("self", "cross") for one in "qkvo"}
         | {"cross_attn.k_img", "cross_attn.v_img", "ffn.N"}),
        ("hidream", {f"block.attnN.to_{one}{text}" for one in ("q", "k", "v", "out") for text in ("", "_t")}
         | {"block.ff_i.shared_experts.wN", "block.ff_t.wN", "block.adaLN_modulation.N"}),
        ("kandinsky5", {f"{kind}_attention.{one}" for kind in ("self", "cross")
                        for one in ("to_query", "to_key", "to_value", "out_layer")}
         | {"feed_forward.in_layer", "feed_forward.out_layer", "visual_modulation.out_layer"}),
    ],
)  # fmt: skip
def test_what_blocks_are_made_of(name: str, expected: set[str]) -> None:
    """Written down from ComfyUI's sources and the traps of families."""
    assert {path.split(".N.", 1)[1] for path in names(name)} == expected


@pytest.mark.parametrize(
    ("name", "lists"),
    [
        ("chroma", {"double_blocks", "single_blocks"}),
        ("z_image", {"layers"}),
        ("lumina2", {"layers"}),
        ("omnigen2_edit", {"layers"}),
        ("boogu", {"double_stream_layers", "single_stream_layers"}),
        ("krea2", {"blocks"}),
        ("ltx2", {"transformer_blocks"}),
        ("hunyuan_video", {"double_blocks", "single_blocks"}),
        ("kandinsky5", {"visual_transformer_blocks"}),
        ("wan21_vace", {"blocks"}),
        ("anima", {"blocks"}),
        ("hidream_o1", {"language_model.layers"}),
        ("minimax_h3", {"blocks"}),
    ],
)
def test_which_lists_of_blocks_count(name: str, lists: set[str]) -> None:
    """Those of the denoiser, not those of encoders within it, nor the exceptions."""
    assert {path.split(".N.", 1)[0] for path in names(name)} == lists


def test_attention_and_modulation_are_told_apart() -> None:
    """Cosmos calls the modulation of attention `adaln_modulation_self_attn`."""
    attention, default, everything = (names("cosmos2_t2i", choice) for choice in CHOICES)
    assert {path.split(".N.")[1] for path in attention} == {
        f"{kind}_attn.{one}" for kind in ("self", "cross") for one in ("q_proj", "k_proj", "v_proj", "output_proj")
    }
    assert {path.split(".N.")[1] for path in default - attention} == {"mlp.layerN"}
    assert everything - default
    assert all("adaln_modulation" in path for path in everything - default)


def test_exceptions_say_why() -> None:
    for pattern, reason in layers().EXCEPTIONS.items():
        re.compile(pattern)
        assert len(reason) > 20


def test_how_much_it_is(flux: Any) -> None:
    """FLUX.1 has 11.9 billion weights; in its 57 blocks are 152 + 76 linear layers without modulation."""
    targets = layers().targets(flux)["attention_mlp"]
    assert layers().described(flux, targets) == "228 layers (8.6 of 11.9 billion weights)"
    assert layers().described(flux, ()) == "0 layers (0.0 of 11.9 billion weights)"
