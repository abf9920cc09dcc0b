"""Every model of the zoo through the whole trainer: data, captions, previews, checkpoints, resume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file

from ...trainer_core.clips import frame, write_clip
from ...trainer_core.memory.adversary import Adversary
from ..pack import module
from .zoo import MODELS
from .zoo.record import Model

pytestmark = pytest.mark.host

TAKEN = {name: model for name, model in MODELS.items() if not model.refused}
PICTURES = {name: model for name, model in TAKEN.items() if model.category != "video"}
VIDEO = {name: model for name, model in TAKEN.items() if model.category == "video"}


def different(models: dict[str, Model]) -> list[str]:
    """Names of models that differ by more than what they are given beside noise and text, which nothing is here.

    Those that edit are trained on pairs in test_controls_training.py, and go on from first frames further below.
    """
    return list({(one.kind, repr(sorted(one.config.items()))): name for name, one in reversed(models.items())}.values())


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three pictures of two shapes, with captions of unequal length."""
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    for number, (size, caption) in enumerate(
        [((384, 384), "a red [trigger]"), ((384, 384), "a"), ((576, 384), "a b c d")]
    ):
        pixels = rng.integers(0, 256, (size[1], size[0], 4), np.uint8)
        pixels[:, : size[0] // 2, 3] = 255  # the other half is half transparent, and counts as much in the loss
        Image.fromarray(pixels).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(caption)
    return folder


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two clips, one of them with sound, and a picture."""
    folder = tmp_path_factory.mktemp("clips")
    write_clip(folder / "0.mp4", range(11), size=(128, 128), sound=0.5)
    write_clip(folder / "1.mp4", range(50, 59), size=(128, 128))
    frame(3, 128, 128).save(folder / "2.png")
    for number, caption in enumerate(["a red [trigger]", "a", "a b c d"]):
        (folder / f"{number}.txt").write_text(caption)
    return folder


def linked(model: Model, models: tuple[Any, ...] = (), audio_vae: Any = None) -> Any:
    from .zoo.encoders import clip, vae

    links = module("nodes.comfy_models.links")
    return links.linked_model(models or (model.make(),), clip(model), vae(model), {"device": "cpu"}, audio_vae)[0]


def edge_of(model: Model) -> int:
    """Width and height in pixels of the latents that the zoo has for a model: the smallest that it takes."""
    return model.latents[0][-1] * model.found().latent_format.spacial_downscale_ratio


def job_of(
    base: Any,
    folder: Path,
    *,
    dataset: dict[str, Any] | None = None,
    sample: dict[str, Any] | None = None,
    **train: Any,
) -> Any:
    config = module("trainer_core.config")
    return config.validated(
        config.JobConfig,
        {
            "name": "tiny",
            "model": base,
            "adapter": {"rank": 2, "dropout": 0.1},
            "datasets": [
                {
                    "folder": str(folder),
                    "resolutions": [128],
                    "trigger": "zorble",
                    "flip_x": True,
                    **(dataset or {}),
                }
            ],
            "train": {
                "steps": 2,
                "batch_size": 2,
                "learning_rate": 1e-3,
                "ema_decay": 0.9,
                "lr_scheduler": "constant",
                **train,
            },
            "regularization": {"output_preservation": True, "output_preservation_class": "thing"},
            "save": {"every": 1, "keep": 5},
            "sample": {
                "prompts": ["a [trigger]"],
                "every": 2,
                "before_training": False,
                "steps": 2,
                "width": 128,
                "height": 128,
                **(sample or {}),
            },
        },
    )


@pytest.fixture(autouse=True)
def _provided(_comfy: None, monkeypatch: pytest.MonkeyPatch) -> None:
    registry, provider = module("trainer_core.families.registry"), module("nodes.comfy_models.provider")
    monkeypatch.setattr(registry, "_PROVIDERS", [provider.ComfyModels()])


@pytest.mark.parametrize("name", different(PICTURES))
def test_trains_is_stopped_and_resumes_bit_for_bit(name: str, data: Path, tmp_path: Path) -> None:
    edge = edge_of(PICTURES[name])
    job = job_of(
        linked(PICTURES[name]),
        data,
        dataset={"resolutions": [edge], "alpha_mask": True},
        sample={"width": edge, "height": edge},
    )
    trains_and_resumes(job, tmp_path)


@pytest.mark.parametrize("name", different(VIDEO))
def test_a_video_model_trains_is_stopped_and_resumes_bit_for_bit(name: str, clips: Path, tmp_path: Path) -> None:
    base = linked(VIDEO[name])
    step = VIDEO[name].found().latent_format.temporal_downscale_ratio
    job = job_of(base, clips, dataset={"frames": [9], "fps": 16}, sample={"frames": step + 1})
    whole = trains_and_resumes(job, tmp_path)
    assert [one.suffix for one in whole.run.sample_folder(2).iterdir()].count(".webp") == 1


@pytest.mark.parametrize("name", ["wan22_5b", "ltxv", "kandinsky5", "hunyuan_video15"])
def test_clips_go_on_from_their_first_frame_where_a_data_set_says_so(name: str, clips: Path, tmp_path: Path) -> None:
    """It changes what is learned; previews go on from the image that they are given."""
    trained = []
    for k, chosen in enumerate((False, True)):
        job = job_of(
            linked(VIDEO[name]),
            clips,
            dataset={"frames": [9], "fps": 16, "first_frame": chosen},
            sample={"frames": 9, "controls": [str(clips / "2.png")]} if chosen else {"prompts": []},
        )
        trained.append(trains_and_resumes(job, tmp_path / str(k)))
    assert trained[0].run.latest().lora.read_bytes() != trained[1].run.latest().lora.read_bytes()
    if name != "hunyuan_video15":  # the only one here that draws the first frame anew
        with Image.open(trained[1].run.sample_paths(2)[0]) as drawn, Image.open(clips / "2.png") as given:
            colours = [
                np.asarray(one.convert("RGB").resize((4, 2), Image.Resampling.BOX), float) for one in (drawn, given)
            ]
        assert abs(colours[0] - colours[1]).max() < 3


def test_sound_is_learned_with_an_audio_vae(clips: Path, tmp_path: Path) -> None:
    """Layers of sound alone learn from it, and nothing without it."""
    from .zoo.encoders import sound_vae

    learned = []
    for audio_vae in (None, sound_vae(VIDEO["ltx2"])):
        base = linked(VIDEO["ltx2"], audio_vae=audio_vae)
        job = job_of(base, clips, dataset={"frames": [9]}, sample={"frames": 9})
        found = load_file(trains_and_resumes(job, tmp_path / str(len(learned))).run.latest().lora)
        learned.append([value.any() for key, value in found.items() if "audio_ff" in key and "lora_B" in key])
    assert learned[0]
    assert not any(learned[0])
    assert all(learned[1])


@pytest.mark.parametrize(("name", "boundary"), [("wan22_t2v_high", 0.875), ("wan22_i2v_high", 0.9)])
def test_two_experts_train_in_turn(name: str, boundary: float, clips: Path, tmp_path: Path) -> None:
    models = (VIDEO[name].make(), VIDEO[name.replace("high", "low")].make(seed=5))
    base = linked(VIDEO[name], models)
    job = job_of(base, clips, dataset={"frames": [9], "fps": 16}, sample={"frames": 5, "steps": 8}, steps=4)
    whole = trains_and_resumes(job, tmp_path / "both")
    folder = whole.run.latest().path
    names = ("lora_high_noise.safetensors", "lora_low_noise.safetensors")
    assert {one.name for one in folder.glob("lora*")} == set(names)
    high, low = (load_file(folder / one) for one in names)
    assert high.keys() == low.keys()
    assert all(value.any() for one in (high, low) for key, value in one.items() if key.endswith("lora_B.weight"))
    experts = module("nodes.comfy_models.base").ComfyBase.open(base).spec.experts
    assert [(one.name, one.low) for one in experts] == [("high_noise", boundary), ("low_noise", 0.0)]

    job = job_of(base, clips, dataset={"frames": [9], "fps": 16}, sample={"prompts": []}, stages="low_noise")
    alone = module("trainer_core.api").new_run(tmp_path / "low", job)
    assert alone.run_here(lambda _: None) == "finished"
    found = load_file(alone.run.latest().path / names[1])
    assert all(value.any() for key, value in found.items() if key.endswith("lora_B.weight"))


def test_both_loras_of_two_experts_are_drawn_with(clips: Path, tmp_path: Path) -> None:
    """As the run's own last preview was drawn; one of them alone is refused."""
    api, errors = module("trainer_core.api"), module("trainer_core.errors")
    models = (VIDEO["wan22_t2v_high"].make(), VIDEO["wan22_t2v_low"].make(seed=5))
    base = linked(VIDEO["wan22_t2v_high"], models)
    data, sample = {"frames": [9], "fps": 16}, {"frames": 5, "steps": 8, "every": 4}
    job = job_of(base, clips, dataset=data, sample=sample, steps=4, learning_rate=0.1).but(save={"dtype": "float32"})
    run = api.new_run(tmp_path, job.model_copy(update={"model": base}))
    assert run.run_here(lambda _: None) == "finished"
    (path,) = run.run.sample_paths(4)
    shown = np.asarray(Image.open(path).convert("RGB"), dtype=int)
    lora = run.run.latest().lora

    def first_frame(**given: Any) -> Any:
        return np.asarray(api.sample_frames(base, ["a zorble"], settings=job.sample, **given).frames[0][0], dtype=int)

    assert abs(first_frame(lora=lora) - shown).max() <= 1
    assert abs(first_frame() - shown).max() > 1
    alone = tmp_path / "alone.safetensors"
    alone.write_bytes(lora.read_bytes())
    with pytest.raises(errors.ConfigError, match="name the run"):
        first_frame(lora=alone)

    choice = api.choose_checkpoint(run.run, pictures=1, prompts=["a [trigger]", "a"], embedding="statistics")
    assert (choice.drawn, [one.step for one in choice.checkpoints]) == (4, [4])
    assert choice.checkpoints[0].leak > choice.base.leak == 0


def test_two_experts_with_streamed_blocks_are_the_same(
    clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each in its turn, with previews by ComfyUI's samplers in between."""
    models = (VIDEO["wan22_t2v_high"].make(), VIDEO["wan22_t2v_low"].make(seed=5))
    base, given = linked(VIDEO["wan22_t2v_high"], models), {"gradient_checkpointing": True, "steps": 4}
    job = job_of(base, clips, dataset={"frames": [9], "fps": 16}, sample={"frames": 5, "steps": 8, "every": 2}, **given)
    copier = Adversary(1)
    monkeypatch.setattr(module("trainer_core.training.experts"), "copier_for", lambda _device: copier)
    whole, streamed = (
        module("trainer_core.api").new_run(tmp_path / name, job.but(memory=memory))
        for name, memory in [("whole", {}), ("streamed", {"plan": "manual", "layer_offloading": 1.0})]
    )
    assert whole.run_here(lambda _: None) == streamed.run_here(lambda _: None) == "finished"
    assert copier.copies > 4 * 2
    for step in (2, 4):
        ours, theirs = (one.run.sample_paths(step) for one in (streamed, whole))
        assert [one.read_bytes() for one in ours] == [one.read_bytes() for one in theirs]
    for one in ("lora_high_noise.safetensors", "lora_low_noise.safetensors"):
        ours, theirs = (load_file(run.run.latest().path / one) for run in (streamed, whole))
        assert ours.keys() == theirs.keys()
        assert all(bool((ours[key] == theirs[key]).all()) for key in ours)


def trains_and_resumes(job: Any, tmp_path: Path) -> Any:
    api = module("trainer_core.api")
    whole = api.new_run(tmp_path / "whole", job)
    assert whole.run_here(lambda _: None) == "finished"
    losses = [line["loss"] for line in whole.run.metrics() if "loss" in line]
    assert len(losses) == job.train.steps
    assert np.isfinite(losses).all()
    assert bool(whole.run.sample_paths(2)) is bool(job.sample.prompts)

    broken = api.new_run(tmp_path / "broken", job)

    def listen(event: Any) -> None:
        if isinstance(event, api.StepDone) and event.step == 1:
            broken.stop()

    assert broken.run_here(listen) == "stopped"
    assert api.resume_run(broken.run, job).run_here(lambda _: None) == "finished"
    ours, theirs = (one.run.latest().path for one in (whole, broken))
    files = [one.name for one in ours.glob("*.safetensors")]
    assert len(files) > 1
    assert all((ours / one).read_bytes() == (theirs / one).read_bytes() for one in files)
    return whole
