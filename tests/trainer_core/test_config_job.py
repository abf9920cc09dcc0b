"""A whole job: its trigger reaches its data sets, and its file reads back as the same job, old files too."""

from __future__ import annotations

from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_origin

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from trainer_core.config import (
    DatasetConfig,
    JobConfig,
    Section,
    dump_job,
    load_job,
    validated,
)
from trainer_core.errors import ConfigError


def job(**changes: Any) -> dict[str, Any]:
    """The smallest valid job, with changes."""
    return {"name": "tiny", "datasets": [{"folder": "pictures"}], **changes}


def test_memory_may_be_one_word() -> None:
    assert validated(JobConfig, job(memory="manual")).memory.plan == "manual"
    assert validated(JobConfig, job()).memory.plan == "auto"
    with pytest.raises(ConfigError, match=r"memory\.plan"):
        validated(JobConfig, job(memory="little"))


# the trigger


def triggers(**changes: Any) -> list[str | None]:
    return [dataset.trigger for dataset in validated(JobConfig, job(**changes)).datasets]


def test_preview_trigger_is_the_jobs_or_the_first_that_a_data_set_has() -> None:
    datasets = [{"folder": "a"}, {"folder": "b", "trigger": "zorble"}, {"folder": "c", "trigger": "other"}]
    assert validated(JobConfig, job(datasets=datasets)).preview_trigger == "zorble"
    assert validated(JobConfig, job(datasets=datasets, trigger="mine")).preview_trigger == "mine"
    assert validated(JobConfig, job()).preview_trigger is None


def test_jobs_trigger_becomes_that_of_sets_without_one() -> None:
    datasets: list[Any] = [
        {"folder": "a"},
        {"folder": "b", "trigger": "own"},
        {"folder": "c", "role": "validation"},
        {"folder": "d", "role": "regularization"},
        {"folder": "e", "trigger": " "},
    ]
    assert triggers(datasets=datasets, trigger=" zorble ") == ["zorble", "own", "zorble", None, "zorble"]
    assert triggers(datasets=datasets) == [None, "own", None, None, None]


def test_jobs_trigger_reaches_sets_that_are_made_already() -> None:
    made = DatasetConfig(folder="a", flip_x=True, resolutions=(64,))
    one = JobConfig(name="tiny", trigger="zorble", datasets=(made,))
    assert one.datasets[0] == made.but(trigger="zorble")
    assert made.trigger is None


def test_jobs_trigger_has_to_fit_the_sets() -> None:
    with pytest.raises(ConfigError, match=r"^datasets\[0\]: a trigger with a comma would be torn apart"):
        validated(JobConfig, job(trigger="a, b", datasets=[{"folder": "a", "shuffle_tags": True}]))


# files


def test_paths_are_taken_from_the_files_own_folder(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    file = tmp_path / "job.yaml"
    dataset = {"folder": "pictures", "mask_folder": "masks", "control_folders": ["one", "../two"]}
    adapter = {"warm_start": "first.safetensors"}
    file.write_text(
        yaml.safe_dump(job(model={"source": "base"}, datasets=[dataset], adapter=adapter)), encoding="utf-8"
    )
    loaded = load_job(file)
    assert Path(loaded.datasets[0].folder) == tmp_path / "pictures"
    assert Path(loaded.datasets[0].mask_folder or "") == tmp_path / "masks"
    assert [Path(folder) for folder in loaded.datasets[0].control_folders] == [tmp_path / "one", tmp_path / "../two"]
    assert Path(loaded.adapter.warm_start or "") == tmp_path / "first.safetensors"
    assert Path(loaded.model.source) == tmp_path / "base"
    (tmp_path / "sdxl.safetensors").touch()
    files = {"text_encoder": "l.safetensors", "text_encoder_2": "g.sft", "vae": "vae.sft"}
    given = {"source": "sdxl.safetensors", "tokenizers": "words", "files": files}
    file.write_text(yaml.safe_dump(job(model=given)), encoding="utf-8")
    model = load_job(file).model
    assert Path(model.source) == tmp_path / "sdxl.safetensors"
    assert {part: Path(name) for part, name in model.files.items()} == {part: tmp_path / files[part] for part in files}
    assert Path(model.tokenizers or "") == tmp_path / "words"
    file.write_text(yaml.safe_dump(job(model={"source": "owner/model"})), encoding="utf-8")
    assert load_job(file).model.source == "owner/model"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"name: [unclosed", "is not valid YAML"),
        (b"- a\n- b\n", "a job is a mapping of settings"),
        (b"", "a job is a mapping of settings"),
        (b"\xff\xfe\x00bad", "cannot be read"),
        (
            b"name: tiny\ndatasets: [{folder: a}]\ntrain: {stps: 1}\n",
            "train.stps: unknown setting; did you mean `steps`?",
        ),
        (b"!!python/object/apply:os.system ['true']", "is a tag, which jobs may not have"),
    ],
)
def test_bad_file_is_named(tmp_path: Path, content: bytes, says: str) -> None:
    file = tmp_path / "job.yaml"
    file.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        load_job(file)
    assert str(caught.value).startswith(str(file))
    assert says in str(caught.value)


