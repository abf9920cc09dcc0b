"""What the last bits depend on beside the job: who computes, who encoded, and what the base says of its noise."""

from __future__ import annotations

import json
from importlib import metadata

import pytest
import torch

from trainer_core.errors import ResumeRefused
from trainer_core.training.environment import environment
from trainer_core.training.resume_rules import MAY_BE_ACCEPTED, check_resume

from .test_resume_rules import JOB, told, with_value


def test_another_environment_is_told() -> None:
    then, now = {"torch": "2.10", "threads": "1"}, {"torch": "2.11", "device": "X"}
    (note,) = check_resume(told(JOB, environment=json.dumps(now)), told(JOB, environment=json.dumps(then)))
    assert "torch was 2.10, is 2.11" in note
    assert "threads was 1, is not told" in note
    assert "device" not in note  # an older version did not write it down, so it may be the same


def test_a_run_of_before_the_layers_were_fused_is_told() -> None:
    """It did not write down how its layers compute, which was in the first way: sums and dropout were others."""
    now = environment(torch.device("cpu"), "adamw")
    then = {what: value for what, value in now.items() if what != "adapter layers"}
    (note,) = check_resume(told(JOB, environment=json.dumps(now)), told(JOB, environment=json.dumps(then)))
    assert "adapter layers was version 1, is version 3" in note
    assert check_resume(told(JOB, environment=json.dumps(now)), told(JOB, environment=json.dumps(now))) == []
    assert "adapter layers" not in environment(torch.device("cpu")), "encoders have none"


def test_a_run_of_before_the_optimizer_was_fused_is_told() -> None:
    then, now = {"torch": "2.11"}, {"torch": "2.11", "optimizer step": "fused"}
    (note,) = check_resume(told(JOB, environment=json.dumps(now)), told(JOB, environment=json.dumps(then)))
    assert "optimizer step was operation by operation, is fused" in note
    assert check_resume(told(JOB, environment=json.dumps(now)), told(JOB, environment=json.dumps(now))) == []


def test_the_environment_says_what_is_installed_and_how_many_threads() -> None:
    found = environment(torch.device("cpu"))
    assert found["torch"] == torch.__version__
    assert found["threads"] == str(torch.get_num_threads())
    assert found == environment(torch.device("cpu"))


def test_the_environment_says_what_decodes_pictures_and_what_the_optimizer_comes_from() -> None:
    assert environment(torch.device("cpu"))["Pillow"] == metadata.version("pillow")
    with_prodigy = environment(torch.device("cpu"), "prodigy")
    assert with_prodigy.pop("prodigyopt") == metadata.version("prodigyopt")
    assert with_prodigy == environment(torch.device("cpu"), "adamw")


def test_entries_that_were_made_again_elsewhere_are_told() -> None:
    (note,) = check_resume(told(JOB, encoded_by="here"), told(JOB, encoded_by="there"))
    assert "encoded again in another environment" in note
    assert check_resume(told(JOB, encoded_by="here"), told(JOB, encoded_by="here")) == []
    assert check_resume(told(JOB, encoded_by="here"), told(JOB)) == [], "an older checkpoint does not say"


def settings(prediction: str = "epsilon", timestep_type: str = "linear", version: str = "0.42") -> str:
    scheduler = {"prediction_type": prediction, "_diffusers_version": version}
    return json.dumps({"scheduler_config.json": scheduler, "foundry.json": {"timestep_type": timestep_type}})


def test_another_schedule_of_the_base_is_refused() -> None:
    saved = told(JOB, base_settings=settings())
    with pytest.raises(ResumeRefused, match=r'prediction_type was "epsilon", is "v_prediction" \(scheduler_config'):
        check_resume(told(JOB, base_settings=settings("v_prediction")), saved, accept=MAY_BE_ACCEPTED)
    with pytest.raises(ResumeRefused, match=r'timestep_type was "linear", is "shift" \(foundry'):
        check_resume(told(JOB, base_settings=settings(timestep_type="shift")), saved)
    assert check_resume(told(JOB, base_settings=settings(version="0.43")), saved) == []
    own = with_value(JOB, "train.timestep_type", "sigmoid")
    then = told(own, base_settings=settings())
    assert check_resume(told(own, base_settings=settings(timestep_type="shift")), then) == []
