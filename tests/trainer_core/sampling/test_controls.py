"""Control images of previews: in the core against FluxKontextPipeline, in a run's own previews, on the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FluxKontextPipeline
from PIL import Image

from trainer_core.cli import main
from trainer_core.config import JobConfig, ModelConfig, SampleConfig, load_job, validated
from trainer_core.data.images import load_image
from trainer_core.errors import ConfigError, DatasetError
from trainer_core.families.flux1.model import pack
from trainer_core.families.sources import source as sources
from trainer_core.job import TrainingJob
from trainer_core.sampling.preview import preview

MODEL = ModelConfig(family="flux1_kontext", device="cpu")
SAMPLE_FIELDS: dict[str, Any] = {"width": 64, "height": 64, "steps": 2, "guidance": 1.0, "seed": 11}
SAMPLE = SampleConfig(**SAMPLE_FIELDS)
PROMPTS = ["a red circle", "a blue star"]


def mandelbrot(size: tuple[int, int] = (64, 64)) -> Image.Image:
    return Image.effect_mandelbrot(size, (-2, -1.5, 1, 1.5), 30).convert("RGB")


def difference(one: Image.Image, other: Image.Image) -> int:
    return int(abs(np.asarray(one).astype(int) - np.asarray(other).astype(int)).max())


@pytest.fixture(scope="module")
def controls(tmp_path_factory: pytest.TempPathFactory, pictures: Path) -> Path:
    """A control image for each of `pictures`: the same ones, upside down."""
    folder = tmp_path_factory.mktemp("sketches")
    for path in pictures.glob("*.png"):
        Image.open(path).rotate(180).save(folder / path.name)
    return folder


@pytest.fixture
def edit_job(job_of: Callable[..., JobConfig], controls: Path) -> Callable[..., JobConfig]:
    """A job of one step for an edit model, with previews before it, when the LoRA still changes nothing."""

    def make(dataset: dict[str, Any] | None = None, **sample: Any) -> JobConfig:
        drawing = {"prompts": tuple(PROMPTS), "before_training": True, "every": 100, **SAMPLE_FIELDS, **sample}
        return job_of(
            dataset={"control_folders": (str(controls),)} if dataset is None else dataset,
            model={"family": "flux1_kontext"},
            train={"steps": 1},
            sample=drawing,
        )

    return make


def drawn(training: TrainingJob) -> list[Image.Image]:
    """The previews before the first step."""
    folder = training.run.path / "samples" / "step_00000000"
    return [Image.open(path) for path in sorted(folder.glob("*.png"))]


def test_a_preview_is_the_edit_that_diffusers_makes() -> None:
    pipeline = FluxKontextPipeline.from_pretrained(sources.EMBEDDED).to(torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    latents = torch.randn(1, 16, 8, 8, generator=torch.Generator().manual_seed(11))
    (theirs,) = pipeline(
        image=mandelbrot(),
        prompt=PROMPTS[0],
        width=64,
        height=64,
        max_area=64 * 64,
        num_inference_steps=6,
        latents=pack(latents),
        max_sequence_length=16,
        _auto_resize=False,
    ).images
    settings = SAMPLE.but(steps=6)
    (ours,) = preview(MODEL, PROMPTS[:1], sample=settings, controls=[[mandelbrot()]])
    (blind,) = preview(MODEL, PROMPTS[:1], sample=settings)
    assert difference(ours, theirs) <= 2
    assert difference(blind, theirs) > 50, "the control image must matter"


def test_a_control_has_the_size_of_the_picture_as_in_training() -> None:
    """An image of another aspect shows its centre: what lies outside makes no difference."""
    wide = Image.new("RGB", (128, 64), "red")
    wide.paste(mandelbrot(), (32, 0))
    one, other = (preview(MODEL, ["a"], sample=SAMPLE, controls=[[picture]])[0] for picture in (wide, mandelbrot()))
    assert difference(one, other) <= 1


def test_a_runs_previews_are_drawn_with_what_it_trains_on(
    edit_job: Any, train: Any, controls: Path, pictures: Path
) -> None:
    """By default: the first images of the first training set that has any, in its order; the PNG says which."""
    found = drawn(train(edit_job()))
    first = sorted(path.name for path in pictures.glob("*.png"))[:2]
    assert [one.info["controls"] for one in found] == [f"{controls.name}/{name}" for name in first]
    expected = preview(MODEL, PROMPTS, sample=SAMPLE, controls=[[load_image(controls / name)] for name in first])
    for ours, theirs in zip(found, expected, strict=True):
        assert difference(ours, theirs) <= 1


def test_a_runs_previews_are_drawn_with_what_the_job_names(edit_job: Any, train: Any, tmp_path: Path) -> None:
    mandelbrot().save(tmp_path / "fractal.png")
    found = drawn(train(edit_job(controls=[str(tmp_path / "fractal.png")])))
    assert [one.info["controls"] for one in found] == [f"{tmp_path.name}/fractal.png"] * 2
    expected = preview(MODEL, PROMPTS, sample=SAMPLE, controls=[[mandelbrot()]] * 2)
    for ours, theirs in zip(found, expected, strict=True):
        assert difference(ours, theirs) <= 1


def test_without_any_nothing_is_said(edit_job: Any, train: Any) -> None:
    assert ["controls" in one.info for one in drawn(train(edit_job(dataset={})))] == [False, False]


# --- what is refused, and when ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "controls", "told"),
    [
        ("flux1", ["there.png"], "FLUX.1 takes no control images"),
        ("flux1_kontext", [["there.png"] * 4], "at most 3 control images"),
        ("flux1_kontext", ["gone.png"], "sample.controls: .*gone.png: there is no such file"),
    ],
)
def test_what_does_not_fit_is_told_before_there_is_a_run(
    family: str, controls: list[Any], told: str, job_of: Any, train: Any, tmp_path: Path
) -> None:
    mandelbrot().save(tmp_path / "there.png")
    named = [[str(tmp_path / file) for file in ([one] if isinstance(one, str) else one)] for one in controls]
    with pytest.raises(ConfigError, match=told):
        train(job_of(model={"family": family}, sample={"prompts": ("a",), "controls": named}))
    assert not list(tmp_path.rglob("run.json"))


def test_a_control_that_is_no_picture_ends_the_run_before_it_trains(edit_job: Any, train: Any, tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(DatasetError, match=r"text\.png: cannot be read as an image"):
        train(edit_job(controls=[str(tmp_path / "text.png")]))


def test_there_is_one_for_all_prompts_or_one_for_each(edit_job: Any) -> None:
    assert edit_job(controls=["a.png"]).sample.controls == (("a.png",),)
    assert edit_job(controls=["a.png", ["b.png", "c.png"]]).sample.controls == (("a.png",), ("b.png", "c.png"))
    data = edit_job().model_dump(mode="json")
    data["sample"]["controls"] = ["a.png", "b.png", "c.png"]
    with pytest.raises(ConfigError, match=r"sample\.controls: 3 for 2 prompts"):
        validated(JobConfig, data)


@pytest.mark.parametrize("value", ["a.png", [1], [[["a.png"]]], [True], [" "], [["a.png", ""]], ["hf_" + "a" * 34]])
def test_only_files_are_controls(value: Any) -> None:
    with pytest.raises(ConfigError, match="controls"):
        validated(SampleConfig, {"controls": value})


def test_files_are_relative_to_the_job(tmp_path: Path, make_job: Callable[..., Path]) -> None:
    job = load_job(make_job(sample={"prompts": ["a"], "controls": [["sketch.png", "/there/photo.png"]]}))
    assert job.sample.controls == ((str(tmp_path / "sketch.png"), str(Path(tmp_path, "/there/photo.png"))),)


# --- the command line ------------------------------------------------------------------------------------------------


def test_sample_draws_with_the_runs_controls_or_those_given(
    edit_job: Any, train: Any, controls: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    training = train(edit_job(before_training=False))
    mandelbrot().save(tmp_path / "fractal.png")

    def sample(*arguments: str) -> list[dict[str, Any]]:
        return _told(capsys, [str(training.run.path), "--out", str(tmp_path / "out"), *arguments])

    own = sample("--strength", "0")
    assert [Path(one["controls"][0]).parent for one in own] == [controls, controls]
    (given,) = sample("--strength", "0", "--prompt", PROMPTS[0], "--control", str(tmp_path / "fractal.png"))
    (expected,) = preview(MODEL, PROMPTS[:1], sample=SAMPLE, controls=[[mandelbrot()]])
    assert difference(Image.open(given["path"]), expected) <= 1
    assert difference(Image.open(own[0]["path"]), expected) > 20
    # the file alone knows neither the run's data nor where its control images are
    lora = str(training.run.latest().lora)
    (alone,) = _told(capsys, [lora, "--prompt", "a", "--out", str(tmp_path / "out")])
    assert alone["controls"] == []


def _told(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> list[dict[str, Any]]:
    """What `sample --json` says of its pictures."""
    capsys.readouterr()
    assert main(["sample", *arguments, "--json"]) == 0
    told: list[dict[str, Any]] = json.loads(capsys.readouterr().out)
    return told


def test_a_lora_file_names_no_folder_of_its_maker(edit_job: Any, train: Any, tmp_path: Path) -> None:
    from trainer_core.adapters.export import describe_lora

    mandelbrot().save(tmp_path / "fractal.png")
    training = train(edit_job(controls=[str(tmp_path / "fractal.png")], before_training=False))
    told = describe_lora(training.run.latest().lora)["metadata"]["lora_foundry.config"]
    assert json.loads(told)["sample"]["controls"] == [["fractal.png"]]
