"""ComfyUI's models with the layers of their blocks quantized by us; the MODEL itself stays as it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.trainer_core.memory.kept import weights_kept

from ..pack import module
from .hosted import linked, opened, relative, states, trained, training
from .quantized import loaded, write
from .test_quantized import DENOISER, _Clip, inputs, sample_of, text_of
from .test_training_adapter import adapter  # noqa: F401 - a fixture
from .zoo import MODELS

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.host

NAMES = ["flux1", "sdxl", "wan21_t2v", "qwen_image", "z_image"]
KEPT = ("norm", "mod", "emb", "final", "proj_in", "img_in", "txt_in")


def packed_of(denoiser: Any) -> dict[str, Any]:
    kind = module("trainer_core.memory.packed_linear").PackedLinear
    return {path.removesuffix(".base_layer"): one for path, one in denoiser.named_modules() if isinstance(one, kind)}


def predicted(model: Any, base: Any, denoiser: Any) -> Any:
    noisy, t, _ = inputs()
    given = base.collate([sample_of(text_of(model, seed)) for seed in (1, 2)])
    return base.predict(denoiser, noisy, t, given)["main"]


@pytest.mark.parametrize("name", [name for name in NAMES if name in MODELS])
def test_layers_of_blocks_are_packed_and_the_model_stays(name: str) -> None:
    model = MODELS[name].make()
    before = states(model)
    base = opened(model, quantization="6bit")
    with training(base) as denoiser:
        packed = packed_of(denoiser)
        own = model.model.diffusion_model
        blocks = module("trainer_core.memory.blocks").blocks_of(own)
        expected = {
            f"{block}.{path}"
            for block, inside in blocks.items()
            for path, layer in inside.named_modules()
            if isinstance(layer, torch.nn.Linear) and layer.out_features >= 16
        }
        assert packed.keys() == expected
        for path, layer in packed.items():
            weight = own.get_submodule(path).weight
            assert relative(layer.dequantize(), weight) < 0.03
    after = states(model)
    assert after.keys() == before.keys()
    assert all(after[key][0] == before[key][0] and torch.equal(after[key][1], before[key][1]) for key in before)


def test_gradients_are_those_of_the_weights_that_are_meant(tmp_path: Path) -> None:
    """The same MODEL with the dequantized weights in its place is trained the same way; nothing is kept of them."""
    from safetensors.torch import load_file, save_file

    adapters, config = module("trainer_core.adapters.adapter"), module("trainer_core.config")
    model, found = loaded(DENOISER), []
    meant = {key: one.clone() for key, one in model.model.diffusion_model.state_dict().items()}
    base = opened(model, quantization="4bit")
    with training(base) as denoiser:
        meant |= {f"{path}.weight": layer.dequantize() for path, layer in packed_of(denoiser).items()}
    save_file({key: one.contiguous() for key, one in meant.items()}, tmp_path / "meant.safetensors")
    assert len(load_file(tmp_path / "meant.safetensors")) == len(meant)
    for one, name in ((model, "4bit"), (loaded(tmp_path / "meant.safetensors"), "none")):
        base = opened(one, quantization=name)
        with training(base) as denoiser:
            adapter = adapters.Adapter(denoiser, config.AdapterConfig(rank=4), base.spec.targets["attention"], 1)
            for layer in adapter.layers.values():
                layer.trained["lora_B.weight"].data.fill_(0.01)
            said = predicted(one, base, denoiser)
            said.square().sum().backward()
            found.append((said.detach(), torch.cat([each.grad.flatten() for each in adapter.parameters()])))
            if name != "none":
                assert weights_kept(denoiser, lambda: predicted(one, base, denoiser)) == set()  # noqa: B023
    assert relative(found[0][0], found[1][0]) < 1e-5
    assert relative(found[0][1], found[1][1]) < 1e-4


def test_what_the_file_has_quantized_stays(tmp_path: Path) -> None:
    from comfy.quant_ops import QuantizedTensor

    plain = {name: one.clone() for name, one in loaded(DENOISER).model.diffusion_model.state_dict().items()}
    write(plain, "fp8", tmp_path / "fp8.safetensors")
    base = opened(loaded(tmp_path / "fp8.safetensors"), quantization="4bit")
    with training(base) as denoiser:
        assert not packed_of(denoiser)
        assert any(isinstance(getattr(one, "weight", None), QuantizedTensor) for one in denoiser.modules())


def test_a_training_adapter_acts_on_packed_layers(adapter: Path) -> None:  # noqa: F811
    said = []
    model = MODELS["flux1"].make()
    for files in ({}, {"training_adapter": str(adapter)}):
        base = opened(model, quantization="int8", files=files)
        with training(base) as denoiser, torch.no_grad():
            source = torch.Generator().manual_seed(1)
            noisy = {"main": torch.randn(1, 16, 16, 16, generator=source)}
            given = base.collate([sample_of(_text(model))])
            said.append(base.predict(denoiser, noisy, torch.tensor([0.6]), given)["main"])
    assert relative(said[0], said[1]) > 1e-3


def _text(model: Any) -> list[list[Any]]:
    return text_of(model, 1)


def test_a_run_and_its_resume(make_dataset: Any, tmp_path: Path) -> None:
    """Packed once, from the cache when it goes on; previews included."""
    model = loaded(DENOISER)
    clip = _Clip(model)
    job = {
        "name": "packed",
        "model": linked(model, clip=clip, quantization="6bit"),
        "adapter": {"rank": 4},
        "datasets": [{"folder": str(make_dataset(2)), "resolutions": [64]}],
        "train": {"steps": 3, "batch_size": 2, "learning_rate": 0.01, "gradient_checkpointing": True},
        "sample": {"prompts": ["a"], "every": 3, "width": 64, "height": 64, "steps": 2},
    }
    run = trained(tmp_path, job)
    if run.error:
        raise run.error
    entries = module("trainer_core.api").cache_of(tmp_path).usage().entries
    again = trained(tmp_path, {**job, "name": "again"})
    if again.error:
        raise again.error
    assert again.run.latest().lora.read_bytes() != b""
    assert module("trainer_core.api").cache_of(tmp_path).usage().entries == entries
    losses = [[line["loss"] for line in one.run.metrics() if "loss" in line] for one in (run, again)]
    assert losses[0] == losses[1]
    assert run.run.sample_paths(3)[0].read_bytes() == again.run.sample_paths(3)[0].read_bytes()


def test_text_encoders_are_as_they_were_loaded() -> None:
    errors = module("trainer_core.errors")
    with pytest.raises(errors.BaseModelError, match="the CLIP is used as ComfyUI has loaded it"):
        linked(MODELS["flux1"].make(), text_encoder_quantization="int8")
