"""What may differ when a run goes on: every setting is decided on, and refusals name it with both values."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from trainer_core.config import DatasetConfig, JobConfig, Section
from trainer_core.errors import ResumeRefused
from trainer_core.training.resume_rules import (
    DATA,
    MAY_BE_ACCEPTED,
    MAY_CHANGE,
    check_resume,
)

JOB = JobConfig(
    name="tiny",
    trigger="zorble",
    datasets=(DatasetConfig(folder="/data/a"), DatasetConfig(folder="/data/b", trigger="other")),
).but(
    train={"ema_decay": 0.9, "stage_boundaries": [0.5]},
    regularization={"output_preservation": True, "output_preservation_class": "shape"},
)
"""A job in which any one of the values below is a valid change."""

MUST_AGREE: dict[str, Any] = {
    "model.family": "flux1_kontext",
    "model.dtype": "bfloat16",
    "model.text_encoder_dtype": "bfloat16",
    "model.vae_dtype": "bfloat16",
    "model.quantization": "int8",
    "model.text_encoder_quantization": "int8",
    "model.recovery_adapter": "/loras/recovery.safetensors",
    "model.low_rank": 16,
    "memory.compile": True,
    "memory.attention": "default",
    "adapter.rank": 8,
    "adapter.alpha": 1.0,
    "adapter.dropout": 0.1,
    "adapter.targets": "all",
    "datasets.role": "regularization",
    "datasets.resolutions": [512],
    "datasets.weight": 2.0,
    "datasets.loss_weight": 2.0,
    "datasets.adapter_strength": 0.5,
    "datasets.kohya_folders": True,
    "datasets.regularization_target": "base",
    "datasets.trigger": "another",
    "datasets.trigger_placement": "end",
    "datasets.caption_dropout": 0.1,
    "datasets.dropped_caption": "blank",
    "datasets.shuffle_tags": True,
    "datasets.keep_tags": 1,
    "datasets.flip_x": True,
    "datasets.flip_y": True,
    "datasets.crop": "random",
    "datasets.background": "black",
    "datasets.alpha_mask": True,
    "datasets.invert_mask": True,
    "datasets.mask_minimum": 0.2,
    "datasets.frames": [17],
    "datasets.fps": 12.0,
    "datasets.clip_part": "middle",
    "datasets.first_frame": True,
    "adapter.type": "dora",
    "adapter.conv_rank": 4,
    "adapter.conv_alpha": 2.0,
    "adapter.factor": 8,
    "adapter.text_encoders": True,
    "train.text_encoder_lr": 1e-5,
    "train.noise_offset": 0.05,
    "train.batch_size": 2,
    "train.gradient_accumulation": 2,
    "train.lr_scheduler": "linear",
    "train.lr_cycles": 2,
    "train.lr_power": 1.0,
    "train.lr_final_share": 0.1,
    "train.warmup_steps": 5,
    "train.optimizer": "lion",
    "train.optimizer_options": {"amsgrad": True},
    "train.weight_decay": 0.0,
    "train.beta1": 0.8,
    "train.beta2": 0.9,
    "train.epsilon": 1e-6,
    "train.max_grad_norm": 2.0,
    "train.timestep_type": "linear",
    "train.timestep_bias": "high_noise",
    "train.timestep_min": 0.1,
    "train.timestep_max": 0.9,
    "train.stage_boundaries": [0.4],
    "train.stages": "high_noise",
    "train.stage_switch_every": 2,
    "train.loss_type": "mae",
    "train.huber_delta": 0.5,
    "train.min_snr_gamma": 5.0,
    "train.ema_decay": 0.99,
    "train.ema_warmup": False,
    "train.seed": 43,
    "train.deterministic": True,
    "regularization.output_preservation": False,
    "regularization.output_preservation_class": "thing",
    "regularization.output_preservation_weight": 2.0,
    "regularization.blank_preservation": True,
    "regularization.blank_preservation_weight": 2.0,
    "regularization.preservation_every": 2,
    "regularization.differential_guidance": True,
    "regularization.differential_guidance_scale": 2.0,
    "regularization.contrastive_guidance": True,
    "regularization.contrastive_guidance_scale": 2.0,
    "regularization.contrastive_guidance_schedule": "sigma",
    "regularization.contrastive_guidance_projection": True,
    "regularization.ratio": 0.4,
    "validation.share": 0.2,
}
"""What the updates to come depend on, with another value for each."""

MAY_DIFFER: dict[str, Any] = {
    "name": "other",
    "trigger": "another",
    "model.source": "/models/moved",
    "model.device": "cpu",
    "adapter.warm_start": "/loras/start.safetensors",
    "datasets.folder": "/moved/b",
    "datasets.caption_extension": "caption",
    "datasets.caption_column": "prompt",
    "datasets.caption_per_line": True,
    "datasets.default_caption": "a thing",
    "model.files": {"text_encoder": "clip_l.safetensors", "vae": "ae.safetensors"},
    "model.tokenizers": "tokenizers",
    "train.steps": 3000,
    "train.gradient_checkpointing": False,
    "train.skip_limit": 3,
    "train.log_every": 10,
    "validation.draws": 8,
    "memory.plan": "manual",
    "memory.limit_gb": 8.0,
    "memory.checkpoint_every": 2,
    "memory.keep_attention": True,
    "memory.offload_inputs": True,
    "memory.layer_offloading": 0.5,
    "save.every": 10,
    "save.keep": 2,
    "save.keep_best": False,
    "save.dtype": "float16",
    "save.weights": "raw",
    "sample.prompts": ["a [trigger]"],
    "sample.every": 10,
    "sample.before_training": False,
    "sample.width": 64,
    "sample.height": 64,
    "sample.steps": 4,
    "sample.frames": 9,
    "sample.guidance": 2.0,
    "sample.sampler": "euler",
    "sample.scheduler": "simple",
    "sample.seed": 7,
    "sample.walk_seed": False,
    "sample.negative_prompt": "blurry",
    "sample.weights": "raw",
    "sample.controls": [["/pictures/control.png"]],
    "cache.limit_gb": 1.0,
}
ELSEWHERE = {"train.learning_rate", "datasets.mask_folder", "datasets.control_folders"}
ELSEWHERE |= {"validation.every"}
"""May be accepted; change only from one folder to another; needs a set to validate on."""


def fields(section: type[Section], place: str = "") -> Iterator[str]:
    for name, field in section.model_fields.items():
        kind = DatasetConfig if name == "datasets" else field.annotation
        if isinstance(kind, type) and issubclass(kind, Section):
            yield from fields(kind, f"{place}{name}.")
        else:
            yield f"{place}{name}"


def with_value(job: JobConfig, field: str, value: Any) -> JobConfig:
    """The job with one setting changed; of data sets, the second one's."""
    data = job.model_dump(mode="json")
    *sections, name = field.split(".")
    part = data
    for section in sections:
        part = part[section][1] if section == "datasets" else part[section]
    assert part[name] != value, "no change"
    part[name] = value
    if (field, value) == ("datasets.role", "regularization"):
        part["trigger"] = None
    return JobConfig.model_validate(data)


