"""Training on a quantized base: it resumes bit for bit, and frozen layers keep nothing of their weights' size."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import nn

from trainer_core.adapters.adapter import Adapter
from trainer_core.adapters.operations import dense_weight
from trainer_core.config import AdapterConfig, JobConfig, ModelConfig
from trainer_core.families.base import Base
from trainer_core.families.registry import open_base
from trainer_core.job import TrainingJob
from trainer_core.memory.packed_linear import PackedLinear
from trainer_core.memory.products import key_of
from trainer_core.runs.events import StepDone
from trainer_core.runs.run_folder import RunFolder

from ..memory.kept import weights_kept
from ..predicting import predicted

FORMATS = ("none", "float8", "int8", "6bit", "3bit", "nf4")


def opened(name: str) -> Base:
    if name == "nf4":
        pytest.importorskip("bitsandbytes")
    return open_base(ModelConfig(device="cpu", quantization=name))


def inputs(dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
    """Noisy latents of two samples (24 tokens each), times, texts."""
    source = torch.Generator().manual_seed(1)
    text = {
        "text": torch.randn(2, 16, 64, generator=source).to(dtype),
        "pooled": torch.randn(2, 64, generator=source).to(dtype),
    }
    return torch.randn(2, 16, 8, 12, generator=source), torch.tensor([0.4, 0.8]), text


def adapted(denoiser: nn.Module, base: Base, **config: Any) -> Adapter:
    adapter = Adapter(denoiser, AdapterConfig(rank=4, **config), base.spec.targets["attention"], 1)
    source = torch.Generator().manual_seed(8)
    for parameter in adapter.parameters():
        parameter.data += torch.randn(parameter.shape, generator=source) * 0.02
    return adapter


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", FORMATS)
def test_no_weight_is_kept_for_the_backward_pass(name: str, dtype: Any) -> None:
    """Neither of adapted layers nor of the others (feed-forward)."""
    from trainer_core.families.device import autocast

    base = opened(name)
    base = open_base(base.config.but(dtype=dtype))
    denoiser = base.load_denoiser()
    adapted(denoiser, base)
    x, t, text = inputs(base.dtype)

    def forward() -> Any:
        with autocast(base.device, base.dtype):
            return predicted(base, denoiser, x, t, text)

    forward()  # so that what is made once and stays (tables of formats) is there
    assert weights_kept(denoiser, forward) == set()


@pytest.mark.parametrize("kind", ["lora", "dora", "lokr", "loha"])
@pytest.mark.parametrize("name", [name for name in FORMATS if name != "none"])
def test_gradients_are_those_of_the_weights_that_are_meant(name: str, kind: str) -> None:
    """A base whose layers are plain ones again, with the dequantized weights, is trained the same way."""
    base = opened(name)
    packed, plain = base.load_denoiser(), base.load_denoiser()
    for path, layer in list(plain.named_modules()):
        if isinstance(layer, PackedLinear):
            made = nn.Linear(layer.in_features, layer.out_features, layer.bias is not None)
            made.weight.data = dense_weight(layer)
            if layer.bias is not None:
                made.bias.data = layer.bias
            plain.set_submodule(path, made)
    x, t, text = inputs()
    found = []
    for denoiser in (packed, plain):
        adapter = adapted(denoiser, base, type=kind)
        said = predicted(base, denoiser, x, t, text)
        said.square().sum().backward()
        found.append(
            (said.detach(), torch.cat([one.grad.flatten() for one in adapter.parameters() if one.grad is not None]))
        )
    (said, gradients), (expected, expected_gradients) = found
    assert torch.allclose(said, expected, atol=1e-4)
    assert (gradients - expected_gradients).norm() < 1e-4 * expected_gradients.norm()


def test_products_in_8_bits_are_chosen_once_and_told(
    job_of: Callable[..., JobConfig], train: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU where they pay; a run that goes on takes what was chosen, whatever would be measured now."""
    model = {"quantization": "int8"}
    monkeypatch.setattr(
        "trainer_core.training.products.products_of",
        lambda device, weights, *_: {key_of(*weight): True for weight in weights},
    )
    run = train(job_of(model=model, train={"steps": 1})).run
    monkeypatch.setattr("trainer_core.training.products.products_of", lambda *_: {})
    assert (
        TrainingJob(RunFolder.open(run.path), job_of(model=model, train={"steps": 2})).run_here(lambda _: None)
        == "finished"
    )
    with safe_open(run.latest().lora, "pt") as file:
        assert file.metadata()["lora_foundry.base_precision"] == "int8, computed in float32, products in 8 bits"
    plain = train(job_of(model=model, train={"steps": 1})).run
    first, unmeasured = (next(line["loss"] for line in one.metrics() if "loss" in line) for one in (run, plain))
    assert first != unmeasured


def test_a_stopped_run_ends_like_one_that_never_was(
    job_of: Callable[..., JobConfig], train: Any, tmp_path: Path
) -> None:
    """Previews and text encoders included; the second process finds the packed weights in the cache."""
    job = job_of(
        model={"quantization": "6bit", "text_encoder_quantization": "int8"},
        train={"steps": 3, "gradient_checkpointing": True},
        sample={"prompts": ("a [trigger]",), "every": 3, "width": 64, "height": 64},
    )
    whole = train(job, root=tmp_path / "whole").run
    broken = TrainingJob.new(tmp_path / "broken", job)
    outcome = broken.run_here(lambda event: broken.stop() if isinstance(event, StepDone) and event.step == 1 else None)
    assert outcome == "stopped"
    assert TrainingJob(RunFolder.open(broken.run.path)).run_here(lambda _: None) == "finished"
    files = [run.latest().lora for run in (whole, broken.run)]
    assert files[0].read_bytes() == files[1].read_bytes()
    pictures = [[path.read_bytes() for path in run.sample_paths(3)] for run in (whole, broken.run)]
    assert pictures[0]
    assert pictures[0] == pictures[1]
    with safe_open(files[0], "pt") as file:
        assert file.metadata()["lora_foundry.base_precision"] == "6bit, computed in float32"
    plain = train(job_of(train={"steps": 3, "gradient_checkpointing": True}), root=tmp_path / "plain").run
    assert plain.latest().lora.read_bytes() != files[0].read_bytes()
