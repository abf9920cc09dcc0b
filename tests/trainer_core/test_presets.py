"""Presets: each makes a valid job for each family, says why, and asks for no more where there is less memory."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from trainer_core.config import AdapterConfig, DatasetConfig, JobConfig, TrainConfig, validated
from trainer_core.families.base import FamilySpec
from trainer_core.families.registry import family_names, family_spec
from trainer_core.objective.timesteps import TIMESTEP_TYPES
from trainer_core.presets import SUBJECTS, VRAM_GB, Change, by_part, least_vram, preset, warning

ALL = list(itertools.product(SUBJECTS, VRAM_GB, ("flux1", "flux1_kontext", "sd15", "sdxl")))


def job_of(changes: tuple[Change, ...], family: str) -> JobConfig:
    parts = by_part(changes)
    dataset = {"folder": "pictures", **parts.pop("dataset")}
    given: dict[str, Any] = {"name": "x", "model": {"family": family}, "datasets": [dataset], **parts}
    return validated(JobConfig, given)


def values(subject: Any, vram: float, family: str) -> dict[tuple[str, str], Any]:
    return {(one.part, one.field): one.value for one in preset(subject, vram, family_spec(family))}


def test_all_families_are_tried() -> None:
    assert {family for *_, family in ALL} == set(family_names())


@pytest.mark.parametrize(("subject", "vram", "family"), ALL)
def test_each_makes_a_valid_job_and_says_why(subject: Any, vram: int, family: str) -> None:
    spec = family_spec(family)
    changes = preset(subject, vram, spec)
    job = job_of(changes, family)
    spec.check_adapter(job.adapter)
    for change in changes:
        section = job.datasets[0] if change.part == "dataset" else getattr(job, change.part)
        assert getattr(section, change.field) == change.value
        assert 10 < len(change.reason) < 120
        assert "\n" not in change.reason
    assert max(job.datasets[0].resolutions) <= max(spec.sampling.width, spec.sampling.height)
    assert job.datasets[0].resolutions[0] % spec.bucket_divisor == 0
    assert job.save.every == job.sample.every
    assert job.train.timestep_type in TIMESTEP_TYPES


@pytest.mark.parametrize("subject", SUBJECTS)
@pytest.mark.parametrize("family", family_names())
def test_more_memory_never_means_less(subject: Any, family: str) -> None:
    ranks, edges, batches = ([], [], [])
    for vram in VRAM_GB:
        found = values(subject, vram, family)
        ranks.append(found["adapter", "rank"])
        edges.append(found["dataset", "resolutions"])
        batches.append(found["train", "batch_size"])
        assert found["train", "batch_size"] * found["train", "gradient_accumulation"] == 2  # the same steps on any GPU
    assert ranks == sorted(ranks)
    assert edges == sorted(edges)
    assert batches == sorted(batches)


def test_figures_are_the_guides() -> None:
    """Written down by hand from the guides: what each says for the GPU that its family starts at."""
    character = values("character", 24, "flux1")
    assert character["adapter", "rank"] == 32
    assert 2000 <= character["train", "steps"] <= 3000
    assert character["train", "learning_rate"] == 1e-4
    assert character["train", "timestep_type"] == "sigmoid"
    assert character["dataset", "resolutions"] == (768,)
    style = values("style", 16, "sdxl")
    assert 800 <= style["train", "steps"] <= 2000
    assert style["train", "timestep_type"] == "linear"
    assert 8 <= style["adapter", "rank"] <= 16
    assert style["dataset", "resolutions"] == (1024,)
    assert values("object", 8, "sd15")["dataset", "resolutions"] == (512,)


def test_convolutions_only_where_there_are_some() -> None:
    assert ("adapter", "conv_rank") in values("style", 12, "sdxl")
    assert ("adapter", "conv_rank") not in values("style", 24, "flux1")


def test_too_little_memory_is_said() -> None:
    assert "FLUX.1 needs 24 GB" in (warning(16, family_spec("flux1")) or "")
    assert warning(8, family_spec("sd15")) is None
    assert [least_vram(family_spec(family)) for family in ("sd15", "sdxl", "flux1")] == [8, 12, 24]


def test_a_family_without_figures_has_presets() -> None:
    spec = family_spec("sdxl")
    silent = FamilySpec(**{**vars(spec), "vram_gb": "unknown"})
    assert preset("character", 8, silent)


def test_reasons_are_no_defaults_repeated() -> None:
    """A preset that said nothing but the defaults would be none."""
    found = by_part(preset("character", 16, family_spec("sdxl")))
    assert validated(AdapterConfig, found["adapter"]) != AdapterConfig()
    assert validated(TrainConfig, found["train"]) != TrainConfig()
    assert DatasetConfig(folder="x", **found["dataset"]) != DatasetConfig(folder="x")
