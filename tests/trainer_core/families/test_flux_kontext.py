"""FLUX.1 Kontext against diffusers' own pipeline: what it gives the transformer, and what it makes of the answer."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FluxKontextPipeline, FluxTransformer2DModel
from PIL import Image
from torch import Tensor, nn

from trainer_core.config import ModelConfig, ValidationConfig
from trainer_core.data.images import to_bucket
from trainer_core.errors import BaseModelError, ConfigError
from trainer_core.families.base import Base
from trainer_core.families.conditioning import MAIN
from trainer_core.families.flux1.model import Flux, pack, position_ids, unpack
from trainer_core.families.registry import family_names, family_spec, open_base
from trainer_core.families.sources import source as sources
from trainer_core.families.texts import stack_text

from ..predicting import predicted

MODEL = ModelConfig(family="flux1_kontext", device="cpu")


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def kontext() -> Base:
    return open_base(MODEL)


@pytest.fixture(scope="module")
def pipeline() -> Any:
    """The embedded base as diffusers opens it for editing, without a progress bar."""
    pipeline = FluxKontextPipeline.from_pretrained(sources.EMBEDDED).to(torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def denoiser(pipeline: Any) -> nn.Module:
    denoiser: nn.Module = pipeline.transformer
    return denoiser


def test_it_is_listed_as_an_edit_family() -> None:
    assert "flux1_kontext" in family_names()
    spec = family_spec("flux1_kontext")
    assert (spec.category, spec.gated, spec.max_controls) == ("edit", True, 3)
    assert spec.default_repo == "black-forest-labs/FLUX.1-Kontext-dev"
    assert spec.targets == family_spec("flux1").targets


def test_its_repository_is_named_where_a_source_is_not_found() -> None:
    with pytest.raises(BaseModelError, match=r"FLUX\.1-Kontext-dev"):
        open_base(ModelConfig(family="flux1_kontext", source="no folder", device="cpu"))


class Recorder:
    """Keeps what a module was called with and what it answered."""

    def __init__(self, module: nn.Module) -> None:
        self.calls: list[tuple[dict[str, Any], Tensor]] = []
        self._hook = module.register_forward_hook(self._keep, with_kwargs=True)

    def _keep(self, _: nn.Module, __: Any, given: dict[str, Any], answer: Any) -> None:
        self.calls.append((given, answer[0]))

    def remove(self) -> None:
        self._hook.remove()


@pytest.fixture
def recorder(denoiser: nn.Module) -> Iterator[Recorder]:
    recorder = Recorder(denoiser)
    yield recorder
    recorder.remove()


@pytest.mark.parametrize(("width", "height"), [(64, 64), (96, 32)])
def test_predict_is_what_the_pipeline_computes_while_it_edits(
    width: int, height: int, kontext: Base, pipeline: Any, denoiser: nn.Module, recorder: Recorder
) -> None:
    """A whole edit by diffusers; each of its steps again by us, from the picture itself on."""
    picture = Image.effect_mandelbrot((width, height), (-2, -1.5, 1, 1.5), 30).convert("RGB")
    pipeline(
        image=picture,
        prompt="a red circle",
        width=64,
        height=64,
        num_inference_steps=2,
        max_area=64 * 64,
        max_sequence_length=16,
        generator=torch.Generator().manual_seed(1),
        output_type="latent",
        _auto_resize=False,
    )
    recorder.remove()
    kontext.load_text_encoders()
    kontext.load_vae()
    text = stack_text(kontext.encode_prompts(["a red circle"]), kontext.device)
    control = kontext.encode_pixels(to_bucket(picture, (width, height))[None])[0][MAIN]
    assert len(recorder.calls) == 2
    for given, answer in recorder.calls:
        noisy = unpack(given["hidden_states"][:, :16], 8, 8)
        with torch.no_grad():
            ours = predicted(kontext, denoiser, noisy, given["timestep"], text, controls=[control])
        torch.testing.assert_close(ours, unpack(answer[:, :16], 8, 8), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("size", [(8, 8), (4, 12)])
def test_positions_of_a_control_are_those_of_the_pipeline(size: tuple[int, int], pipeline: Any) -> None:
    _, packed, latent_ids, control_ids = pipeline.prepare_latents(
        noise(1, 16, *size), 1, 16, 64, 64, torch.float32, torch.device("cpu"), torch.Generator()
    )
    assert torch.equal(position_ids(size[0] // 2, size[1] // 2, torch.device("cpu"), place=1), control_ids)
    assert torch.equal(position_ids(4, 4, torch.device("cpu")), latent_ids)
    assert torch.equal(packed, pack(noise(1, 16, *size)))


def by_hand(model: nn.Module, x: Tensor, t: Tensor, text: dict[str, Tensor], controls: list[Tensor]) -> Tensor:
    """The transformer's call with several control images, written out: tokens in a row, counted by the first axis."""
    n, c, h, w = x.shape
    tokens, ids = [], []
    for number, image in enumerate([x, *controls]):
        rows, columns = image.shape[2] // 2, image.shape[3] // 2
        tokens.append(FluxKontextPipeline._pack_latents(image, n, c, *image.shape[2:]))
        ids += [(float(number), float(row), float(column)) for row in range(rows) for column in range(columns)]
    with torch.no_grad():
        answer = model(
            hidden_states=torch.cat(tokens, dim=1),
            timestep=t,
            pooled_projections=text["pooled"],
            encoder_hidden_states=text["text"],
            txt_ids=torch.zeros(text["text"].shape[1], 3),
            img_ids=torch.tensor(ids),
            return_dict=False,
        )[0]
    drawn: Tensor = FluxKontextPipeline._unpack_latents(answer[:, : h * w // 4], h * 8, w * 8, 8)
    return drawn


@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_several_controls_are_counted_by_the_first_axis(count: int, kontext: Base, denoiser: nn.Module) -> None:
    x, t = noise(2, 16, 8, 8), torch.tensor([0.9, 0.25])
    text = {"text": noise(2, 16, 64, seed=1), "pooled": noise(2, 64, seed=2)}
    controls = [noise(2, 16, *size, seed=3 + k) for k, size in enumerate([(8, 8), (4, 12), (6, 6)][:count])]
    with torch.no_grad():
        ours = predicted(kontext, denoiser, x, t, text, controls=controls)
    assert (ours.shape, ours.dtype) == (x.shape, torch.float32)
    torch.testing.assert_close(ours, by_hand(denoiser, x, t, text, controls), rtol=1e-5, atol=1e-5)


def test_a_control_and_its_place_matter(kontext: Base, denoiser: nn.Module) -> None:
    x, t = noise(1, 16, 8, 8), torch.tensor([0.5])
    text = {"text": noise(1, 16, 64, seed=1), "pooled": noise(1, 64, seed=2)}
    one, other = noise(1, 16, 8, 8, seed=3), noise(1, 16, 8, 8, seed=4)
    with torch.no_grad():
        answers = [
            predicted(kontext, denoiser, x, t, text, controls=c) for c in ((), (one,), (one, other), (other, one))
        ]
    for k, answer in enumerate(answers):
        for another in answers[k + 1 :]:
            assert (answer - another).abs().max() > 1e-3


def test_without_controls_it_is_flux(base: Base, kontext: Base, denoiser: nn.Module) -> None:
    x, t = noise(1, 16, 8, 8), torch.tensor([0.5])
    text = {"text": noise(1, 16, 64, seed=1), "pooled": noise(1, 64, seed=2)}
    with torch.no_grad():
        assert torch.equal(predicted(kontext, denoiser, x, t, text), predicted(base, denoiser, x, t, text))


@pytest.mark.parametrize("guidance", [2.5, torch.tensor([1.0, 4.0])], ids=["one", "each its own"])
def test_guidance_is_one_number_or_one_for_each_sample(guidance: Any, tmp_path: Path) -> None:
    """Kontext-dev is guidance-distilled; contrastive guidance gives each sample a value of its own."""
    folder = tmp_path / "distilled"
    shutil.copytree(sources.EMBEDDED, folder, ignore=shutil.ignore_patterns("transformer"))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        config = FluxTransformer2DModel.load_config(sources.EMBEDDED / "transformer")
        FluxTransformer2DModel.from_config({**config, "guidance_embeds": True}).save_pretrained(folder / "transformer")
    opened = open_base(MODEL.but(source=str(folder)))
    assert isinstance(opened, Flux)
    assert opened.guidance_distilled
    model = opened.load_denoiser()
    x, t, control = noise(2, 16, 8, 8), torch.tensor([0.9, 0.25]), noise(2, 16, 8, 8, seed=5)
    text = {"text": noise(2, 16, 64, seed=1), "pooled": noise(2, 64, seed=2)}
    recorder = Recorder(model)
    with torch.no_grad():
        both = predicted(opened, model, x, t, text, guidance, [control])
        values = torch.as_tensor(guidance).expand(2)
        for k in range(2):
            some = {name: value[k : k + 1] for name, value in text.items()}
            alone = predicted(opened, model, x[k : k + 1], t[k : k + 1], some, float(values[k]), [control[k : k + 1]])
            torch.testing.assert_close(both[k : k + 1], alone, rtol=1e-4, atol=1e-5)
    assert [given["guidance"].tolist() for given, _ in recorder.calls] == [
        values.tolist(),
        *([v] for v in values.tolist()),
    ]


def test_a_job_with_control_images_and_masks_trains(job_of: Any, train: Any, pictures: Path, tmp_path: Path) -> None:
    """The whole way: scanned, held out, encoded, cached, drawn, stacked, predicted; regularization has no controls."""
    edited = {
        "control_folders": [str(tmp_path / "controls")],
        "mask_folder": str(tmp_path / "masks"),
        "flip_x": True,
        "crop": "random",
    }
    for name in ("controls", "masks", "class"):
        shutil.copytree(pictures, tmp_path / name, ignore=shutil.ignore_patterns("*.txt"), dirs_exist_ok=True)
    for path in (tmp_path / "class").glob("*.png"):
        Image.open(path).rotate(90).save(path)
    regularization = {
        "folder": str(tmp_path / "class"),
        "role": "regularization",
        "trigger": None,
        "default_caption": "a shape",
    }
    job = job_of(datasets=[edited, regularization], model={"family": "flux1_kontext"}, train={"batch_size": 2})
    job = job.model_copy(update={"validation": ValidationConfig(share=0.25, every=1, draws=1)})
    assert train(job).outcome == "finished"


def test_flux_refuses_control_images_before_there_is_a_run(job_of: Any, train: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="control_folders"):
        train(job_of(dataset={"control_folders": ["anywhere"]}))
    assert not list(tmp_path.rglob("run.json"))
