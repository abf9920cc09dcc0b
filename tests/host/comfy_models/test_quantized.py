"""A MODEL whose file is quantized trains as it is, with its quantized weights."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from tests.trainer_core.memory.kept import weights_kept

from ...trainer_core.memory.adversary import Adversary
from ..pack import ROOT, module
from .hosted import linked, lora_of, opened, relative, sample_of, sampled, states, trained, training
from .quantized import FORMATS, loaded, weight_bytes, write

torch = pytest.importorskip("torch")

WITHIN = {
    # of activations, which these formats quantize too; the others compute in full precision on a CPU
    "int8": 0.05,
    "int8 rotated": 0.05,
    "w4a4": 0.5,
    "w4a8": 0.05,
}
DENOISER = ROOT / "trainer_core/embedded/base/transformer/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def plain() -> dict[str, Any]:
    return {name: one.clone() for name, one in loaded(DENOISER).model.diffusion_model.state_dict().items()}


@pytest.fixture(scope="module")
def files(plain: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path]]:
    """By format: the quantized file, and one of the weights that it stands for."""
    from safetensors.torch import save_file

    folder, found = tmp_path_factory.mktemp("formats"), {}
    for name in FORMATS:
        packed, meant = folder / f"{name}.safetensors", folder / f"{name} meant.safetensors"
        save_file(write(plain, name, packed), meant)
        found[name] = packed, meant
    return found


def inputs() -> tuple[dict[str, Any], Any, Any]:
    """Noisy latents of two samples, their times, and the direction of a loss."""
    source = torch.Generator().manual_seed(4)
    noisy, towards = torch.randn(2, 16, 8, 8, generator=source), torch.randn(2, 16, 8, 8, generator=source)
    return {"main": noisy}, torch.tensor([0.35, 0.8]), towards


def text_of(model: Any, seed: int) -> list[list[Any]]:
    """In the widths that the embedded base reads."""
    config, source = model.model.model_config.unet_config, torch.Generator().manual_seed(seed)
    words = torch.randn(1, 6, config["context_in_dim"], generator=source)
    return [[words, {"pooled_output": torch.randn(1, config["vec_in_dim"], generator=source)}]]


def gradients(model: Any, recomputed: bool = False, streamed: bool = False) -> tuple[dict[str, Any], Any]:
    """Those of a LoRA on all layers, which already changes something; and the prediction."""
    adapters, config = module("trainer_core.adapters.adapter"), module("trainer_core.config")
    base = opened(model)
    noisy, t, towards = inputs()
    with training(base) as denoiser:
        adapter = adapters.Adapter(denoiser, config.AdapterConfig(rank=4), base.spec.targets["attention_mlp"], 1)
        source = torch.Generator().manual_seed(8)
        for layer in adapter.layers.values():
            up = layer.trained["lora_B.weight"]
            up.data = torch.randn(up.shape, generator=source) * 0.02
        if streamed:
            blocks = module("trainer_core.memory.blocks").blocks_of(denoiser)
            module("trainer_core.memory.streaming").Streamed(denoiser, blocks, len(blocks) - 1, Adversary())
        if recomputed:
            base.recompute_blocks(denoiser, module("trainer_core.memory.settings").MemorySettings())
        given = base.collate([sample_of(text_of(model, seed)) for seed in (1, 2)])
        said = base.predict(denoiser, noisy, t, given)["main"]
        (said * towards).sum().backward()
        found = {
            f"{path}.{name}": one.grad for path, layer in adapter.layers.items() for name, one in layer.trained.items()
        }
    assert len(found) > 20
    assert all(one is not None and one.abs().max() > 0 for one in found.values())
    return found, said.detach()


def _plain(value: Any) -> Any:
    return value.dequantize() if value.dtype != torch.float32 or type(value) is not torch.Tensor else value


def together(tensors: dict[str, Any]) -> Any:
    return torch.cat([tensors[name].flatten() for name in sorted(tensors)])


@pytest.mark.parametrize("name", FORMATS)
def test_gradients_are_those_of_the_weights_that_are_meant(name: str, files: dict[str, tuple[Path, Path]]) -> None:
    from comfy.quant_ops import QuantizedTensor

    packed, meant = files[name]
    model = loaded(packed)
    before = states(model)
    found, said = gradients(model)
    expected, meant_said = gradients(loaded(meant))
    again, _ = gradients(model, recomputed=True)
    apart = relative(together(found), together(expected))
    logging.getLogger(__name__).info(
        "%s: gradients differ by %.1e, predictions by %.1e", name, apart, relative(said, meant_said)
    )
    assert apart < WITHIN.get(name, 1e-5)
    assert relative(together(again), together(found)) < 1e-6
    streamed, _ = gradients(model, recomputed=True, streamed=True)
    assert all(torch.equal(streamed[key], value) for key, value in again.items())
    weights = [
        one.weight
        for one in model.model.diffusion_model.modules()
        if isinstance(getattr(one, "weight", None), QuantizedTensor)
    ]
    assert len(weights) > 20
    after = states(model)
    assert all(torch.equal(_plain(before[key][1]), _plain(after[key][1])) for key in before)


@pytest.mark.parametrize("name", FORMATS)
def test_a_run(name: str, files: dict[str, tuple[Path, Path]], make_dataset: Any, tmp_path: Path) -> None:
    """Trains, lowers the loss, and its LoRA loads whole."""
    import comfy.lora

    model = loaded(files[name][0])
    job = {
        "name": "quantized",
        "model": linked(model, clip=_Clip(model)),
        "adapter": {"rank": 4},
        "datasets": [{"folder": str(make_dataset(2)), "resolutions": [64]}],
        "train": {"steps": 4, "batch_size": 2, "learning_rate": 0.01, "gradient_checkpointing": True},
    }
    run = trained(tmp_path, job)
    if run.error:
        raise run.error
    losses = [line["loss"] for line in run.run.metrics() if "loss" in line]
    assert all(loss > 0 for loss in losses)
    tensors = lora_of(run)
    keys = comfy.lora.model_lora_keys_unet(model.model, {})
    loaded_keys = comfy.lora.load_lora(dict(tensors), keys, log_missing=False)
    assert len(loaded_keys) == len({key.rpartition(".lora_")[0] for key in tensors if ".lora_A" in key})
    assert weight_bytes(model) < 0.6 * weight_bytes(loaded(files[name][1]))


@pytest.mark.parametrize("name", [*FORMATS, "fp8 without scales", "bf16"])
def test_no_weight_is_kept_for_the_backward_pass(
    name: str, files: dict[str, tuple[Path, Path]], plain: dict[str, Any], request: pytest.FixtureRequest
) -> None:
    """Neither of adapted layers nor of the others, which compute under autograd too."""
    import comfy.sd

    held = {"fp8 without scales": torch.float8_e4m3fn, "bf16": torch.bfloat16}.get(name)
    if held is None:
        model = loaded(files[name][0])
    else:
        with torch.inference_mode():
            model = comfy.sd.load_diffusion_model(str(DENOISER), model_options={"dtype": held})
            model.model.manual_cast_dtype = torch.float32
    adapters, config = module("trainer_core.adapters.adapter"), module("trainer_core.config")
    base = opened(model)
    noisy, t = {"main": torch.zeros(2, 16, 8, 12)}, torch.tensor([0.35, 0.8])
    with training(base) as denoiser:
        adapters.Adapter(denoiser, config.AdapterConfig(rank=4), base.spec.targets["attention"], 1)
        given = base.collate([sample_of(text_of(model, seed)) for seed in (1, 2)])
        assert weights_kept(denoiser, lambda: base.predict(denoiser, noisy, t, given)) == set()


class _Clip:
    layer_idx = tokenizer = None

    def __init__(self, model: Any) -> None:
        from .hosted import Clip

        self._model = model
        self.cond_stage_model, self.patcher = Clip().cond_stage_model, Clip().patcher

    def tokenize(self, prompt: str, **_more: Any) -> str:
        return prompt

    def encode_from_tokens_scheduled(self, tokens: str) -> list[list[Any]]:
        return text_of(self._model, len(tokens))


@pytest.mark.parametrize("name", FORMATS)
def test_a_merged_lora_counts_as_in_the_sampler(name: str, files: dict[str, tuple[Path, Path]]) -> None:
    """ComfyUI rounds the sum to the format again; so do we."""
    import comfy.sd

    model = loaded(files[name][0])
    source = torch.Generator().manual_seed(5)
    path = "diffusion_model.double_blocks.0.img_attn.proj"
    tensors = {
        f"{path}.lora_A.weight": torch.randn(4, 128, generator=source),
        f"{path}.lora_B.weight": torch.randn(128, 4, generator=source) * 0.1,
        f"{path}.alpha": torch.tensor(4.0),
    }
    merged, _ = comfy.sd.load_lora_for_models(model, None, tensors, 1.0, 0)
    noisy, t, _ = inputs()
    x, given = noisy["main"][:1], text_of(model, 1)
    base = opened(merged)
    expected = sampled(merged, x, t[:1], given)
    with training(base) as denoiser, torch.no_grad():
        found = base.predict(denoiser, {"main": x}, t[:1], base.collate([sample_of(given)]))["main"]
    assert relative(x - t[:1] * found, expected) < 1e-5
    assert relative(sampled(model, x, t[:1], given), expected) > 1e-4
