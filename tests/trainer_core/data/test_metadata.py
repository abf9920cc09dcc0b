"""Captions out of metadata.jsonl and metadata.csv, as Hugging Face's imagefolder has them."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from trainer_core.config import DatasetConfig
from trainer_core.data.index import index
from trainer_core.data.metadata import read_metadata
from trainer_core.data.scan import scan
from trainer_core.errors import DatasetError


def put(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (32, 32)).save(folder / name)
    return folder


def lines(path: Path, *rows: dict[str, Any]) -> None:
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")


def captions(folder: Path, **settings: Any) -> dict[str, tuple[str, ...]]:
    return {item.key: item.captions for item in scan(DatasetConfig(folder=str(folder), **settings))}


def refusal(folder: Path, **settings: Any) -> str:
    with pytest.raises(DatasetError) as caught:
        captions(folder, **settings)
    return str(caught.value)


# --- what is read ----------------------------------------------------------------------------------------------------


def test_json_lines(tmp_path: Path) -> None:
    put(tmp_path, "a.png", "b.png", "sub/c.png", "d.png", "e.png")
    lines(
        tmp_path / "metadata.jsonl",
        {"file_name": "a.png", "text": " a cat\u2028sits ", "label": 3},
        {"file_name": "./b.png", "text": ["one", " two ", "", None]},
        {"file_name": "sub\\c.png", "text": "in a folder"},
        {"file_name": "d.png", "text": "first"},
        {"file_name": "d.png", "text": "second"},
        {"file_name": "e.png", "text": None},
    )
    assert captions(tmp_path, default_caption="none") == {
        "a.png": ("a cat\u2028sits",),
        "b.png": ("one", "two"),
        "sub/c.png": ("in a folder",),
        "d.png": ("first", "second"),
        "e.png": ("none",),
    }


def test_csv(tmp_path: Path) -> None:
    put(tmp_path, "a.png", "b.png", "c.png")
    text = '\ufefffile_name,label,text\r\na.png,1,"a cat, ""sitting""\r\non a mat"\r\nb.png,2,größe\r\nc.png,3,\r\n'
    (tmp_path / "metadata.csv").write_bytes(text.encode())
    assert captions(tmp_path, default_caption="none") == {
        "a.png": ('a cat, "sitting"\r\non a mat',),
        "b.png": ("größe",),
        "c.png": ("none",),
    }


def test_csv_with_a_space_after_its_commas(tmp_path: Path) -> None:
    put(tmp_path, "a.png")
    (tmp_path / "metadata.csv").write_text('file_name, text\na.png, "a cat, sitting"\n')
    assert captions(tmp_path) == {"a.png": ("a cat, sitting",)}


def test_the_caption_column_is_a_setting(tmp_path: Path) -> None:
    put(tmp_path, "a.png")
    lines(tmp_path / "metadata.jsonl", {"file_name": "a.png", "text": "short", "long": "at length"})
    assert captions(tmp_path, caption_column="long") == {"a.png": ("at length",)}


def test_precedence(tmp_path: Path) -> None:
    """Caption file, metadata.jsonl, metadata.csv, kohya folder, default caption."""
    names = [f"2_kohya/{name}.png" for name in "abcd"]
    put(tmp_path, *names, "e.png")
    (tmp_path / "2_kohya" / "a.txt").write_text("file")
    lines(tmp_path / "metadata.jsonl", *({"file_name": name, "text": "jsonl"} for name in names[:2]))
    rows = "".join(f"{name},csv\n" for name in names[:3])
    (tmp_path / "metadata.csv").write_text(f"file_name,text\n{rows}")
    assert [one[0] for one in captions(tmp_path, kohya_folders=True, default_caption="default").values()] == [
        "file",
        "jsonl",
        "csv",
        "kohya",
        "default",
    ]


def test_a_file_nearer_to_the_image_wins(tmp_path: Path) -> None:
    put(tmp_path, "a.png", "x/a.png", "x/y/a.png", "x/y/b.png")
    lines(tmp_path / "metadata.jsonl", *({"file_name": f"{d}a.png", "text": "top"} for d in ("", "x/", "x/y/")))
    lines(tmp_path / "x" / "metadata.jsonl", {"file_name": "a.png", "text": "x"}, {"file_name": "y/b.png", "text": "x"})
    (tmp_path / "x" / "y" / "metadata.csv").write_text("file_name,text\na.png,y\n../a.png,y\n../../a.png,y\n")
    assert captions(tmp_path) == {"a.png": ("y",), "x/a.png": ("y",), "x/y/a.png": ("y",), "x/y/b.png": ("x",)}


def test_metadata_in_mask_folders_and_hidden_ones_are_passed_over(tmp_path: Path) -> None:
    put(tmp_path, "a.png", "masks/a.png", ".old/a.png")
    (tmp_path / "masks" / "metadata.jsonl").write_text("broken")
    (tmp_path / ".old" / "metadata.csv").write_text("broken")
    assert captions(tmp_path, default_caption="x", mask_folder=str(tmp_path / "masks")) == {"a.png": ("x",)}


def test_images_that_are_not_there_are_told_of(tmp_path: Path) -> None:
    put(tmp_path, "a.png")
    (tmp_path / "film.mp4").write_bytes(b"x")
    names = ("a.png", "gone.png", "film.mp4", "x" * 300 + ".png")
    lines(tmp_path / "metadata.jsonl", *({"file_name": name, "text": "x"} for name in names))
    folder = index(DatasetConfig(folder=str(tmp_path)))
    assert folder.absent() == ["gone.png", "x" * 300 + ".png"]


texts = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20)  # zero bytes are refused
CHARACTERS = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)


@given(st.lists(texts, min_size=1, max_size=5))
@CHARACTERS
def test_any_caption_survives_json(tmp_path: Path, values: list[str]) -> None:
    path = tmp_path / "metadata.jsonl"
    rows = (json.dumps({"file_name": f"{k}.png", "text": text}, ensure_ascii=False) for k, text in enumerate(values))
    path.write_bytes("\r\n".join(rows).encode())
    expected = {f"{k}.png": (text.strip(),) for k, text in enumerate(values) if text.strip()}
    assert read_metadata(tmp_path, [path], "text").captions == expected


@given(st.lists(texts, min_size=1, max_size=5))
@CHARACTERS
def test_any_caption_survives_csv(tmp_path: Path, values: list[str]) -> None:
    path = tmp_path / "metadata.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("file_name", "text"), *((f"{k}.png", text) for k, text in enumerate(values))])
    expected = {f"{k}.png": (text.strip(),) for k, text in enumerate(values) if text.strip()}
    assert read_metadata(tmp_path, [path], "text").captions == expected


# --- what is refused -------------------------------------------------------------------------------------------------

GOOD = '{"file_name": "a.png", "text": "x"}'


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (f"{GOOD}\n\n{{broken", 3),
        (f"{GOOD}\n[1]", 2),
        ("null", 1),
        (f'{GOOD}\n{{"text": "x"}}', 2),
        (f'{GOOD}\n{{"file_name": 7, "text": "x"}}', 2),
        (f'{GOOD}\n{{"file_name": " ", "text": "x"}}', 2),
        (f'{GOOD}\n{{"file_name": "a.png", "text": 7}}', 2),
        (f'{GOOD}\n{{"file_name": "a.png", "text": ["x", 7]}}', 2),
        (f'{GOOD}\n{{"file_name": "a.png", "text": {{"x": 7}}}}', 2),
        ("[" * 100_000, 1),
        ('{"file_name": "a.png", "text": "x"} {}', 1),
    ],
)
def test_bad_json_lines_are_refused_with_their_line(content: str, line: int, tmp_path: Path) -> None:
    put(tmp_path, "a.png")
    (tmp_path / "metadata.jsonl").write_text(content)
    assert f"{tmp_path / 'metadata.jsonl'}, line {line}: " in refusal(tmp_path)


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ("", 1),
        ("name,text\na.png,x\n", 1),
        ("file_name;text\na.png;x\n", 1),
        ("file_name,text\na.png,a cat, sitting\n", 2),  # a comma that wants quotation marks
        ('file_name,text\na.png,"two\nlines"\n,x\n', 4),
        ('file_name,text\na.png,"never closed\n', 2),
        (f"file_name,text\na.png,{'x' * 200_000}\n", 2),
    ],
)
def test_bad_csv_is_refused_with_its_line(content: str, line: int, tmp_path: Path) -> None:
    put(tmp_path, "a.png")
    (tmp_path / "metadata.csv").write_text(content)
    assert f"{tmp_path / 'metadata.csv'}, line {line}: " in refusal(tmp_path)


@pytest.mark.parametrize("name", ["metadata.jsonl", "metadata.csv"])
def test_other_encodings_are_refused_with_their_line(name: str, tmp_path: Path) -> None:
    put(tmp_path, "a.png")
    (tmp_path / name).write_bytes(b"x\ny\ngr\xf6\xdfe\n")
    message = refusal(tmp_path)
    assert f"{name}, line 3" in message
    assert "UTF-8" in message


def test_a_wrong_caption_column_is_told_with_those_there_are(tmp_path: Path) -> None:
    put(tmp_path, "a.png")
    lines(tmp_path / "metadata.jsonl", {"file_name": "a.png", "caption": "a cat"})
    message = refusal(tmp_path)
    assert "`text`" in message
    assert "caption, file_name" in message
