"""A family of videos with sound trains on clips, stills and frame folders together, and resumes bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from trainer_core.api import choose_checkpoint
from trainer_core.config import JobConfig, ModelConfig, SampleConfig
from trainer_core.errors import ConfigError, ResumeRefused
from trainer_core.families import registry
from trainer_core.families.conditioning import AUDIO, MAIN
from trainer_core.job import TrainingJob
from trainer_core.runs.events import Event, SampleReady, StepDone
from trainer_core.safetensors_file import read_tensors
from trainer_core.sampling.animation import video_frames, webp_bytes
from trainer_core.sampling.preview import preview_frames

from ..clips import frame, write_clip, write_frames, write_gif
from .runs import interrupted_it_ends_in_the_same_bytes, run_of
from .video import Provider, ToyVideo

STEPS = 4
Jobs = Callable[..., JobConfig]


@pytest.fixture(autouse=True)
def toy(monkeypatch: pytest.MonkeyPatch) -> None:
    """The toy is there for these tests alone."""
    monkeypatch.setattr(registry, "_PROVIDERS", [])
    registry.register_provider(Provider())


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Clips with and without sound, of odd rates, stills and frames; tests must not change them."""
    folder = tmp_path_factory.mktemp("clips")
    write_clip(folder / "loud.mp4", range(24), 24, sound=0.8)
    write_clip(folder / "film.mkv", range(30, 60), 24, options={"bf": "2"})
    write_gif(folder / "moving.gif", range(60, 72), 80)
    write_frames(folder / "walk", range(80, 97))
    for k in (1, 2):
        frame(100 + k).save(folder / f"still{k}.png")
    for name in ("loud", "film", "moving", "walk", "still1", "still2"):
        (folder / f"{name}.txt").write_text(f"a {name} [trigger]", encoding="utf-8")
    return folder


@pytest.fixture
def job(job_of: Jobs, clips: Path) -> JobConfig:
    made = job_of(
        model={"family": "toy_video", "device": "cpu"},
        adapter={"rank": 2, "dropout": 0.2, "targets": "all"},
        dataset={"folder": str(clips), "flip_x": True, "frames": 9, "clip_part": "random"},
        train={"steps": STEPS, "batch_size": 2, "gradient_accumulation": 2},
        sample={"prompts": ["a [trigger]", "one red house"], "every": 2, "steps": 2},
        save={"keep": 9, "every": 2},
    )
    return made.but(validation={"every": 2, "share": 0.3})


def test_trains_and_draws_videos(job: JobConfig, tmp_path: Path) -> None:
    training, events = run_of(job, tmp_path / "runs"), []
    assert training.run_here(events.append) == "finished"
    drawn = [event for event in events if isinstance(event, SampleReady)]
    losses = [line["loss"] for line in training.run.metrics() if "loss" in line]
    assert len(losses) == STEPS
    assert all(np.isfinite(losses))
    for name in ("high_noise", "low_noise"):
        latest = training.run.latest()
        assert latest is not None
        lora = read_tensors(latest.path / f"lora_{name}.safetensors")
        assert any(value.any() for key, value in lora.items() if "lora_B" in key)
    assert [path.name for path in training.run.sample_paths()] == ["00.png", "01.png"]
    assert training.run.sample_clips() == [path.with_suffix(".webp") for path in training.run.sample_paths()]
    assert [(event.step, event.index) for event in drawn] == [(step, k) for step in (2, 4) for k in (0, 1)]
    for event in drawn:
        assert event.clip == event.path.with_suffix(".webp")
        with Image.open(event.path) as picture, Image.open(event.clip) as clip:
            assert picture.text["prompt"] in ("a zorble", "one red house")
            assert clip.size == picture.size == (32, 64)
            assert picture.text["frame_rate"] == "16"
            first, still = (np.asarray(one.convert("RGB"), int) for one in (clip, picture))
            assert np.abs(first - still).mean() < 15, "the picture is the first frame, but for compression"
        found = video_frames(event.path)
        assert found is not None
        frames, rate = found
        assert (len(frames), rate) == (9, 16.0)
        # the toy decodes a latent to one frame and then to four equal ones each
        changes = [k + 1 for k in range(8) if frames[k].tobytes() != frames[k + 1].tobytes()]
        assert changes == [1, 5]


