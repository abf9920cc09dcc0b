"""Captions that other tools keep in one file: as a `metadata.jsonl` our data sets read the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from trainer_core.api import Imported, import_config
from trainer_core.cli import main
from trainer_core.config import DatasetConfig
from trainer_core.data.index import index
from trainer_core.errors import ConfigError

SD = '[[datasets]]\n[[datasets.subsets]]\nimage_dir = "pictures"\nmetadata_file = "/x/meta.json"\n'
ARGUMENTS = 'output_name = "x"\nin_json = "meta.json"\ntrain_data_dir = "pictures"\ndataset_repeats = 3\n'
MUSUBI = '[[datasets]]\nimage_jsonl_file = "list.jsonl"\ncache_directory = "/c"\n'
TOOLKIT = (
    "config:\n  process:\n  - type: sd_trainer\n    model: {name_or_path: a/b}\n"
    "    datasets: [{dataset_path: /x/captions.json}]\n"
)


def rows(made: Imported) -> dict[str, str]:
    (captions,) = made.captions
    lines = [json.loads(line) for line in captions.text.splitlines()]
    return {line["file_name"]: line["text"] for line in lines}


@pytest.mark.parametrize(
    ("name", "config", "other", "content", "folder", "read"),
    [
        # train_util.py: captions, then tags, with a comma between
        (
            "d.toml",
            SD,
            "meta.json",
            {"a.png": {"caption": "a hat", "tags": "red, old", "train_resolution": [64, 64]}, "b/c.png": {"tags": "x"}},
            "pictures",
            {"a.png": "a hat, red, old", "b/c.png": "x"},
        ),
        (
            "a.toml",
            ARGUMENTS,
            "meta.json",
            {"pictures/a.png": {"caption": "a hat"}, "/else/b.png": {"caption": "b"}, "c": {"caption": "c"}},
            "pictures",
            {"a.png": "a hat"},
        ),
        (
            "a.yaml",
            TOOLKIT,
            "captions.json",
            {"C:\\d\\a.png": {"caption": "a hat", "caption_short": "hat"}, "C:\\d\\e\\b.png": {"caption": ""}},
            "C:/d",
            {"a.png": "a hat"},
        ),
        (
            "d.toml",
            MUSUBI,
            "list.jsonl",
            [{"image_path": "/d/x/a.png", "caption": "a hat"}, {"image_path": "/d/y/b.png", "caption": "zwei Hüte"}],
            "/d",
            {"x/a.png": "a hat", "y/b.png": "zwei Hüte"},
        ),
    ],
    ids=["sd-scripts", "in_json", "AI Toolkit", "musubi-tuner"],
)
def test_each_is_read(name: str, config: str, other: str, content: Any, folder: str, read: dict[str, str]) -> None:
    text = json.dumps(content) if isinstance(content, dict) else "\n".join(json.dumps(row) for row in content)
    made = import_config({name: config, other: text})
    assert rows(made) == read
    assert (made.captions[0].folder, made.job.datasets[0].folder) == (folder, folder)
    if len(read) < len(content) and "else" in text:
        assert "2 of pictures outside" in next(str(note) for note in made.lost if note.key.endswith("in_json"))


def test_in_json_has_no_folders_that_say_how_often() -> None:
    made = import_config({"a.toml": ARGUMENTS, "meta.json": '{"a.png": {"caption": "a"}}'})
    assert (made.job.datasets[0].kohya_folders, made.job.datasets[0].weight) == (False, 3)


def test_names_without_ending_are_found_beside_the_pictures(tmp_path: Path) -> None:
    """As merge_captions_to_metadata.py writes them."""
    (tmp_path / "pictures").mkdir()
    Image.new("RGB", (64, 64)).save(tmp_path / "pictures" / "a.webp")
    (tmp_path / "meta.json").write_text('{"a": {"caption": "a hat"}}', encoding="utf-8")
    (tmp_path / "d.toml").write_text(SD, encoding="utf-8")
    made = import_config(tmp_path / "d.toml")
    assert rows(made) == {"a.webp": "a hat"}
    (tmp_path / "pictures" / "metadata.jsonl").write_text(made.captions[0].text, encoding="utf-8")
    found = index(DatasetConfig(folder=str(tmp_path / "pictures")))
    assert [found.captions(key) for key in found.images] == [(("a hat",), True)]


def test_one_that_is_not_at_hand_is_told() -> None:
    made = import_config({"d.toml": SD})
    assert not made.captions
    assert next(note.kind for note in made.notes if note.key.endswith("metadata_file")) == "missing"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{", "meta.json: "),
        ("[]", "meta.json: holds no settings"),
        ('{"a.png": 3}', "meta.json: a.png: must be a section"),
        ('{"a.png": {"caption": ["x"]}}', "meta.json: a.png: must be a text"),
    ],
)
def test_what_is_none(text: str, told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        import_config({"d.toml": SD, "meta.json": text})
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


def test_lines_are_told_with_their_number() -> None:
    lines = '{"image_path": "/a.png", "caption": "a"}\n{"caption": "b"}\n'
    with pytest.raises(ConfigError, match=r"list\.jsonl: line 2: must be a text"):
        import_config({"d.toml": MUSUBI, "list.jsonl": lines})


def test_the_command_writes_them_beside_the_job(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "d.toml").write_text(SD, encoding="utf-8")
    (tmp_path / "meta.json").write_text('{"a.png": {"caption": "a hat"}}', encoding="utf-8")
    assert main(["import", str(tmp_path / "d.toml"), "--out", str(tmp_path / "job.yaml")]) == 0
    assert "Put it into pictures as metadata.jsonl" in capsys.readouterr().out
    written = (tmp_path / "job.captions.jsonl").read_text(encoding="utf-8")
    assert json.loads(written) == {"file_name": "a.png", "text": "a hat"}
