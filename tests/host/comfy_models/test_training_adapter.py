"""A training adapter acts while training and not while drawing, and is no part of the result."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ..pack import module
from .test_training import data, job_of  # noqa: F401 - a fixture
from .zoo import MODELS

pytestmark = pytest.mark.host


@pytest.fixture(autouse=True)
def _provided(_comfy: None, monkeypatch: pytest.MonkeyPatch) -> None:
    registry, provider = module("trainer_core.families.registry"), module("nodes.comfy_models.provider")
    monkeypatch.setattr(registry, "_PROVIDERS", [provider.ComfyModels()])


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    """A LoRA of two layers of the zoo's FLUX.1, with alpha other than rank, in ComfyUI's names."""
    import torch
    from safetensors.torch import save_file

    model = MODELS["flux1"].make().model.diffusion_model
    tensors: dict[str, Any] = {}
    source = torch.Generator().manual_seed(5)
    for path in ("double_blocks.0.img_attn.qkv", "single_blocks.0.linear2"):
        out, into = model.get_submodule(path).weight.shape
        tensors[f"diffusion_model.{path}.lora_A.weight"] = torch.randn(3, into, generator=source) * 0.2
        tensors[f"diffusion_model.{path}.lora_B.weight"] = torch.randn(out, 3, generator=source) * 0.2
        tensors[f"diffusion_model.{path}.alpha"] = torch.tensor(1.5)
    save_file(tensors, tmp_path / "adapter.safetensors")
    return tmp_path / "adapter.safetensors"


def opened(patcher: Any, adapter: Path | None) -> Any:
    from .zoo.encoders import clip, vae

    links, base = module("nodes.comfy_models.links"), module("nodes.comfy_models.base")
    files = {"training_adapter": str(adapter)} if adapter else {}
    model = MODELS["flux1"]
    found, _ = links.linked_model((patcher,), clip(model), vae(model), {"device": "cpu", "files": files})
    return found, base.ComfyBase.open(found)


def merged(adapter: Path) -> Any:
    """The model with the adapter as ComfyUI's LoRA loader puts it on."""
    import comfy.sd
    import comfy.utils

    patcher = MODELS["flux1"].make()
    return comfy.sd.load_lora_for_models(patcher, None, comfy.utils.load_torch_file(str(adapter)), 1.0, 0)[0]


def predicted(base: Any) -> Any:
    import torch

    conditioning = module("trainer_core.families.conditioning")
    denoiser = base.load_denoiser()
    (text,) = base.encode_prompts(["a red cube"])
    noisy = {"main": torch.randn(1, 16, 16, 16, generator=torch.Generator().manual_seed(1))}
    with torch.no_grad():
        given = base.collate([conditioning.Conditioning("a red cube", text)])
        return base.predict(denoiser, noisy, torch.tensor([0.6]), given)["main"], denoiser


def test_it_predicts_as_with_the_lora_merged_and_draws_as_without(adapter: Path) -> None:
    import torch

    sampler = module("trainer_core.sampling.sampler")
    conditioning = module("trainer_core.families.conditioning")
    _, with_adapter = opened(MODELS["flux1"].make(), adapter)
    _, as_merged = opened(merged(adapter), None)
    _, plain = opened(MODELS["flux1"].make(), None)
    (ours, denoiser), (theirs, _), (without, other) = map(predicted, (with_adapter, as_merged, plain))
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(ours, without, atol=1e-2)
    settings = sampler.SamplerSettings(128, 128, 2, 3.5)
    drawn = []
    for base, model in ((with_adapter, denoiser), (plain, other)):
        (text,) = base.encode_prompts(["a red cube"])
        prompt = conditioning.Conditioning("a red cube", text)
        drawn.append(sampler.draw(base, lambda _, model=model: model, [prompt], [1], settings)["main"])
    assert torch.equal(*drawn)


def test_a_run_with_one_saves_nothing_of_it_and_notes_another(adapter: Path, data: Path, tmp_path: Path) -> None:  # noqa: F811
    api, errors = module("trainer_core.api"), module("trainer_core.errors")
    model, base = opened(MODELS["flux1"].make(), adapter)
    _, plain = opened(MODELS["flux1"].make(), None)
    assert base.denoiser_fingerprint() != plain.denoiser_fingerprint()
    run = api.new_run(tmp_path / "runs", job_of(model, data))
    assert run.run_here(lambda _: None) == "finished"
    trained = api.read_lora_tensors(run.run.latest().lora)
    given = api.read_lora_tensors(adapter)
    name = "diffusion_model.single_blocks.0.linear2.lora_A.weight"
    assert trained[name].shape[0] == 2
    assert given[name].shape[0] == 3
    (tmp_path / "none.safetensors").write_bytes(b"")
    with pytest.raises(errors.BaseModelError, match="training_adapter"):
        opened(MODELS["flux1"].make(), tmp_path / "none.safetensors")[1].load_denoiser()