def told(job: JobConfig, **changed: str) -> dict[str, str]:
    """What a checkpoint at step 5 says."""
    facts = {
        "config": json.dumps(job.model_dump(mode="json")),
        "dataset_digest": "d1",
        "base_hash": "b1",
        "encoders_hash": "e1",
    }
    return {"step": "5", **facts, "environment": json.dumps({"torch": "2.11"}), **changed}


# --- every setting is decided on -------------------------------------------------------------------------------------


def test_every_setting_is_decided_on() -> None:
    """Add a new one to MUST_AGREE here, or to the list of resume_rules with its reason."""
    assert set(fields(JobConfig)) == MUST_AGREE.keys() | MAY_DIFFER.keys() | ELSEWHERE


def test_every_rule_is_about_a_setting_and_has_a_reason() -> None:
    known = set(fields(JobConfig))
    sections = {field.partition(".")[0] for field in known if "." in field}
    assert MAY_CHANGE.keys() <= known | sections
    assert MAY_BE_ACCEPTED.keys() == {"train.learning_rate", DATA}
    assert not MAY_CHANGE.keys() & MAY_BE_ACCEPTED.keys()
    assert all(len(reason) > 10 for reason in (*MAY_CHANGE.values(), *MAY_BE_ACCEPTED.values()))


@pytest.mark.parametrize("field", MUST_AGREE)
def test_what_an_update_depends_on_is_refused(field: str) -> None:
    value = MUST_AGREE[field]
    changed = with_value(JOB, field, value)
    with pytest.raises(ResumeRefused) as caught:
        check_resume(told(changed), told(JOB), accept=MAY_BE_ACCEPTED)
    lines = str(caught.value).splitlines()
    place = field.replace("datasets.", "datasets[1].")
    line = next(line for line in lines if line.strip().startswith(f"{place}: was "))
    assert line.endswith(f"is {json.dumps(value)}")
    assert "step 5" in lines[0]
    assert "new run" in lines[-1]