@pytest.mark.parametrize("at", range(1, STEPS))
def test_interrupted_anywhere_it_ends_in_the_same_bytes(at: int, job: JobConfig, tmp_path: Path) -> None:
    interrupted_it_ends_in_the_same_bytes(job, at, tmp_path)


def test_another_length_or_part_is_told_when_a_run_goes_on(job: JobConfig, tmp_path: Path) -> None:
    training = run_of(job, tmp_path / "runs")

    def listen(event: Event) -> None:
        if isinstance(event, StepDone) and event.step == 2:
            training.stop()

    assert training.run_here(listen) == "stopped"
    for change in ({"frames": (5,)}, {"clip_part": "middle"}, {"fps": 12.0}):
        (one,) = job.datasets
        again = TrainingJob(training.run, job.but(datasets=[{**one.model_dump(), **change}]))
        with pytest.raises(ResumeRefused, match=rf"datasets\[0\]\.{next(iter(change))}"):
            again.run_here(lambda _: None)


def test_the_cache_is_filled_once(job: JobConfig, tmp_path: Path) -> None:
    ToyVideo.seen.clear()
    run_of(job, tmp_path / "runs").run_here(lambda _: None)
    first = len(ToyVideo.seen)
    run_of(job, tmp_path / "runs").run_here(lambda _: None)
    assert first > 0
    assert len(ToyVideo.seen) == first, "the first frames of previews are not encoded by it"


def test_sound_that_is_none_has_no_loss(job: JobConfig, trainer_of: Callable[..., Any]) -> None:
    """loss = mean of the main stream's squared error + half of the sound's where there is any, by hand."""
    trainer = trainer_of(job.but(adapter={**job.adapter.model_dump(), "dropout": 0.0}, validation={}))
    seen = set()
    for number in range(6):
        for batch in trainer.batches.get(number):
            heard = [sample.item.key == "loud.mp4" for sample in batch.samples]
            seen |= set(heard)
            objective = trainer.experts.active.objective
            term = next(objective.terms(batch, 0))
            t = batch.t
            noisy = {k: (1 - _like(t, x)) * x + _like(t, x) * batch.noise[k] for k, x in batch.clean.items()}
            predicted = objective.predict(noisy, t, batch.captioned)
            errors = {
                k: (predicted[k] - (batch.noise[k] - x)).square().flatten(1).mean(1) for k, x in batch.clean.items()
            }
            expected = errors[MAIN] + 0.5 * errors[AUDIO] * torch.tensor(heard)
            torch.testing.assert_close(term.shown, expected.detach())
            assert {one.frame_rate for one in batch.captioned} == {16.0}
            assert all(one.first_frame is not None for one in batch.captioned)
    assert seen == {True, False}


def test_a_length_that_the_model_cannot_make_is_told(tmp_path: Path) -> None:
    model = ModelConfig(family="toy_video", device="cpu")
    with pytest.raises(ConfigError, match=r"sample\.frames: must be a multiple of 4, and 1 more"):
        preview_frames(model, ["a"], sample=SampleConfig(frames=8), controls=[[frame(1)]])
    with pytest.raises(ConfigError, match="goes on from an image"):
        preview_frames(model, ["a"], sample=SampleConfig(frames=9))
    drawn = preview_frames(model, ["a"], sample=SampleConfig(frames=13), controls=[[frame(1)]])
    assert ([len(frames) for frames in drawn.frames], drawn.rate) == ([13], 16.0)


def test_an_animation_is_shown_at_its_rate(tmp_path: Path) -> None:
    path = tmp_path / "a.webp"
    path.write_bytes(webp_bytes([frame(k) for k in range(24)], 23.976))
    with Image.open(path) as image:
        assert image.n_frames == 24
        times = []
        for k in range(24):
            image.seek(k)
            image.load()
            times.append(image.info["duration"])
    assert sum(times) == 1001
    assert set(times) <= {41, 42}


def _like(t: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return t.view(-1, *[1] * (x.dim() - 1))


def test_its_checkpoints_are_compared_by_what_comes_after_the_first_frame(job: JobConfig, tmp_path: Path) -> None:
    training = run_of(job, tmp_path)
    assert training.run_here(lambda _: None) == "finished"
    choice = choose_checkpoint(training.run, pictures=1, embedding="statistics")
    assert choice.drawn == 6, "the previews are videos, of which another frame is looked at"
    assert all(one.leak for one in choice.checkpoints)
    assert len({one.held_out for one in (choice.base, *choice.checkpoints)}) == 3
