"""Hostile texts: YAML and JSON that would exhaust the machine or say something else than they seem to, and secrets."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer_core.cli import main
from trainer_core.config import JobConfig, dump_job, load_job, validated
from trainer_core.config.yaml_text import LIMIT, dump_yaml, read_yaml
from trainer_core.errors import ConfigError
from trainer_core.reading import parse_json, read_json, read_regular
from trainer_core.runs.run_folder import RunFolder
from trainer_core.secrets import HIDDEN, looks_like_token, redacted

TOKEN = "hf_" + "AbCdEfGhIjKlMnOpQrStUvWxYz01234567"
LAUGHS = "a: &a [x, x]\n" + "".join(
    f"{b}: &{b} [*{a}, *{a}]\n" for a, b in zip("abcdefghij", "bcdefghijk", strict=True)
)


def job(**changes: Any) -> dict[str, Any]:
    return {"name": "tiny", "datasets": [{"folder": "pictures"}], **changes}


def refusal(data: dict[str, Any]) -> str:
    with pytest.raises(ConfigError) as caught:
        validated(JobConfig, data)
    return str(caught.value)


# YAML


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (LAUGHS, "anchor"),
        ("a: *b", "refers to another part"),
        ("a: &x 1", "anchor"),
        ("base: &b {x: 1}\nmore: {<<: *b}", "anchor"),
        ("a: !!python/object/apply:os.system [id]", "tag"),
        ("a: !include /etc/passwd", "tag"),
        ("a: !!binary aGk=", "tag"),
        ("a: " + "[" * 100_000, "nested"),
        ("{a: " * 100_000, "nested"),
        ("- " * 50_000, "nested"),
        ("a: " + "x" * LIMIT, "too large"),
        ("steps: 1\nseed: 2\nsteps: 3", "`steps` stands twice"),
        ("train: {steps: 1, steps: 2}", "`steps` stands twice"),
        ("1: x", "names are texts"),
        ("? [a, b]\n: x", "names are texts"),
        ("a: 1\n---\na: 2", "another document"),
        ("a: \x07", "not valid YAML"),
        ("'unclosed", "not valid YAML"),
    ],
)
def test_yaml_that_a_job_never_needs_is_refused(text: str, says: str) -> None:
    with pytest.raises(ValueError, match=re.escape(says)) as caught:
        read_yaml(text)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("1E5", 1e5),
        ("-2.5e-3", -2.5e-3),
        ("1.", 1.0),
        (".5", 0.5),
        ("1_000", 1000),
        ("0x1F", 31),
        ("-7", -7),
        ("true", True),
        ("off", False),
        ("~", None),
        ("0123", "0123"),
        ("1:30", "1:30"),
        ("2024-01-01", "2024-01-01"),
        ("=", "="),
        ("'1e-4'", "1e-4"),
        ("9" * 6000, "9" * 6000),
    ],
)
def test_numbers_are_those_of_yaml_1_2_and_nothing_becomes_a_date(text: str, value: Any) -> None:
    found = read_yaml(f"a: {text}")["a"]
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize("text", ["1e-4", "1E-4", "0.0001", "1.0e-4", "'1e-4'"])
def test_a_learning_rate_may_be_written_in_any_way(text: str, tmp_path: Path) -> None:
    file = tmp_path / "job.yaml"
    file.write_text(f"name: a\ndatasets: [{{folder: x}}]\ntrain: {{learning_rate: {text}}}\n", encoding="utf-8")
    assert load_job(file).train.learning_rate == 1e-4


def test_an_option_that_is_a_number_stays_one(tmp_path: Path) -> None:
    """An option's field takes texts too, so `1e-8` would reach the optimizer as a text."""
    file = tmp_path / "job.yaml"
    text = "name: a\ndatasets: [{folder: x}]\ntrain: {optimizer_options: {eps: 1e-8, betas: [0.9, 1e-1]}}\n"
    file.write_text(text, encoding="utf-8")
    assert load_job(file).train.optimizer_options == {"eps": 1e-8, "betas": [0.9, 0.1]}


