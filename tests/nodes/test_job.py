"""Train LoRA's job out of its own widgets and what is linked to it."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest

Pack = Callable[[str], ModuleType]

OWN = {
    "steps": 7,
    "learning_rate": 0.01,
    "batch_size": 2,
    "gradient_accumulation": 3,
    "seed": 5,
    "save_every": 11,
    "sample_every": 13,
    "keep_checkpoints": 2,
    "save_dtype": "bfloat16",
    "save_weights": "raw",
    "keep_best": False,
}


@pytest.fixture
def make(pack: Pack) -> Callable[..., Any]:
    config, job = pack("trainer_core.config"), pack("nodes.job")

    def made(*linked: Any, prompts: tuple[str, ...] = (), **dataset: Any) -> Any:
        datasets = [config.DatasetConfig(folder="x", **dataset)]
        return job.job_config("a", config.ModelConfig(), config.AdapterConfig(), datasets, prompts, OWN, linked)

    return made


def test_own_widgets_alone_leave_the_rest_at_its_defaults(pack: Pack, make: Callable[..., Any]) -> None:
    config = pack("trainer_core.config")
    job = make(prompts=("one", "two"))
    assert job.train == config.TrainConfig(steps=7, learning_rate=0.01, batch_size=2, gradient_accumulation=3, seed=5)
    assert job.save == config.SaveConfig(every=11, keep=2, keep_best=False, dtype="bfloat16", weights="raw")
    assert job.sample == config.SampleConfig(every=13, prompts=("one", "two"))
    assert (job.regularization, job.validation, job.cache) == (
        config.RegularizationConfig(),
        config.ValidationConfig(),
        config.CacheConfig(),
    )


def test_linked_settings_join_the_own_ones(make: Callable[..., Any]) -> None:
    options = {"train": {"ema_decay": 0.9}, "validation": {"every": 3, "share": 0.25}, "cache": {"limit_gb": 5.0}}
    kept = {"regularization": {"output_preservation": True, "output_preservation_class": "shape"}}
    samples = {"sample": {"width": 64, "weights": "ema"}}
    job = make(options, kept, samples, prompts=("one",), trigger="zorble")
    assert (job.train.steps, job.train.ema_decay) == (7, 0.9)
    assert (job.validation.every, job.validation.share, job.cache.limit_gb) == (3, 0.25, 5.0)
    assert job.regularization.classes == ("shape",)
    assert (job.sample.every, job.sample.prompts, job.sample.width, job.sample.weights) == (13, ("one",), 64, "ema")
    assert samples == {"sample": {"width": 64, "weights": "ema"}}  # ComfyUI hands the same dict to every node


def test_what_does_not_fit_together_is_told(pack: Pack, make: Callable[..., Any]) -> None:
    error = pack("trainer_core.errors").ConfigError
    with pytest.raises(error, match="trigger"):
        make({"regularization": {"output_preservation": True, "output_preservation_class": "shape"}})
    with pytest.raises(error, match="ema_decay"):
        make({"sample": {"weights": "ema"}})
    with pytest.raises(error, match="warmup_steps"):
        make({"train": {"warmup_steps": 8}})


def test_what_may_not_be_meant_is_told(pack: Pack, make: Callable[..., Any]) -> None:
    notes = pack("nodes.job").notes
    assert notes(make(prompts=("a [trigger]",), trigger="zorble")) == []
    (told,) = notes(make(prompts=("a [trigger]",)))
    assert "no trigger is set in Caption with Trigger" in told
    (told,) = notes(make(trigger="zorble"))
    assert told == "sample_prompts is empty: no samples are drawn"
