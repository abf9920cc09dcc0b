"""Folder → items: order, hidden files, captions of all sorts, and messages that name files."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from trainer_core.config import DatasetConfig
from trainer_core.data.images import load_image
from trainer_core.data.prepare import samples_of
from trainer_core.data.scan import image_files, read_caption, scan
from trainer_core.errors import DatasetError


def put(folder: Path, name: str, caption: str | None = "a picture", size: tuple[int, int] = (64, 64)) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size).save(path)
    if caption is not None:
        path.with_suffix(".txt").write_text(caption, encoding="utf-8")
    return path


def dataset(folder: Path | str, **settings: Any) -> DatasetConfig:
    return DatasetConfig(folder=str(folder), **settings)


def refusal(config: DatasetConfig) -> str:
    with pytest.raises(DatasetError) as caught:
        scan(config)
    return str(caught.value)


def test_order_is_that_of_the_names_whenever_they_were_written(tmp_path: Path) -> None:
    names = ["b.png", "a/z.png", "a/b.jpg", "A.png", "a.png", "10.webp", "9.bmp"]
    for name in names:
        put(tmp_path / "one", name)
    for name in reversed(names):
        put(tmp_path / "other", name)
    keys = [item.key for item in scan(dataset(tmp_path / "one"))]
    assert keys == sorted(names)
    assert keys == [item.key for item in scan(dataset(tmp_path / "other"))]


def test_hidden_files_and_other_kinds_are_passed_over(tmp_path: Path) -> None:
    put(tmp_path, "a.png")
    put(tmp_path, "UPPER.PNG")
    for hidden in ("._a.png", ".hidden/b.png", ".ipynb_checkpoints/a.png", "sub/.c.png"):
        put(tmp_path, hidden, caption=None)
    (tmp_path / "notes.md").write_text("x")
    (tmp_path / "folder.png").mkdir()
    assert [path.name for path in image_files(tmp_path)] == ["UPPER.PNG", "a.png"]


def test_a_data_set_below_a_hidden_folder_is_found(tmp_path: Path) -> None:
    """Only what is hidden inside the data set counts: it may itself lie in ~/.cache."""
    put(tmp_path, ".cache/set/a.png")
    assert len(scan(dataset(tmp_path / ".cache" / "set"))) == 1


def test_captions(tmp_path: Path) -> None:
    put(tmp_path, "plain.png", "a cat\n")
    put(tmp_path, "bom.png", None)
    (tmp_path / "bom.txt").write_bytes("\ufeffein grüner Hund\r\n".encode())
    put(tmp_path, "lines.png", "one\ntwo")
    put(tmp_path, "dotted.v1.png", None)
    (tmp_path / "dotted.v1.txt").write_text("dotted")
    assert {item.key: item.caption for item in scan(dataset(tmp_path))} == {
        "plain.png": "a cat",
        "bom.png": "ein grüner Hund",
        "lines.png": "one\ntwo",
        "dotted.v1.png": "dotted",
    }


@pytest.mark.parametrize("extension", ["caption", ".caption"])
def test_caption_extension_with_and_without_its_dot(extension: str, tmp_path: Path) -> None:
    path = put(tmp_path, "a.png", None)
    (tmp_path / "a.caption").write_text("hello")
    assert read_caption(path, extension) == "hello"
    assert read_caption(path, "txt") is None


@pytest.mark.parametrize("content", [None, "", " \n\t"])
def test_missing_and_empty_captions(content: str | None, tmp_path: Path) -> None:
    put(tmp_path, "a.png", content)
    message = refusal(dataset(tmp_path))
    assert "a.png" in message
    assert ".txt" in message
    assert "default_caption" in message
    assert scan(dataset(tmp_path, default_caption="a thing"))[0].caption == "a thing"


def test_all_silent_images_are_told_at_once_and_a_crowd_is_counted(tmp_path: Path) -> None:
    for k in range(8):
        put(tmp_path, f"{k}.png", None)
    message = refusal(dataset(tmp_path))
    assert "0.png" in message
    assert "4.png" in message
    assert "and 3 more" in message


@pytest.mark.parametrize("content", ["größe".encode("utf-16"), b"\xff\xfe\xfd"])
def test_captions_in_another_encoding_are_named(content: bytes, tmp_path: Path) -> None:
    put(tmp_path, "a.png", None)
    (tmp_path / "a.txt").write_bytes(content)
    message = refusal(dataset(tmp_path))
    assert "a.txt" in message
    assert "UTF-8" in message


def test_a_caption_that_is_a_folder_is_named(tmp_path: Path) -> None:
    put(tmp_path, "a.png", None)
    (tmp_path / "a.txt").mkdir()
    assert "a.txt" in refusal(dataset(tmp_path))


@pytest.mark.parametrize("name", ["nowhere", "a.png"])
def test_no_folder(name: str, tmp_path: Path) -> None:
    put(tmp_path, "a.png")
    message = refusal(dataset(tmp_path / name))
    assert name in message
    assert "folder" in message


def test_home_of_a_user_who_does_not_exist() -> None:
    assert "~nosuchuser" in refusal(dataset("~nosuchuser/pictures"))


def test_an_empty_folder_names_the_formats(tmp_path: Path) -> None:
    (tmp_path / "a.tiff").write_bytes(b"x")
    message = refusal(dataset(tmp_path))
    assert str(tmp_path) in message
    assert ".png" in message


def test_all_corrupt_images_are_told_at_once(tmp_path: Path) -> None:
    put(tmp_path, "good.png")
    for name in ("bad.png", "worse.jpg"):
        (tmp_path / name).write_bytes(b"no image")
    message = refusal(dataset(tmp_path, default_caption="x"))
    assert "bad.png" in message
    assert "worse.jpg" in message
    assert "good.png" not in message


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_absurd_sizes_are_told(tmp_path: Path) -> None:
    # a BMP's header alone: 20,000 x 20,000 pixels
    header = b"BM" + bytes(12) + (40).to_bytes(4, "little") + (20_000).to_bytes(4, "little") * 2
    (tmp_path / "huge.bmp").write_bytes(header + b"\x01\x00\x18\x00" + bytes(24))
    assert "huge.bmp" in refusal(dataset(tmp_path, default_caption="x"))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_sizes_are_those_that_are_seen(orientation: int, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.zeros((30, 50, 3), np.uint8)).save(tmp_path / "a.jpg", exif=exif)
    item = scan(dataset(tmp_path, default_caption="x"))[0]
    assert (item.width, item.height) == load_image(item.path).size


def test_samples_name_an_image_that_is_too_small(tmp_path: Path) -> None:
    put(tmp_path, "tiny.png", size=(200, 12))
    with pytest.raises(DatasetError, match=r"tiny\.png.*200x12"):
        samples_of(dataset(tmp_path), 16)


def test_samples_come_at_each_of_their_sizes(tmp_path: Path) -> None:
    put(tmp_path, "large.png", size=(128, 128))
    put(tmp_path, "small.png", size=(64, 48))
    samples = samples_of(dataset(tmp_path, resolutions=(64, 128)), 16, index=3)
    assert [(s.key, s.size) for s in samples] == [
        ("3/large.png@64x64", (64, 64)),
        ("3/large.png@128x128", (128, 128)),
        ("3/small.png@64x48", (64, 48)),
    ]


@pytest.mark.skipif(not hasattr(os, "symlink"), reason="no symbolic links here")
def test_linked_images_count_and_dangling_links_do_not(tmp_path: Path) -> None:
    target = put(tmp_path / "elsewhere", "real.png")
    folder = tmp_path / "set"
    folder.mkdir()
    try:
        (folder / "link.png").symlink_to(target)
    except OSError:
        pytest.skip("links may not be made here")
    (folder / "dangling.png").symlink_to(tmp_path / "nowhere.png")
    assert [item.key for item in scan(dataset(folder, default_caption="x"))] == ["link.png"]
