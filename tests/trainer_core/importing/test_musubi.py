"""What musubi-tuner's settings mean here, by its documentation and its sources."""

from __future__ import annotations

from typing import Any

import pytest

from trainer_core.api import import_config
from trainer_core.errors import ConfigError

JOB = 'dit = "/models/dit.safetensors"\n'
CLIPS = '[[datasets]]\nvideo_directory = "/v"\n'


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        ('timestep_sampling = "uniform"', "linear"),
        ('timestep_sampling = "sigmoid"', "sigmoid"),
        ('timestep_sampling = "shift"', "sigmoid"),  # discrete_flow_shift is 1 where it is not said
        ('timestep_sampling = "shift"\ndiscrete_flow_shift = 3.0', "shift"),
        ('timestep_sampling = "flux2_shift"', "shift"),
        ('timestep_sampling = "logsnr"', "auto"),
        ('timestep_sampling = "sigma"\nweighting_scheme = "logit_normal"', "sigmoid"),
        ("discrete_flow_shift = 7.0", "shift"),
        ("", "linear"),
    ],
)
def test_noise_levels(line: str, kind: str) -> None:
    assert import_config({"a.toml": JOB + line}).job.train.timestep_type == kind


@pytest.mark.parametrize(
    ("lines", "frames", "part"),
    [
        ("", (1,), "start"),
        ('frame_extraction = "full"', (129,), "start"),
        ('frame_extraction = "full"\ntarget_frames = [9]\nmax_frames = 61', (61,), "start"),
        ('frame_extraction = "uniform"\ntarget_frames = [9]', (9,), "start"),  # frame_sample is 1
        ('frame_extraction = "chunk"\ntarget_frames = [9, 25]', (9, 25), "uniform"),
    ],
)
def test_parts_of_clips(lines: str, frames: tuple[int, ...], part: str) -> None:
    dataset = import_config({"d.toml": CLIPS + lines}).job.datasets[0]
    assert (dataset.frames, dataset.clip_part) == (frames, part)


@pytest.mark.parametrize(
    ("line", "kind", "tool"),
    [
        ('network_module = "networks.lora_wan"', "lora", "musubi-tuner"),
        ('network_module = "networks.loha"\ndit = "/d.safetensors"', "loha", "musubi-tuner"),
        ('network_module = "networks.lora_flux"', "lora", "sd-scripts"),
    ],
)
def test_whose_network_it_is(line: str, kind: str, tool: str) -> None:
    made = import_config({"a.toml": line})
    assert (made.job.adapter.type, made.tool) == (kind, tool)


def test_data_sets_may_be_handed_in_without_the_arguments() -> None:
    data: dict[str, Any] = {"d.toml": CLIPS, "a.toml": JOB + "max_train_steps = 70\n"}
    made = import_config(data)
    assert (made.tool, made.job.train.steps, made.job.datasets[0].folder) == ("musubi-tuner", 70, "/v")


def test_those_of_another_tool_are_refused() -> None:
    sets = '[[datasets]]\n[[datasets.subsets]]\nimage_dir = "/d"\n'
    with pytest.raises(ConfigError, match="is not of musubi-tuner"):
        import_config({"a.toml": JOB, "d.toml": sets})
    with pytest.raises(ConfigError, match=r"d\.toml: general, datasets: must be a section"):
        import_config({"a.toml": JOB, "d.toml": "general = 3\n" + CLIPS})
