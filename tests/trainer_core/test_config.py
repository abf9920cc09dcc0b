"""A job's settings: what is refused says which field it is and what to do; what is accepted survives a round trip."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from trainer_core.config import (
    AdapterConfig,
    DatasetConfig,
    JobConfig,
    ModelConfig,
    SampleConfig,
    SaveConfig,
    TrainConfig,
    description,
    dump_job,
    load_job,
    plain_name,
    validated,
)
from trainer_core.errors import ConfigError, FoundryError

SECTIONS = (JobConfig, ModelConfig, AdapterConfig, DatasetConfig, TrainConfig, SaveConfig, SampleConfig)


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
    assert (tiny.model.family, tiny.model.source) == ("flux1", "embedded")
    assert (tiny.adapter.rank, tiny.adapter.scale) == (16, 1.0)
    assert (tiny.train.steps, tiny.train.learning_rate, tiny.train.seed) == (2000, 1e-4, 42)
    assert tiny.datasets[0].resolutions == (512, 768, 1024)


@pytest.mark.parametrize(
    ("changes", "field", "says"),
    [
        ({"trian": {}}, "trian", "did you mean `train`?"),
        ({"train": {"learning_rat": 1e-4}}, "train.learning_rat", "did you mean `learning_rate`?"),
        ({"adapter": {"rnak": 8}}, "adapter.rnak", "did you mean `rank`?"),
        ({"model": {"sorce": "embedded"}}, "model.sorce", "did you mean `source`?"),
        ({"sample": {"promts": []}}, "sample.promts", "did you mean `prompts`?"),
        ({"datasets": [{"folder": "a"}, {"folder": "b", "triger": "x"}]}, "datasets[1].triger", "`trigger`"),
        ({"save": {"qqqqqqq": 1}}, "save.qqqqqqq", "known here: every, keep, dtype"),
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
        ({"train": {"optimizer": "sgd"}}, "train.optimizer", "sgd"),
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


def test_trigger_is_the_first_that_a_data_set_has() -> None:
    datasets = [{"folder": "a"}, {"folder": "b", "trigger": "zorble"}, {"folder": "c", "trigger": "other"}]
    assert validated(JobConfig, job(datasets=datasets)).trigger == "zorble"
    assert validated(JobConfig, job()).trigger is None


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


# files


def test_paths_are_taken_from_the_files_own_folder(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    file = tmp_path / "job.yaml"
    file.write_text(yaml.safe_dump(job(model={"source": "base"})), encoding="utf-8")
    loaded = load_job(file)
    assert Path(loaded.datasets[0].folder) == tmp_path / "pictures"
    assert Path(loaded.model.source) == tmp_path / "base"
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
        (b"!!python/object/apply:os.system ['true']", "is not valid YAML"),
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


# round trip

text = st.text(st.characters(exclude_categories=["Cs", "Cc"], include_characters="\n\t"), max_size=20)
share = st.floats(0, 0.99, allow_nan=False)
positive = st.floats(1e-9, 10, allow_nan=False)
seeds = st.integers(0, 2**63 - 1)
sizes = st.none() | st.integers(16, 8192)
datasets = st.builds(
    DatasetConfig,
    folder=st.from_regex(r"\A[a-zA-Z0-9_é漢-]{1,12}\Z").map(lambda name: str(Path("/data").absolute() / name)),
    resolutions=st.lists(st.integers(16, 8192), min_size=1, max_size=4).map(tuple),
    weight=positive,
    default_caption=st.none() | text,
    trigger=st.none() | text,
    trigger_placement=st.sampled_from(["start", "end", "only_placeholder"]),
    caption_dropout=share,
    keep_tags=st.integers(0, 9),
    flip_x=st.booleans(),
)
jobs = st.builds(
    JobConfig,
    name=st.from_regex(r"\A[a-z0-9][a-z0-9 ._-]{0,20}[a-z0-9]\Z").filter(
        lambda name: name[:3] not in {"con", "prn", "aux", "nul", "com", "lpt"}
    ),
    adapter=st.builds(AdapterConfig, rank=st.integers(1, 1024), alpha=st.none() | positive, dropout=share),
    datasets=st.lists(datasets, min_size=1, max_size=3).map(tuple),
    train=st.builds(TrainConfig, steps=st.integers(1, 10**7), learning_rate=positive, epsilon=positive, seed=seeds),
    save=st.builds(SaveConfig, every=st.integers(1, 10**6), dtype=st.sampled_from(["float32", "bfloat16", "float16"])),
    sample=st.builds(SampleConfig, prompts=st.lists(text, max_size=3).map(tuple), width=sizes, seed=seeds),
)


@given(original=jobs)
def test_yaml_round_trip(original: JobConfig, tmp_path_factory: pytest.TempPathFactory) -> None:
    file = tmp_path_factory.mktemp("round") / "job.yaml"
    file.write_text(dump_job(original), encoding="utf-8")
    assert load_job(file) == original


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
