"""A job's settings: what is refused says which field it is and what to do; what is left out has its default."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer_core.config import (
    AdapterConfig,
    CacheConfig,
    DatasetConfig,
    JobConfig,
    MemoryConfig,
    ModelConfig,
    RegularizationConfig,
    SampleConfig,
    SaveConfig,
    TrainConfig,
    ValidationConfig,
    description,
    plain_name,
    validated,
)
from trainer_core.errors import ConfigError, FoundryError

SECTIONS = (
    JobConfig,
    ModelConfig,
    AdapterConfig,
    DatasetConfig,
    TrainConfig,
    RegularizationConfig,
    ValidationConfig,
    SaveConfig,
    SampleConfig,
    CacheConfig,
    MemoryConfig,
)


def job(**changes: Any) -> dict[str, Any]:
    """The smallest valid job, with changes."""
    return {"name": "tiny", "datasets": [{"folder": "pictures"}], **changes}


def refusal(data: Any) -> str:
    """The message with which a job is refused."""
    with pytest.raises(ConfigError) as caught:
        validated(JobConfig, data)
    assert isinstance(caught.value, FoundryError)
    return str(caught.value)


def test_smallest_job_has_the_documented_defaults() -> None:
    tiny = validated(JobConfig, job())
    assert (tiny.model.family, tiny.model.source) == ("auto", "embedded")
    assert (tiny.adapter.rank, tiny.adapter.scale) == (16, 1.0)
    assert (tiny.train.steps, tiny.train.learning_rate, tiny.train.seed) == (2000, 1e-4, 42)
    assert tiny.datasets[0].resolutions == (512, 768, 1024)


def test_new_features_are_off_until_they_are_asked_for() -> None:
    """A job from before they were there trains as it did."""
    tiny = validated(JobConfig, job())
    regularization, train, dataset = tiny.regularization, tiny.train, tiny.datasets[0]
    assert (regularization.output_preservation, regularization.blank_preservation) == (False, False)
    assert (regularization.differential_guidance, regularization.contrastive_guidance) == (False, False)
    assert (tiny.validation.every, tiny.validation.share) == (0, 0.0)
    assert (train.ema_decay, train.min_snr_gamma, train.stage_boundaries) == (None, None, ())
    assert (train.loss_type, train.timestep_bias, train.timestep_min, train.timestep_max) == ("mse", "balanced", 0, 1)
    assert (train.optimizer, train.beta1, train.beta2, train.epsilon) == ("adamw", None, None, None)
    assert (dataset.role, dataset.loss_weight, dataset.adapter_strength) == ("train", 1.0, 1.0)
    assert (dataset.crop, dataset.flip_y, dataset.masked, dataset.control_folders) == ("center", False, False, ())
    assert (tiny.save.weights, tiny.sample.weights, tiny.sample.negative_prompt) == ("auto", "auto", "")


@pytest.mark.parametrize(
    ("changes", "field", "says"),
    [
        ({"trian": {}}, "trian", "did you mean `train`?"),
        ({"train": {"learning_rat": 1e-4}}, "train.learning_rat", "did you mean `learning_rate`?"),
        ({"adapter": {"rnak": 8}}, "adapter.rnak", "did you mean `rank`?"),
        ({"model": {"sorce": "embedded"}}, "model.sorce", "did you mean `source`?"),
        ({"sample": {"promts": []}}, "sample.promts", "did you mean `prompts`?"),
        ({"datasets": [{"folder": "a"}, {"folder": "b", "triger": "x"}]}, "datasets[1].triger", "`trigger`"),
        ({"save": {"qqqqqqq": 1}}, "save.qqqqqqq", "known here: every, keep, keep_best, dtype, weights"),
        ({"regularisation": {}}, "regularisation", "did you mean `regularization`?"),
        ({"regularization": {"blank_presevation": 1}}, "regularization.blank_presevation", "`blank_preservation`?"),
        ({"validation": {"evry": 1}}, "validation.evry", "did you mean `every`?"),
        ({"cache": {"limit": 1}}, "cache.limit", "did you mean `limit_gb`?"),
    ],
)
def test_unknown_setting_names_its_place_and_the_nearest_known(changes: dict[str, Any], field: str, says: str) -> None:
    message = refusal(job(**changes))
    assert message.startswith(f"{field}: unknown setting")
    assert says in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("changes", "field", "given"),
    [
        ({"train": {"steps": 0}}, "train.steps", "0"),
        ({"train": {"steps": "many"}}, "train.steps", "many"),
        ({"train": {"steps": 1.5}}, "train.steps", "1.5"),
        ({"train": {"learning_rate": -1}}, "train.learning_rate", "-1"),
        ({"train": {"learning_rate": float("nan")}}, "train.learning_rate", "nan"),
        ({"train": {"max_grad_norm": float("inf")}}, "train.max_grad_norm", "inf"),
        ({"train": {"optimizer": "no such thing"}}, "train.optimizer", "no such thing"),
        ({"train": {"optimizer": "torch.optim."}}, "train.optimizer", "torch.optim."),
        ({"train": {"optimizer": "LBFGS"}}, "train.optimizer", "several times a step"),
        ({"train": {"optimizer": "torch.optim.SparseAdam"}}, "train.optimizer", "sparse gradients"),
        ({"train": {"lr_scheduler": "step"}}, "train.lr_scheduler", "step"),
        ({"train": {"lr_power": 0}}, "train.lr_power", "0"),
        ({"train": {"lr_cycles": 0}}, "train.lr_cycles", "0"),
        ({"train": {"lr_final_share": 1.1}}, "train.lr_final_share", "1.1"),
        ({"train": {"beta1": 1}}, "train.beta1", "1"),
        ({"train": {"epsilon": 0}}, "train.epsilon", "0"),
        ({"train": {"ema_decay": 1}}, "train.ema_decay", "1"),
        ({"train": {"ema_decay": 0}}, "train.ema_decay", "0"),
        ({"train": {"loss_type": "wavelet"}}, "train.loss_type", "wavelet"),
        ({"train": {"huber_delta": 0}}, "train.huber_delta", "0"),
        ({"train": {"min_snr_gamma": 0}}, "train.min_snr_gamma", "0"),
        ({"train": {"timestep_type": "cubic"}}, "train.timestep_type", "cubic"),
        ({"train": {"timestep_bias": "content"}}, "train.timestep_bias", "content"),
        ({"train": {"timestep_max": 1.5}}, "train.timestep_max", "1.5"),
        ({"train": {"stage_boundaries": [0.5, 1.0]}}, "train.stage_boundaries", "1.0"),
        ({"train": {"stage_boundaries": 0.0}}, "train.stage_boundaries", "0.0"),
        ({"train": {"stage_switch_every": 0}}, "train.stage_switch_every", "0"),
        ({"regularization": {"output_preservation_weight": 0}}, "regularization.output_preservation_weight", "0"),
        ({"regularization": {"preservation_every": 0}}, "regularization.preservation_every", "0"),
        ({"regularization": {"differential_guidance_scale": 0}}, "regularization.differential_guidance_scale", "0"),
        ({"regularization": {"contrastive_guidance_scale": -1}}, "regularization.contrastive_guidance_scale", "-1"),
        ({"regularization": {"ratio": 0}}, "regularization.ratio", "0"),
        ({"regularization": {"ratio": 1}}, "regularization.ratio", "1"),
        ({"validation": {"share": 0.6}}, "validation.share", "0.6"),
        ({"validation": {"draws": 0}}, "validation.draws", "0"),
        ({"cache": {"limit_gb": 0}}, "cache.limit_gb", "0"),
        ({"save": {"weights": "both"}}, "save.weights", "both"),
        ({"train": {"seed": -1}}, "train.seed", "-1"),
        ({"adapter": {"rank": 0}}, "adapter.rank", "0"),
        ({"adapter": {"dropout": 1}}, "adapter.dropout", "1"),
        ({"adapter": {"alpha": 0}}, "adapter.alpha", "0"),
        ({"adapter": {"targets": "everything"}}, "adapter.targets", "everything"),
        ({"model": {"dtype": "float8"}}, "model.dtype", "float8"),
        ({"save": {"every": 0}}, "save.every", "0"),
        ({"sample": {"width": 4}}, "sample.width", "4"),
        ({"datasets": [{"folder": "a", "caption_dropout": 1.5}]}, "datasets[0].caption_dropout", "1.5"),
        ({"datasets": [{"folder": "a", "weight": 0}]}, "datasets[0].weight", "0"),
        ({"datasets": [{"folder": "a", "resolutions": [8]}]}, "datasets[0].resolutions", "8"),
        ({"datasets": [{"folder": "a", "resolutions": 100_000}]}, "datasets[0].resolutions", "100000"),
        ({"datasets": [{"folder": "a", "role": "test"}]}, "datasets[0].role", "test"),
        ({"datasets": [{"folder": "a", "loss_weight": -1}]}, "datasets[0].loss_weight", "-1"),
        ({"datasets": [{"folder": "a", "adapter_strength": 11}]}, "datasets[0].adapter_strength", "11"),
        ({"datasets": [{"folder": "a", "mask_minimum": 2}]}, "datasets[0].mask_minimum", "2"),
        ({"datasets": [{"folder": "a", "crop": "left"}]}, "datasets[0].crop", "left"),
        ({"datasets": [{"folder": "a", "background": "whiteish"}]}, "datasets[0].background", "whiteish"),
        ({"datasets": [{"folder": "a", "background": "#ffffff80"}]}, "datasets[0].background", "transparent itself"),
        ({"datasets": [{"folder": "a", "control_folders": list("abcd")}]}, "datasets[0].control_folders", "'d'"),
        ({"datasets": [{"folder": "a", "caption_column": ""}]}, "datasets[0].caption_column", "''"),
    ],
)
def test_bad_value_gives_one_line_with_field_and_value(changes: dict[str, Any], field: str, given: str) -> None:
    message = refusal(job(**changes))
    assert message.startswith(f"{field}: ")
    assert given in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"datasets": []}, "datasets: needs at least one item"),
        ({"datasets": [{"folder": "a", "resolutions": []}]}, "datasets[0].resolutions: needs at least one item"),
        ({"datasets": [{}]}, "datasets[0].folder: is required"),
        ({"datasets": "pictures"}, "datasets: must be a list"),
        ({"train": 7}, "train: must be a section"),
        ({"train": {"steps": 10, "warmup_steps": 11}}, "train.warmup_steps is larger than train.steps"),
    ],
)
def test_bad_structure_gives_one_line(changes: dict[str, Any], says: str) -> None:
    message = refusal(job(**changes))
    assert message.startswith(says)
    assert "\n" not in message


def with_dataset(**settings: Any) -> dict[str, Any]:
    return job(datasets=[{"folder": "a", **settings}])


@pytest.mark.parametrize(
    ("data", "field", "says"),
    [
        (job(train={"timestep_min": 0.5, "timestep_max": 0.5}), "train", "timestep_min must be below timestep_max"),
        (
            job(train={"timestep_max": 0.8, "stage_boundaries": [0.875]}),
            "train",
            "stage_boundaries must lie between timestep_min and timestep_max",
        ),
        (
            job(trigger="zorble", regularization={"output_preservation": True}),
            "regularization",
            "needs output_preservation_class",
        ),
        (
            job(trigger="x", regularization={"output_preservation": True, "output_preservation_class": " , "}),
            "regularization",
            "needs output_preservation_class",
        ),
        (
            job(regularization={"output_preservation": True, "output_preservation_class": "shape"}),
            "regularization.output_preservation puts the class word in the trigger's place",
            "set a trigger",
        ),
        (job(validation={"every": 10}), "validation.every", "set validation.share, or give a data set the role"),
        (job(save={"weights": "ema"}), "save.weights", "ema needs train.ema_decay"),
        (job(sample={"weights": "ema"}), "sample.weights", "ema needs train.ema_decay"),
        (with_dataset(role="validation"), "datasets", "none has the role train"),
        (with_dataset(role="regularization"), "datasets", "none has the role train"),
        (with_dataset(role="regularization", trigger="zorble"), "datasets[0]", "leave its trigger empty"),
        (with_dataset(mask_folder="m", alpha_mask=True), "datasets[0]", "not from both"),
        (with_dataset(shuffle_tags=True, trigger="a, b"), "datasets[0]", "torn apart by shuffle_tags"),
    ],
)
def test_parts_that_do_not_fit_give_one_line_that_says_what_to_do(data: Any, field: str, says: str) -> None:
    message = refusal(data)
    assert message.startswith(field)
    assert says in message
    assert "\n" not in message


@pytest.mark.parametrize(
    "data",
    [
        job(validation={"every": 10, "share": 0.1}),
        job(validation={"every": 10}, datasets=[{"folder": "a"}, {"folder": "b", "role": "validation"}]),
        job(train={"ema_decay": 0.99}, save={"weights": "ema"}, sample={"weights": "raw"}),
        job(trigger="x", regularization={"output_preservation": True, "output_preservation_class": "woman, man"}),
        job(train={"stage_boundaries": [0.875], "stages": "low_noise", "stage_switch_every": 10}),
        job(train={"timestep_min": 0.5, "timestep_max": 0.6, "stage_boundaries": 0.55}),
        with_dataset(mask_folder="m", invert_mask=True, mask_minimum=0),
        with_dataset(control_folders=["one", "two", "three"]),
    ],
)
def test_parts_that_fit_are_taken(data: Any) -> None:
    validated(JobConfig, data)


def test_every_mistake_gets_its_own_line() -> None:
    lines = refusal({"train": {"steps": 0, "batch": 2}, "adapter": {"rank": -1}}).splitlines()
    fields = sorted(line.split(":")[0] for line in lines)
    assert fields == ["adapter.rank", "datasets", "name", "train.batch", "train.steps"]


@pytest.mark.parametrize("name", ["../up", "a/b", "a\\b", "/etc/passwd", "C:\\lora", "..\\x"])
def test_name_with_path_separators_is_refused(name: str) -> None:
    message = refusal(job(name=name))
    assert message.startswith("name: ")
    assert "path separators" in message
    assert "\n" not in message


@pytest.mark.parametrize(
    "name", ["", " ", ".hidden", "..", "ends.", "a:b", "a*b", 'a"b', "nul", "COM1", "aux.safetensors", "x" * 101]
)
def test_name_that_is_no_file_name_is_refused(name: str) -> None:
    assert refusal(job(name=name)).startswith("name: ")


@pytest.mark.parametrize("name", ["my lora", "zorble_v1.2", "Größe-7", "2024", "漢字", "nullify", "x" * 100])
def test_plain_name_is_kept(name: str) -> None:
    assert plain_name(f" {name} ") == name


def test_settings_are_normalised() -> None:
    one = validated(DatasetConfig, {"folder": "a", "resolutions": 512, "trigger": "  ", "default_caption": " a cat "})
    assert (one.resolutions, one.trigger, one.default_caption) == ((512,), None, "a cat")
    many = validated(DatasetConfig, {"folder": "a", "resolutions": [1024, 512, 512]})
    assert many.resolutions == (512, 1024)


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("AdamW", "adamw"),
        ("PRODIGY", "prodigy"),
        ("AdamW8bit", "adamw8bit"),
        ("torch.optim.AdamW", "torch.optim.AdamW"),
        ("RAdam", "RAdam"),
    ],
)
def test_optimizers_of_ours_have_one_spelling_and_torchs_keep_theirs(given: str, kept: str) -> None:
    assert TrainConfig(optimizer=given).optimizer == kept


def test_stages_go_from_high_noise_to_low() -> None:
    assert TrainConfig(stage_boundaries=(0.3, 0.875, 0.3)).stage_boundaries == (0.875, 0.3)
    assert validated(TrainConfig, {"stage_boundaries": 0.9}).stage_boundaries == (0.9,)


def test_class_words_are_separated_by_commas() -> None:
    assert RegularizationConfig(output_preservation_class=" woman,, young man ").classes == ("woman", "young man")
    assert RegularizationConfig().classes == ()


def test_empty_texts_are_nothing() -> None:
    one = validated(DatasetConfig, {"folder": "a", "mask_folder": " "})
    assert (one.mask_folder, one.masked) == (None, False)
    assert RegularizationConfig(output_preservation_class="  ").output_preservation_class is None
    assert validated(JobConfig, job(trigger=" ")).trigger is None


def test_a_set_is_masked_by_a_folder_or_by_transparency() -> None:
    assert DatasetConfig(folder="a", mask_folder="m").masked
    assert DatasetConfig(folder="a", alpha_mask=True).masked


def test_but_validates_what_it_changes() -> None:
    train = TrainConfig(steps=10)
    assert (train.but(steps=20).steps, train.steps) == (20, 10)
    with pytest.raises(ConfigError, match=r"^steps: .*given: 0"):
        train.but(steps=0)


@pytest.mark.parametrize("section", SECTIONS)
def test_every_field_has_a_tooltip_or_is_a_section(section: Any) -> None:
    for name, field in section.model_fields.items():
        if field.annotation not in SECTIONS:
            assert description(section, name).endswith((".", ":", "…")), f"{section.__name__}.{name}"


text = st.text(st.characters(exclude_categories=["Cs", "Cc"], include_characters="\n\t"), max_size=20)


@given(
    data=st.recursive(
        st.none() | st.booleans() | st.integers() | text,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    )
)
def test_any_data_is_a_job_or_a_config_error(data: Any) -> None:
    """No shape of input escapes as another exception; nothing that small happens to be a valid job."""
    refusal(data)
    refusal(job(train=data) if data else job(train=0))
    refusal({**job(), "datasets": data})
    refusal({**job(), "trigger": [data]})
    for part in ("regularization", "validation", "cache"):
        refusal({**job(), part: [data]})
    for setting in ("optimizer_options", "stage_boundaries", "optimizer"):
        refusal({**job(), "train": {setting: {"deep": {"deeper": data}}}})


@pytest.mark.parametrize("unnamed", [{"folder": ""}, {"folder": " "}, {"folder": "a", "control_folders": [""]}])
def test_an_empty_folder_is_not_the_working_folder(unnamed: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"folders?\b.* empty"):
        validated(DatasetConfig, unnamed)
