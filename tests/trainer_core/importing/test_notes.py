"""What is told of each foreign setting: nothing is left out in silence, and no more is promised than is kept."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

from trainer_core.api import Imported, import_config
from trainer_core.config import load_job
from trainer_core.config.yaml_text import read_yaml
from trainer_core.errors import ConfigError

from .configurations import FOLDER, MAIN

FLUX = """
job: extension
config:
  name: tiny
  process:
  - type: sd_trainer
    network: {type: lora, linear: 4}
    datasets:
    - folder_path: /data
      resolution: 512
    train: {lr: 1e-4, steps: 10, noise_scheduler: flowmatch%s}
    model: {name_or_path: black-forest-labs/FLUX.1-dev, arch: flux}
"""


def notes_of(text: str, name: str = "a.yaml", **others: str) -> dict[str, Any]:
    """Notes by key."""
    files = {name: text, **{f"{stem}.toml": other for stem, other in others.items()}}
    return {note.key: note for note in import_config(files).notes}


def leaves(value: Any, place: str) -> Iterator[str]:
    """Paths of all settings, as the notes write them; numbers and texts in lists belong to their list."""
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from leaves(item, f"{place}.{key}" if place else key)
    elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
        for number, item in enumerate(value):
            yield from leaves(item, f"{place}[{number}]")
    else:
        yield place


@pytest.mark.parametrize("path", MAIN, ids=[f"{path.parent.name}-{path.stem}" for path in MAIN])
def test_every_setting_has_a_note(path: Path) -> None:
    made = import_config(path)
    files = {name for name in (note.key.split(": ")[0] for note in made.notes) if (path.parent / name).is_file()}
    assert path.name in files
    told = {note.key for note in made.notes}
    for name in files:
        text = (path.parent / name).read_text(encoding="utf-8")
        for leaf in leaves(tomllib.loads(text) if name.endswith(".toml") else read_yaml(text), ""):
            parents = [f"{name}: {leaf[: cut.start()]}" for cut in re.finditer(r"[.\[]", leaf)]
            assert {f"{name}: {leaf}", *parents} & told, leaf


@pytest.mark.parametrize("path", MAIN, ids=[f"{path.parent.name}-{path.stem}" for path in MAIN])
def test_notes_are_sentences_that_name_settings_of_the_job(path: Path, tmp_path: Path) -> None:
    made = import_config(path)
    for note in made.notes:
        assert "\n" not in str(note)
        assert note.text or note.kind in ("taken", "unused")
        assert note.text or not note.lost
        for field in note.fields:
            assert value_at(made, field) is not None or note.kind != "taken"
    file = tmp_path / "job.yaml"
    file.write_text(made.text, encoding="utf-8")
    assert load_job(file).train == made.job.train


def value_at(made: Imported, path: str) -> Any:
    value: Any = made.job.model_dump()
    for name in re.findall(r"[^.\[\]]+", path):
        value = value[int(name)] if isinstance(value, list | tuple) else value[name]
    return value


def test_what_is_not_known_is_told() -> None:
    note = notes_of(FLUX % ", brand_new_trick: 3")["a.yaml: config.process[0].train.brand_new_trick"]
    assert note.kind == "unknown"
    assert note.lost


def test_what_is_known_and_has_no_counterpart_is_told_with_the_reason() -> None:
    key = "a.yaml: config.process[0].train.cache_text_embeddings"
    on, off = (notes_of(FLUX % f", cache_text_embeddings: {value}")[key] for value in ("true", "false"))
    assert (on.kind, on.text) == ("dropped", "encoded pictures and captions are always cached on disk")
    assert off.kind == "unused"


def test_what_the_tool_takes_where_nothing_is_said_is_told() -> None:
    note = notes_of(FLUX % "")["a.yaml: config.process[0].train.timestep_type"]
    assert note.kind == "assumed"
    assert note.fields == ("train.timestep_type",)


@pytest.mark.parametrize(
    ("more", "path", "value"),
    [
        ("lr_scheduler: linear", "train.lr_scheduler", "constant"),  # it rises there
        ("lr_scheduler: cosine", "train.lr_scheduler", "cosine"),
        ("lr_scheduler: constant_with_warmup, steps: 3000", "train.warmup_steps", 1000),
        ("optimizer: dadaptation", "train.optimizer", "prodigy"),
        ("optimizer: lion, optimizer_params: {weight_decay: 0.2}", "train.weight_decay", 0.2),
        ("timestep_type: lumina2_shift", "train.timestep_type", "shift"),
        ("timestep_type: two_step", "train.timestep_type", "auto"),
        ("content_or_style: style", "train.timestep_bias", "low_noise"),
        ("diff_output_preservation: true", "regularization.output_preservation", False),  # without a trigger
    ],
)
def test_settings_that_mean_something_else(more: str, path: str, value: Any) -> None:
    text = FLUX.replace("steps: 10, ", "" if "steps:" in more else "steps: 10, ") % f", {more}"
    assert value_at(import_config({"a.yaml": text}), path) == value


def test_a_key_with_a_dot_is_no_path() -> None:
    made = import_config({"a.yaml": FLUX % "" + '    "train.lr": 0.5\n'})
    assert made.job.train.learning_rate == 1e-4
    assert any(note.kind == "unknown" and '"train.lr"' in note.key for note in made.notes)


def test_a_second_training_of_one_file_is_told() -> None:
    again = FLUX.partition("  process:\n")[2] % ""
    notes = notes_of(FLUX % "" + again)
    assert "a file of its own" in notes["a.yaml: config.process[1]"].text


def test_secrets_are_neither_in_notes_nor_in_the_job() -> None:
    token = "hf_" + "Ab1" * 11
    made = import_config({"a.toml": f'network_module = "networks.lora"\nhuggingface_token = "{token}"\n{token} = 1\n'})
    assert token not in made.text
    assert not any(token in str(note) for note in made.notes)
    with pytest.raises(ConfigError) as caught:
        import_config({"a.toml": f'network_module = "networks.lora"\npretrained_model_name_or_path = "{token}"\n'})
    assert token not in str(caught.value)


def test_texts_read_no_files() -> None:
    """What a main file names is taken from what was handed in, by its name, and never from the disk."""
    main = (FOLDER / "diffusion_pipe" / "flux.toml").read_text(encoding="utf-8")
    data = (FOLDER / "diffusion_pipe" / "flux.data.toml").read_text(encoding="utf-8")
    there = main.replace("examples/flux.data.toml", str(FOLDER / "diffusion_pipe" / "flux.data.toml"))
    alone = import_config({"flux.toml": there})
    assert [one.folder for one in alone.job.datasets] == ["pictures"]
    assert any(note.kind == "missing" and note.key == "flux.toml: dataset" for note in alone.notes)
    assert any(note.kind != "missing" and note.key == "flux.toml: video_clip_mode" for note in alone.notes)
    both = import_config({"flux.toml": main, "other name.toml": data})
    assert both.job.datasets[0].weight == 5
    assert import_config({"flux.data.toml": data, "flux.toml": main}).job.datasets == both.job.datasets


def test_prompts_may_be_handed_in() -> None:
    main = 'network_module = "networks.lora"\nsample_prompts = "/x/p.txt"\n'
    made = import_config({"a.toml": main, "p.txt": "# no prompt\na hat --w 512 --h 640\n\na coat\n"})
    assert made.job.sample.prompts == ("a hat", "a coat")
    assert (made.job.sample.width, made.job.sample.height) == (512, 640)
    missing = notes_of(main, "a.toml")["a.toml: sample_prompts"]
    assert missing.kind == "missing"


def test_prompts_may_be_toml() -> None:
    main = 'network_module = "networks.lora"\nsample_prompts = "p.toml"\n'
    prompts = '[prompt]\nwidth = 512\n[[prompt.subset]]\nprompt = "a hat"\nsample_steps = 9\n'
    made = import_config({"a.toml": main, "p.toml": prompts})
    assert (made.job.sample.prompts, made.job.sample.width, made.job.sample.steps) == (("a hat",), 512, 9)


def test_batch_sizes_that_differ_are_told() -> None:
    text = "".join(f'[[datasets]]\nbatch_size = {n}\n[[datasets.subsets]]\nimage_dir = "/d{n}"\n' for n in (4, 2))
    made = import_config({"d.toml": text})
    assert made.job.train.batch_size == 4
    note = next(note for note in made.notes if note.key == "d.toml: datasets[1].batch_size")
    assert note.kind == "dropped"
    assert "4" in note.text


@pytest.mark.parametrize(
    ("line", "path", "value"),
    [
        ('lr_scheduler = "constant"\nlr_warmup_steps = 50', "train.warmup_steps", 0),
        ('lr_scheduler = "cosine"\nlr_warmup_steps = 50', "train.warmup_steps", 50),
        ('lr_scheduler = "cosine_with_min_lr"\nlr_scheduler_min_lr_ratio = 0.1', "train.lr_final_share", 0.1),
        ('loss_type = "huber"\nhuber_schedule = "snr"', "train.huber_delta", 0.1),
        ('timestep_sampling = "uniform"\nae = "/ae.safetensors"', "train.timestep_type", "linear"),
        ('timestep_sampling = "uniform"', "train.timestep_type", "auto"),
        ("network_train_unet_only = true", "adapter.text_encoders", False),
        ("cache_text_encoder_outputs = true", "adapter.text_encoders", False),
        ("text_encoder_lr = 0", "adapter.text_encoders", False),
        ("learning_rate = 3e-4", "train.text_encoder_lr", 3e-4),
        ("validation_split = 0.9", "validation.share", 0.5),
        ("resolution = 640", "datasets[0].resolutions", (640,)),
        ("use_8bit_adam = true", "train.optimizer", "adamw8bit"),
    ],
)
def test_arguments_that_mean_something_else(line: str, path: str, value: Any) -> None:
    made = import_config({"a.toml": f'network_module = "networks.lora"\n{line}\n'})
    assert value_at(made, path) == value