@pytest.mark.parametrize("field", MAY_DIFFER)
def test_what_no_update_depends_on_may_change(field: str) -> None:
    assert check_resume(told(with_value(JOB, field, MAY_DIFFER[field])), told(JOB)) == []


def test_how_often_is_validated_may_change() -> None:
    job = JOB.but(validation={"share": 0.2, "every": 10})
    assert check_resume(told(job.but(validation={"share": 0.2, "every": 5})), told(job)) == []


def test_nothing_changed_is_nothing_to_tell() -> None:
    assert check_resume(told(JOB), told(JOB)) == []


# --- data sets and places --------------------------------------------------------------------------------------------


def test_compiled_for_another_use_of_memory_is_told() -> None:
    """Otherwise it changes no bit, which `test_what_no_update_depends_on_may_change` says of each of these settings."""
    compiled = with_value(JOB, "memory.compile", True)
    for field, value in (("train.gradient_checkpointing", False), ("memory.plan", "manual")):
        (note,) = check_resume(told(with_value(compiled, field, value)), told(compiled))
        assert "step 6" in note
        assert "compiled for another use of memory" in note
    assert check_resume(told(with_value(compiled, "memory.limit_gb", 8.0)), told(compiled)) == []


def test_a_mask_folder_may_move_but_not_come_or_go() -> None:
    masked = with_value(JOB, "datasets.mask_folder", "/masks")
    moved = with_value(JOB, "datasets.mask_folder", "/elsewhere/masks")
    assert check_resume(told(moved), told(masked)) == []
    for was, new, told_of in ((JOB, masked, 'was null, is "/masks"'), (masked, JOB, 'was "/masks", is null')):
        with pytest.raises(ResumeRefused) as caught:
            check_resume(told(new), told(was))
        assert f"datasets[1].mask_folder: {told_of}" in str(caught.value)


def test_control_folders_may_move_but_not_become_more() -> None:
    one, moved = (with_value(JOB, "datasets.control_folders", [place]) for place in ("/controls", "/moved"))
    two = with_value(JOB, "datasets.control_folders", ["/controls", "/more"])
    assert check_resume(told(moved), told(one)) == []
    with pytest.raises(ResumeRefused, match=r"datasets\[1\]\.control_folders: was \[\"/controls\"\], is"):
        check_resume(told(two), told(one))


def test_another_number_of_data_sets_is_refused() -> None:
    fewer = JOB.but(datasets=JOB.model_dump(mode="json")["datasets"][:1])
    for was, new, line in ((JOB, fewer, "datasets: were 2, are 1"), (fewer, JOB, "datasets: were 1, are 2")):
        with pytest.raises(ResumeRefused) as caught:
            check_resume(told(new, dataset_digest="d2"), told(was), accept=[DATA])
        assert f"  {line}\n" in str(caught.value)


def test_other_data_are_refused_or_accepted() -> None:
    moved = with_value(JOB, "datasets.folder", "/moved/b")
    with pytest.raises(ResumeRefused) as caught:
        check_resume(told(moved, dataset_digest="d2"), told(JOB))
    assert "/data/a, /moved/b" in str(caught.value)
    assert "/data/a, /data/b" in str(caught.value)
    assert "--accept data" in str(caught.value)
    (note,) = check_resume(told(moved, dataset_digest="d2"), told(JOB), accept=[DATA])
    assert note.startswith("data: ")
    assert "from step 6 on" in note


def test_other_weights_are_refused_wherever_they_lie() -> None:
    moved = with_value(JOB, "model.source", "/models/moved")
    with pytest.raises(ResumeRefused, match=r'model\.source: was "embedded", is "/models/moved"'):
        check_resume(told(moved, base_hash="b2"), told(JOB), accept=MAY_BE_ACCEPTED)
    with pytest.raises(ResumeRefused, match=r'model\.source: the weights in "embedded" have changed'):
        check_resume(told(JOB, base_hash="b2"), told(JOB), accept=MAY_BE_ACCEPTED)
    with pytest.raises(ResumeRefused, match="text encoders, tokenizers or VAE are not those of before"):
        check_resume(told(JOB, encoders_hash="e2"), told(JOB), accept=MAY_BE_ACCEPTED)