def test_missing_file_says_how_to_get_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no such file\. `lora-foundry init`"):
        load_job(tmp_path / "job.yaml")


# old files

OLD = """\
name: zorble
model: {family: flux1, source: embedded, dtype: auto, text_encoder_dtype: auto, vae_dtype: auto, device: auto}
adapter: {type: lora, rank: 16, alpha: 8.0, dropout: 0.0, targets: attention_mlp, warm_start: null}
datasets:
- folder: /data/pictures
  resolutions: [512, 768, 1024]
  weight: 2.0
  caption_extension: txt
  default_caption: a thing
  flip_x: true
  trigger: zorble
  trigger_placement: start
  caption_dropout: 0.1
  shuffle_tags: false
  keep_tags: 1
train: {steps: 2000, batch_size: 1, gradient_accumulation: 1, learning_rate: 0.0001, lr_scheduler: cosine,
  warmup_steps: 10, optimizer: adamw, weight_decay: 0.0001, beta1: 0.9, beta2: 0.999, epsilon: 1.0e-08,
  max_grad_norm: 1.0, timestep_type: shift, gradient_checkpointing: true, seed: 42, log_every: 1}
save: {every: 250, keep: 4, dtype: float32}
sample: {prompts: ['a [trigger]'], every: 250, before_training: true, width: 512, height: null, steps: null,
  guidance: null, seed: 42, walk_seed: true}
"""
"""All that a job.yaml of 2026-11-20 held."""