@pytest.mark.parametrize("word", ["on", "yes", "true", "off", "no", "false"])
@pytest.mark.parametrize(
    ("place", "line"),
    [
        ("train.learning_rate", "train: {learning_rate: %s}"),
        ("train.steps", "train: {steps: %s}"),
        ("train.ema_decay", "train: {ema_decay: %s}"),
        ("train.stage_boundaries", "train: {stage_boundaries: [0.5, %s]}"),
        ("train.optimizer_options", "train: {optimizer_options: {betas: [0.9, %s]}}"),
        ("adapter.rank", "adapter: {rank: %s}"),
        ("adapter.alpha", "adapter: {alpha: %s}"),
        ("save.every", "save: {every: %s}"),
        ("sample.seed", "sample: {seed: %s}"),
        ("cache.limit_gb", "cache: {limit_gb: %s}"),
        ("regularization.ratio", "regularization: {ratio: %s}"),
        ("validation.share", "validation: {share: %s}"),
        ("datasets[0].resolutions", "datasets: [{folder: x, resolutions: [64, %s]}]"),
        ("datasets[0].weight", "datasets: [{folder: x, weight: %s}]"),
    ],
)
def test_yes_and_no_are_no_numbers(word: str, place: str, line: str) -> None:
    said = refusal({**job(), **read_yaml(line % word)})
    assert said.startswith(f"{place}: must be a number (in YAML, yes, no, on, off, true and false are switches)"), said


def test_switches_stay_switches() -> None:
    data = job(train={"optimizer_options": {"amsgrad": True, "eps": 1e-8}}, sample={"walk_seed": False})
    assert validated(JobConfig, data).train.optimizer_options == {"amsgrad": True, "eps": 1e-8}
    assert validated(JobConfig, data).sample.walk_seed is False


plain = st.none() | st.booleans() | st.integers(-(10**30), 10**30) | st.floats(allow_nan=False) | st.text(max_size=20)
odd = st.sampled_from(
    ["1e-4", "0x1F", "1_0", "yes", "null", "~", "<<", "=", "*a", "&a", "!b", ".inf", "2024-01-01", "0b1"]
)
nested = st.recursive(plain | odd, lambda inner: st.lists(inner, max_size=4), max_leaves=8)


@given(st.dictionaries(st.text(max_size=8) | odd, nested, max_size=5))
def test_what_is_written_is_read_back(value: dict[str, Any]) -> None:
    assert read_yaml(dump_yaml(value)) == value


def test_a_pipe_instead_of_a_job_does_not_hang(tmp_path: Path) -> None:
    if not hasattr(os, "mkfifo"):
        pytest.skip("no named pipes here")
    os.mkfifo(tmp_path / "job.yaml")
    with pytest.raises(ConfigError, match="no regular file"):
        load_job(tmp_path / "job.yaml")


# JSON and files


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"a":' * 100_000, "NaN", "[Infinity]", '{"a": -Infinity}', "", "{'a': 1}"]
)
def test_json_that_is_none_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - what json says differs between versions
        parse_json(text)