def test_another_recovery_adapter_is_refused_wherever_it_lies() -> None:
    def with_adapter(place: str, digest: str) -> dict[str, str]:
        return told(with_value(JOB, "model.recovery_adapter", place), recovery_hash=digest)

    assert check_resume(with_adapter("/b.safetensors", "r1"), with_adapter("/a.safetensors", "r1")) == []
    with pytest.raises(ResumeRefused, match=r"model\.recovery_adapter: its weights are not those of before"):
        check_resume(with_adapter("/a.safetensors", "r2"), with_adapter("/a.safetensors", "r1"))


# --- by explicit wish, and what is told ------------------------------------------------------------------------------


def test_another_learning_rate_takes_an_explicit_wish() -> None:
    faster = with_value(JOB, "train.learning_rate", 0.01)
    with pytest.raises(ResumeRefused) as caught:
        check_resume(told(faster), told(JOB))
    assert "train.learning_rate: was 0.0001, is 0.01" in str(caught.value)
    assert "`--accept train.learning_rate`" in str(caught.value)
    notes = check_resume(told(faster), told(JOB), accept=["train.learning_rate"])
    assert notes == ["train.learning_rate: was 0.0001, is 0.01 from step 6 on"]


def test_a_wish_covers_nothing_else() -> None:
    both = with_value(with_value(JOB, "train.learning_rate", 0.01), "train.seed", 1)
    with pytest.raises(ResumeRefused) as caught:
        check_resume(told(both), told(JOB), accept=["train.learning_rate"])
    assert "train.seed: was 42, is 1" in str(caught.value)
    assert "learning_rate" not in str(caught.value)


def test_what_cannot_be_wished_for_is_told() -> None:
    with pytest.raises(ResumeRefused, match=r"train\.seed: cannot be accepted"):
        check_resume(told(JOB), told(JOB), accept=["train.seed"])


def test_everything_that_differs_is_named_at_once() -> None:
    changed = with_value(with_value(JOB, "adapter.rank", 8), "train.seed", 1)
    with pytest.raises(ResumeRefused) as caught:
        check_resume(told(changed), told(JOB))
    assert [line.split(":")[0].strip() for line in str(caught.value).splitlines()[1:-1]] == [
        "adapter.rank",
        "train.seed",
    ]


def test_another_length_is_told_where_the_rate_falls() -> None:
    falling = with_value(JOB, "train.lr_scheduler", "cosine")
    (note,) = check_resume(told(with_value(falling, "train.steps", 3000)), told(falling))
    assert "was 2000, is 3000" in note
    assert "cosine" in note


def test_a_run_cannot_become_shorter_than_it_is() -> None:
    with pytest.raises(ResumeRefused, match=r"train\.steps: is 4, but the run has made 5"):
        check_resume(told(with_value(JOB, "train.steps", 4)), told(JOB))
    assert check_resume(told(with_value(JOB, "train.steps", 5)), told(JOB)) == []


# --- checkpoints of other versions -----------------------------------------------------------------------------------


def test_a_setting_that_the_checkpoint_does_not_know_yet_had_its_default() -> None:
    old = JOB.model_dump(mode="json")
    del old["train"]["deterministic"], old["train"]["skip_limit"], old["cache"]
    saved = told(JOB, config=json.dumps(old))
    assert check_resume(told(JOB), saved) == []
    with pytest.raises(ResumeRefused, match=r"train\.deterministic: was false, is true"):
        check_resume(told(with_value(JOB, "train.deterministic", True)), saved)


@pytest.mark.parametrize("config", ['{"name": "a", "flux": 1}', "[]", "{", '{"train": 3}'])
def test_settings_that_cannot_be_read_are_told(config: str) -> None:
    with pytest.raises(ResumeRefused, match="newer version"):
        check_resume(told(JOB), told(JOB, config=config))


def test_a_checkpoint_that_knew_weights_by_samples_is_compared_by_samples() -> None:
    old = told(JOB, base_hash="samples", encoders_hash="more samples")
    sampled = {"base_hash_sampled": "samples", "encoders_hash_sampled": "more samples"}
    assert check_resume(told(JOB, **sampled), old) == []
    for name in sampled:
        with pytest.raises(ResumeRefused, match=r"model\.source"):
            check_resume(told(JOB, **{**sampled, name: "others"}), old)


def test_a_checkpoint_that_says_nothing_is_told() -> None:
    (note,) = check_resume(told(JOB), {"step": "5"})
    assert "nothing was compared" in note