def test_old_file_means_what_it_meant(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text(OLD, encoding="utf-8")
    loaded = load_job(tmp_path / "job.yaml")
    told = yaml.safe_load(OLD)
    kept = loaded.model_dump(mode="json")
    for name, section in told.items():
        mine, theirs = (kept[name][0], section[0]) if name == "datasets" else (kept[name], section)
        assert mine == theirs if name == "name" else theirs.items() <= mine.items(), name
    assert loaded.preview_trigger == "zorble"


# round trip

text = st.text(st.characters(exclude_categories=["Cs", "Cc"], include_characters="\n\t"), max_size=20)
words = st.from_regex(r"\A[a-zA-Z0-9_é漢][a-zA-Z0-9_é漢 -]{0,10}\Z")
folders = words.map(lambda name: str(Path("/data").absolute() / name))
numbers = st.integers(-(10**6), 10**6) | st.floats(-1e9, 1e9, allow_nan=False)
PECULIAR: dict[str, st.SearchStrategy[Any]] = {
    "name": st.from_regex(r"\A[a-z0-9][a-z0-9 ._-]{0,20}[a-z0-9]\Z").filter(
        lambda name: name[:3] not in {"con", "prn", "aux", "nul", "com", "lpt"}
    ),
    "source": st.just("embedded") | st.just("owner/model"),
    "files": st.dictionaries(st.sampled_from(["text_encoder", "vae"]), folders),
    "tokenizers": st.none() | folders,
    "recovery_adapter": st.none() | folders,
    "warm_start": st.none() | folders,
    "folder": folders,
    "mask_folder": st.none() | folders,
    "control_folders": st.lists(folders, max_size=3),
    "controls": st.lists(st.lists(folders, max_size=2), max_size=3),
    "resolutions": st.lists(st.integers(16, 8192), min_size=1, max_size=4),
    "frames": st.integers(1, 4096),
    "caption_extension": st.from_regex(r"\A\.?[a-z]{1,16}\Z"),
    "caption_column": words,
    "background": st.sampled_from(["white", "#102030", "rgb(1, 2, 3)", "hsl(0, 100%, 50%)"]),
    "trigger": st.none() | words | st.just("  "),
    "optimizer": st.sampled_from(["adamw", "Prodigy", "torch.optim.AdamW", "RAdam"]),
    "optimizer_options": st.dictionaries(
        words, st.booleans() | numbers | text | st.lists(st.floats(0, 1), max_size=2), max_size=3
    ),
    "stage_boundaries": st.lists(st.floats(0.45, 0.55), max_size=3),
    "timestep_min": st.floats(0, 0.4),
    "timestep_max": st.floats(0.6, 1),
}
"""Fields with rules that their types do not tell; all others are drawn from their types and limits."""


def values(annotation: Any, limits: dict[str, Any]) -> st.SearchStrategy[Any]:
    """Valid values of a field's type."""
    if annotation is NoneType:
        return st.none()
    if annotation is bool:
        return st.booleans()
    if annotation is str:
        return text
    if annotation in (int, float):
        low, high = limits.get("ge", limits.get("gt", 0)), limits.get("le", limits.get("lt", 10**6))
        if annotation is int:
            return st.integers(low, high - ("lt" in limits))
        return st.floats(low, high, exclude_min="gt" in limits, exclude_max="lt" in limits, allow_nan=False)
    parts = get_args(annotation)
    if parts and all(isinstance(part, str) for part in parts):
        return st.sampled_from(parts)
    if get_origin(annotation) is tuple:
        return st.lists(values(parts[0], limits), max_size=3)
    return st.one_of(*(values(part, limits) for part in parts))


def sections(kind: type[Section]) -> st.SearchStrategy[dict[str, Any]]:
    """Settings of a section, any of which may be left out."""
    drawn: dict[str, st.SearchStrategy[Any]] = {}
    for name, field in kind.model_fields.items():
        if name in PECULIAR:
            drawn[name] = PECULIAR[name]
        elif isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            drawn[name] = sections(field.annotation)
        elif name == "datasets":
            drawn[name] = st.lists(sections(DatasetConfig), min_size=1, max_size=3)
        else:
            limits = {key: getattr(rule, key) for rule in field.metadata for key in rule.__slots__ if key != "pattern"}
            drawn[name] = values(field.annotation, limits)
    needed = {name: drawn.pop(name) for name, field in kind.model_fields.items() if field.is_required()}
    return st.fixed_dictionaries(needed, optional=drawn)


def made_to_fit(data: dict[str, Any]) -> dict[str, Any]:
    """The same settings without what contradicts the others."""
    datasets, train, regularization = data["datasets"], data.get("train", {}), data.get("regularization", {})
    datasets[0]["role"] = "train"
    for dataset in datasets:
        if dataset.get("role") == "regularization":
            dataset["trigger"] = None
        if dataset.get("mask_folder"):
            dataset["alpha_mask"] = False
    train["warmup_steps"] = min(train.get("warmup_steps", 0), train.get("steps", 2000))
    if not train.get("stage_boundaries"):
        train["stages"] = "all"
    if regularization.get("output_preservation"):
        regularization["output_preservation_class"] = "woman, man"
        data["trigger"] = "zorble"
    if data.get("validation", {}).get("every"):
        data["validation"]["share"] = 0.25
    if sample := data.get("sample"):
        prompts, controls = sample.get("prompts", [])[:3], sample.get("controls", [])[:3]
        sample |= {"prompts": prompts, "controls": controls if len(controls) == len(prompts) else controls[:1]}
    if train.get("ema_decay") is None:
        for part in ("save", "sample"):
            data.get(part, {}).pop("weights", None)
    if data.get("memory", {}).get("compile"):
        data.get("adapter", {}).pop("dropout", None)
    return data | ({"train": train} if train else {})


@settings(suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large], deadline=None)
@given(data=sections(JobConfig).map(made_to_fit))
def test_yaml_round_trip(data: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> None:
    original = validated(JobConfig, data)
    file = tmp_path_factory.getbasetemp() / "job.yaml"
    file.write_text(dump_job(original), encoding="utf-8")
    assert load_job(file) == original
    assert dump_job(load_job(file)) == dump_job(original)
