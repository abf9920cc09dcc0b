"""What the denoisers' time and guidance embedders are given in each precision, against ComfyUI's and in closed form."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor, nn

from trainer_core.config import ModelConfig
from trainer_core.families.device import autocast
from trainer_core.families.registry import open_base

from ..predicting import predicted
from .small_models import seeded, small_sd, small_sdxl

TIMES = [0.5013, 0.5003, 0.9, 0.9007, 0.0004]
GUIDANCE = 3.5

HOST = """
import json, sys
sys.argv = sys.argv[:1] + ["--cpu"]
import comfy.options
comfy.options.enable_args_parsing()
import torch
from comfy.ldm.flux.layers import timestep_embedding
from comfy.model_base import convert_tensor
times, guidance, names = json.load(sys.stdin)
found = {}
for name in names:
    dtype = getattr(torch, name)
    t = torch.tensor(times)  # BaseModel._apply_model: ModelSamplingFlux.timestep(sigma).float()
    g = convert_tensor(torch.FloatTensor([guidance]), dtype, "cpu")  # what CONDRegular becomes on the way to the model
    found[name] = [timestep_embedding(one, 256).to(dtype).float().tolist() for one in (t, g)]
print("RESULT" + json.dumps(found))
"""
"""What `Flux.forward_orig` of ComfyUI hands to `time_in` and `guidance_in`, by precision."""
HOST_DTYPES = ("float32", "bfloat16")


@contextmanager
def given_to(module: nn.Module) -> Iterator[list[Tensor]]:
    """The first inputs that a module gets."""
    seen: list[Tensor] = []
    hook = module.register_forward_pre_hook(lambda _, given: seen.append(given[0].detach().clone()))
    yield seen
    hook.remove()


def embedding(times: list[float]) -> Tensor:
    """cos and sin of 1000 t · 10000^(-k / 128), in float64."""
    angles = 1000 * np.float32(times).astype(np.float64)[:, None] * 10000.0 ** (-np.arange(128) / 128)
    return torch.from_numpy(np.concatenate([np.cos(angles), np.sin(angles)], axis=1))


@pytest.fixture(scope="module")
def model() -> FluxTransformer2DModel:
    """A guidance-distilled transformer of two blocks."""
    made = seeded(
        lambda: FluxTransformer2DModel(
            in_channels=64,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=128,
            num_attention_heads=1,
            joint_attention_dim=64,
            pooled_projection_dim=64,
            guidance_embeds=True,
        )
    )
    assert isinstance(made, FluxTransformer2DModel)
    return made.eval()


def embedded(model: nn.Module, dtype: str, times: list[float] = TIMES) -> tuple[Tensor, Tensor]:
    """What FLUX.1's embedders of time and guidance get, in training as in previews."""
    base = open_base(ModelConfig(device="cpu", dtype=dtype))
    base._distilled = True  # type: ignore[attr-defined]
    model = model.to(base.dtype)
    count = len(times)
    text = {"text": torch.zeros(count, 4, 64), "pooled": torch.zeros(count, 64)}
    embedders = model.time_text_embed
    with (
        given_to(embedders.timestep_embedder) as of_time,
        given_to(embedders.guidance_embedder) as of_guidance,
        torch.no_grad(),
        autocast(base.device, base.dtype),
    ):
        predicted(base, model, torch.zeros(count, 16, 4, 4), torch.tensor(times), text, GUIDANCE)
    assert of_time[0].dtype == base.dtype
    return of_time[0], of_guidance[0]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_flux_embeds_times_that_nothing_rounded(dtype: str, model: nn.Module) -> None:
    expected = embedding(TIMES)
    got, _ = embedded(model, dtype)
    # fp32 angles of up to 1000 are exact to 6e-5; then the embedding itself is rounded, to at most 2^-9 in bfloat16
    torch.testing.assert_close(got.double(), expected, rtol=0, atol=1e-4 + 0.5 * torch.finfo(got.dtype).eps)


def test_flux_tells_times_a_thousandth_apart_in_bfloat16(model: nn.Module) -> None:
    (one, other), _ = embedded(model, "bfloat16", [0.5003, 0.5013])
    assert (one.float() - other.float()).abs().max() > 0.5  # |2 sin(1/2)| = 0.96 between angles 1 apart, at most


def test_in_float32_flux_embeds_bit_for_bit_what_diffusers_does(model: nn.Module) -> None:
    time, guidance = embedded(model, "float32")
    embedders = model.time_text_embed
    with (
        given_to(embedders.timestep_embedder) as of_time,
        given_to(embedders.guidance_embedder) as of_guidance,
        torch.no_grad(),
    ):
        model(
            hidden_states=torch.zeros(len(TIMES), 4, 64),
            encoder_hidden_states=torch.zeros(len(TIMES), 4, 64),
            pooled_projections=torch.zeros(len(TIMES), 64),
            timestep=torch.tensor(TIMES),
            guidance=torch.full((len(TIMES),), GUIDANCE),
            img_ids=torch.zeros(4, 3),
            txt_ids=torch.zeros(4, 3),
        )
    assert torch.equal(time, of_time[0])
    assert torch.equal(guidance, of_guidance[0])


@pytest.fixture(scope="module")
def host(comfyui: Path) -> dict[str, list[list[list[float]]]]:
    """Asks ComfyUI, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", HOST],
        input=json.dumps([TIMES, GUIDANCE, HOST_DTYPES]),
        capture_output=True,
        text=True,
        cwd=comfyui,
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT")]
    assert lines, done.stderr[-3000:]
    found: dict[str, list[list[list[float]]]] = json.loads(lines[0].removeprefix("RESULT"))
    return found


@pytest.mark.host
@pytest.mark.parametrize("dtype", HOST_DTYPES)
def test_flux_embeds_what_comfyui_embeds(
    dtype: str, model: nn.Module, host: dict[str, list[list[list[float]]]]
) -> None:
    """Times as fp32, guidance in the model's precision: ComfyUI rounds 1000 · 3.5 to 3504 in bfloat16."""
    time, guidance = map(torch.tensor, host[dtype])
    ours = embedded(model, dtype)
    assert torch.equal(ours[0].float(), time)
    assert torch.equal(ours[1].float(), guidance.expand(len(TIMES), -1))


@pytest.mark.parametrize(("family", "make"), [("sd15", small_sd), ("sdxl", small_sdxl)])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_unets_embed_the_step_itself_in_any_precision(
    family: str, make: Callable[[Path], Path], dtype: str, tmp_path: Path
) -> None:
    """A UNet reads whole steps, which bfloat16 could not hold above 256: 501 would be 500."""
    base = open_base(ModelConfig(source=str(make(tmp_path / family)), family=family, device="cpu", dtype=dtype))
    unet = base.load_denoiser()
    steps = torch.tensor([500, 501, 998])
    base.load_text_encoders()
    text = {name: value.expand(3, *value.shape[1:]) for name, value in base.embed(["a"]).items()}
    with given_to(unet.time_embedding) as seen, torch.no_grad(), autocast(base.device, base.dtype):
        predicted(base, unet, torch.zeros(3, 4, 8, 8), (steps + 0.5) / 1000, text)
    width = seen[0].shape[1] // 2
    angles = steps.double()[:, None] * 10000.0 ** (-torch.arange(width).double() / width)
    expected = torch.cat([angles.cos(), angles.sin()], dim=1)
    assert seen[0].dtype == base.dtype
    torch.testing.assert_close(seen[0].double(), expected, rtol=0, atol=1e-4 + 0.5 * torch.finfo(base.dtype).eps)