def test_files_are_read_up_to_a_limit_and_devices_not_at_all(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    file.write_bytes(b'{"a": 1}')
    assert read_regular(file, 8) == b'{"a": 1}'
    assert read_json(file) == {"a": 1}
    for path in (tmp_path, Path("/dev/zero")):
        if path.exists():
            with pytest.raises(OSError, match="no regular file"):
                read_regular(path, 8)
    with pytest.raises(OSError, match="larger than"):
        read_regular(file, 7)
    with pytest.raises(OSError):  # noqa: PT011 - the system's words
        read_regular(Path("a\0b"), 8)


# secrets


@pytest.mark.parametrize(
    "text",
    [
        TOKEN,
        f"Authorization: Bearer {TOKEN}",
        "api_org_" + "x" * 34,
        "ghp_" + "a1" * 18,
        "github_pat_" + "a1" * 20,
        "Bearer 0123456789abcdef0123",
        "https://me:pass@huggingface.co/x",
        "proxy http://user:p%40ss@10.0.0.1:3128 refused",
    ],
)
def test_secrets_are_found_and_taken_out(text: str) -> None:
    assert looks_like_token(text)
    hidden = redacted(f"before {text} after")
    assert HIDDEN in hidden
    assert hidden.startswith("before ")
    assert hidden.endswith(" after")
    assert not looks_like_token(hidden)
    assert not re.search(r"AbCd|pass|p%40ss|x{10}|a1a1|0123456789", hidden)


@pytest.mark.parametrize(
    "text",
    [
        "hf_style",
        "a photo of hf_cat",
        "C:\\pictures",
        "https://huggingface.co/a/b",
        "12:30",
        "me@host",
        "sk-short",
        "é" * 50,
        "a bearer photorealistically lit",
        "a torch bearer counterrevolutionary/propaganda-poster",
        "ring bearer 8k-ultra-detailed-photograph",
        "the standard bearer 1girl_standing_in_the_rain",
    ],
)
def test_ordinary_texts_are_none(text: str) -> None:
    assert not looks_like_token(text)
    assert redacted(text) == text


def test_this_machines_own_token_is_hidden_whatever_it_looks_like(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "correct horse battery")
    monkeypatch.setenv("HUGGING_FACE_HUB_TOKEN", "x")  # so short that hiding it would riddle every text
    assert redacted("it is correct horse battery, xyz") == f"it is {HIDDEN}, xyz"


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"name": TOKEN}, "name"),
        ({"trigger": TOKEN}, "trigger"),
        ({"model": {"source": f"https://me:{TOKEN}@huggingface.co/a/b"}}, "model.source"),
        ({"datasets": [{"folder": TOKEN}]}, "datasets[0].folder"),
        ({"datasets": [{"folder": "x", "control_folders": ["a", TOKEN]}]}, "datasets[0].control_folders"),
        ({"sample": {"prompts": ["a", f"{TOKEN} b"]}}, "sample.prompts"),
        ({"train": {"optimizer_options": {"a": TOKEN}}}, "train.optimizer_options"),
        ({"train": {"optimizer_options": {TOKEN: 1}}}, "train.optimizer_options"),
        ({"train": {"steps": TOKEN}}, "train.steps"),
        ({"adapter": {"warm_start": TOKEN}}, "adapter.warm_start"),
    ],
)
def test_a_token_in_any_field_is_refused_and_not_repeated(change: dict[str, Any], field: str) -> None:
    told = refusal(job(**change))
    assert told.startswith(f"{field}: looks like an access token")
    assert "AbCd" not in told


def test_a_token_as_the_name_of_a_setting_is_not_repeated() -> None:
    assert "AbCd" not in refusal(job(**{TOKEN: 1}))
    assert "AbCd" not in refusal(job(train={TOKEN: {}}))


def test_a_token_in_broken_yaml_is_not_repeated(tmp_path: Path) -> None:
    file = tmp_path / "job.yaml"
    for text in (f"token: '{TOKEN}", f"a: [{TOKEN}, }}", f"{TOKEN}: 1\n{TOKEN}: 2", f"a: &{TOKEN} 1", f"a: *{TOKEN}"):
        file.write_text(text, encoding="utf-8")
        with pytest.raises(ConfigError) as caught:
            load_job(file)
        assert "AbCdEfGh" not in str(caught.value)


@pytest.mark.parametrize("text", ["a\0b", "\ud800", "x\udfff"])
def test_characters_that_no_file_can_hold_are_refused(text: str) -> None:
    assert "no file can hold" in refusal(job(trigger=text))
    assert "no file can hold" in refusal(job(sample={"prompts": [text]}))


def test_a_huge_value_is_not_repeated_whole() -> None:
    assert len(refusal(job(train={"steps": "x" * 10**6, "y" * 10**6: 1}))) < 2000


def test_a_job_with_any_texts_is_written_and_read_back(tmp_path: Path) -> None:
    prompts = ["1e-4", "0123", "yes", "- x", "*a", "é\u2028", "# x", "{a: b}", "\x85", "\U0001f600"]
    one = validated(JobConfig, job(sample={"prompts": prompts}, trigger="1e5"))
    file = tmp_path / "job.yaml"
    file.write_text(dump_job(one), encoding="utf-8")
    assert load_job(file).sample.prompts == tuple(prompts)
    assert load_job(file).trigger == "1e5"


def test_a_token_that_a_message_holds_reaches_no_file_and_no_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = RunFolder.create(tmp_path, validated(JobConfig, job()))
    run.log(f"failed: 401 for https://me:{TOKEN}@huggingface.co\nheaders: Bearer {TOKEN}")
    run.write_status("failed", 0, 1, f"refused: {TOKEN}")
    for path in run.path.rglob("*"):
        assert path.is_dir() or TOKEN.encode() not in path.read_bytes()
    assert HIDDEN in (run.path / "log.txt").read_text(encoding="utf-8")
    assert main(["lint", str(tmp_path / f"{TOKEN}.yaml")]) == 1
    told = capsys.readouterr().err
    assert HIDDEN in told
    assert TOKEN not in told
