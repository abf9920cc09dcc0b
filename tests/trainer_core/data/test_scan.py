"""Folder → items: order, hidden files, captions of all sorts, and messages that name files."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, features

from trainer_core.config import DatasetConfig
from trainer_core.data.images import load_image
from trainer_core.data.prepare import samples_of
from trainer_core.data.scan import Item, examine, scan
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
    assert [item.key for item in scan(dataset(tmp_path))] == ["UPPER.PNG", "a.png"]


def test_a_data_set_below_a_hidden_folder_is_found(tmp_path: Path) -> None:
    """Only what is hidden inside the data set counts: it may itself lie in ~/.cache."""
    put(tmp_path, ".cache/set/a.png")
    assert len(scan(dataset(tmp_path / ".cache" / "set"))) == 1


def captions_of(config: DatasetConfig) -> dict[str, tuple[str, ...]]:
    return {item.key: item.captions for item in scan(config)}


def test_captions(tmp_path: Path) -> None:
    put(tmp_path, "plain.png", "a cat\n")
    put(tmp_path, "bom.png", None)
    (tmp_path / "bom.txt").write_bytes("\ufeffein grüner Hund\r\n".encode())
    put(tmp_path, "lines.png", "one\ntwo")
    put(tmp_path, "odd.png", " a,  b ;1,000,c ")
    put(tmp_path, "dotted.v1.png", None)
    (tmp_path / "dotted.v1.txt").write_text("dotted")
    assert captions_of(dataset(tmp_path)) == {
        "plain.png": ("a cat",),
        "bom.png": ("ein grüner Hund",),
        "lines.png": ("one\ntwo",),
        "odd.png": ("a,  b ;1,000,c",),
        "dotted.v1.png": ("dotted",),
    }


def test_a_caption_a_line(tmp_path: Path) -> None:
    put(tmp_path, "a.png", None)
    (tmp_path / "a.txt").write_bytes(b" one\r\n\r\ntwo  lines \n\t\nthree")
    assert captions_of(dataset(tmp_path, caption_per_line=True)) == {"a.png": ("one", "two  lines", "three")}


@pytest.mark.parametrize("extension", ["caption", ".caption"])
def test_caption_extension_with_and_without_its_dot(extension: str, tmp_path: Path) -> None:
    put(tmp_path, "a.png", "another")
    (tmp_path / "a.caption").write_text("hello")
    assert captions_of(dataset(tmp_path, caption_extension=extension)) == {"a.png": ("hello",)}


@pytest.mark.parametrize("content", [None, "", " \n\t"])
def test_missing_and_empty_captions(content: str | None, tmp_path: Path) -> None:
    put(tmp_path, "a.png", content)
    message = refusal(dataset(tmp_path))
    assert "a.png" in message
    assert ".txt" in message
    assert "default_caption" in message
    assert captions_of(dataset(tmp_path, default_caption="a thing")) == {"a.png": ("a thing",)}


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


@pytest.mark.parametrize("name", ["nowhere", "a.png", "x" * 5000])
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


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow reads no AVIF")
def test_avif_counts_where_it_can_be_read(tmp_path: Path) -> None:
    put(tmp_path, "a.avif")
    assert [item.key for item in scan(dataset(tmp_path))] == ["a.avif"]


# --- kohya's folders -------------------------------------------------------------------------------------------------


def test_kohya_folders(tmp_path: Path) -> None:
    put(tmp_path, "10_ohwx man/own.png", "his own caption")
    put(tmp_path, "10_ohwx man/none.png", None)
    put(tmp_path, "10_ohwx man/deeper/5_x/a.png", None)
    put(tmp_path, "2_/unnamed.png", None)
    put(tmp_path, "plain/3_cat/a.png", None)
    put(tmp_path, "4_b.png", None)
    put(tmp_path, "0_unused/a.png", None)
    on = dataset(tmp_path, kohya_folders=True, default_caption="a thing")
    assert {item.key: (item.repeats, item.captions[0]) for item in scan(on)} == {
        "10_ohwx man/own.png": (10, "his own caption"),
        "10_ohwx man/none.png": (10, "ohwx man"),
        "10_ohwx man/deeper/5_x/a.png": (10, "ohwx man"),
        "2_/unnamed.png": (1, "a thing"),
        "plain/3_cat/a.png": (1, "a thing"),
        "4_b.png": (1, "a thing"),
    }
    off = scan(dataset(tmp_path, default_caption="a thing"))
    assert len(off) == 7
    assert {(item.repeats, item.captions[0]) for item in off} == {(1, "a thing"), (1, "his own caption")}


def test_a_kohya_folder_names_images_that_have_no_default(tmp_path: Path) -> None:
    put(tmp_path, "3_cat/a.png", None)
    assert captions_of(dataset(tmp_path, kohya_folders=True)) == {"3_cat/a.png": ("cat",)}
    assert "3_cat/a.png" in refusal(dataset(tmp_path))


# --- masks and control images ----------------------------------------------------------------------------------------


def test_masks_and_controls_go_by_the_name_without_suffix(tmp_path: Path) -> None:
    images, masks, poses, edges = (tmp_path / name for name in ("images", "masks", "poses", "edges"))
    for name in ("a.jpg", "sub/a.png", "b.v2.png"):
        put(images, name)
    mask_names = {put(masks, name, None) for name in ("a.png", "sub/a.PNG", "b.v2.webp", "spare.png")}
    for folder in (poses, edges):
        for name in ("a.png", "sub/a.jpg", "b.v2.png"):
            put(folder, name, None)
    config = dataset(images, mask_folder=str(masks), control_folders=(str(poses), str(edges)))
    items = {item.key: item for item in scan(config)}
    assert items["a.jpg"].mask == masks / "a.png"
    assert items["sub/a.png"].mask == masks / "sub" / "a.PNG"
    assert items["b.v2.png"].mask == masks / "b.v2.webp"
    assert {item.mask for item in items.values()} < mask_names
    assert items["sub/a.png"].controls == (poses / "sub" / "a.jpg", edges / "sub" / "a.jpg")


def test_mask_and_control_folders_inside_the_set_are_no_images(tmp_path: Path) -> None:
    put(tmp_path, "a.png")
    put(tmp_path, "masks/a.png", None)
    put(tmp_path, "edit/source/a.png", None)
    config = dataset(
        tmp_path, mask_folder=f"{tmp_path}/edit/../masks", control_folders=(str(tmp_path / "edit" / "source"),)
    )
    assert scan(config) == [
        Item(
            tmp_path / "a.png",
            "a.png",
            64,
            64,
            ("a picture",),
            1,
            tmp_path / "edit" / ".." / "masks" / "a.png",
            (tmp_path / "edit" / "source" / "a.png",),
        )
    ]


def test_a_mask_folder_inside_the_set_is_known_under_another_name(tmp_path: Path) -> None:
    """The set is named through a link, its masks are not."""
    put(tmp_path, "real/a.png")
    put(tmp_path, "real/masks/a.png", None)
    try:
        (tmp_path / "link").symlink_to(tmp_path / "real", target_is_directory=True)
    except (OSError, NotImplementedError):
        pytest.skip("links may not be made here")
    items = scan(dataset(tmp_path / "link", mask_folder=str(tmp_path / "real" / "masks")))
    assert [item.key for item in items] == ["a.png"]


def test_all_missing_masks_and_controls_are_told_at_once(tmp_path: Path) -> None:
    for name in ("a.png", "b.png", "sub/c.png"):
        put(tmp_path / "images", name)
    put(tmp_path / "masks", "b.png", None)
    put(tmp_path / "masks", "c.png", None)  # not where sub/c.png looks for it
    put(tmp_path / "poses", "a.png", None)
    config = dataset(
        tmp_path / "images", mask_folder=str(tmp_path / "masks"), control_folders=(str(tmp_path / "poses"),)
    )
    message = refusal(config)
    for key, folder in (("a.png", "masks"), ("b.png", "poses"), ("sub/c.png", "masks"), ("sub/c.png", "poses")):
        assert f"{key} in {tmp_path / folder}" in message
    assert f"a.png in {tmp_path / 'poses'}" not in message
    assert examine(config).items[0].mask is None


@pytest.mark.parametrize("setting", ["mask_folder", "control_folders"])
def test_a_missing_mask_or_control_folder_is_named(setting: str, tmp_path: Path) -> None:
    put(tmp_path, "a.png")
    nowhere = str(tmp_path / "nowhere")
    message = refusal(dataset(tmp_path, **{setting: nowhere if setting == "mask_folder" else (nowhere,)}))
    assert nowhere in message
    assert setting in message


def test_two_masks_for_one_image_are_refused(tmp_path: Path) -> None:
    put(tmp_path / "images", "a.png")
    put(tmp_path / "masks", "a.png", None)
    put(tmp_path / "masks", "a.jpg", None)
    message = refusal(dataset(tmp_path / "images", mask_folder=str(tmp_path / "masks")))
    assert "a.png" in message
    assert "a.jpg" in message


@pytest.mark.parametrize("setting", ["mask_folder", "control_folders"])
def test_the_set_s_own_folder_cannot_hold_its_masks(setting: str, tmp_path: Path) -> None:
    put(tmp_path, "a.png")
    same = f"{tmp_path}/../{tmp_path.name}"
    message = refusal(dataset(tmp_path, **{setting: same if setting == "mask_folder" else (same,)}))
    assert setting in message
    assert "own folder" in message


@pytest.mark.parametrize("name", ["x" * 5000, "~nosuchuser/x"])
def test_impossible_mask_folders_are_refused_in_plain_words(name: str, tmp_path: Path) -> None:
    put(tmp_path, "a.png")
    assert name[:12] in refusal(dataset(tmp_path, mask_folder=name))


@pytest.mark.skipif(os.name != "posix", reason="names are text here")
def test_a_name_that_is_no_text_is_refused(tmp_path: Path) -> None:
    """Such a key could be neither hashed nor printed."""
    put(tmp_path, "a.png")
    try:
        (tmp_path / os.fsdecode(b"gr\xfcn.png")).write_bytes(b"x")
    except OSError:
        pytest.skip("this file system takes no such name")
    assert "gr\\udcfcn.png" in refusal(dataset(tmp_path))


# --- what is wrong with single images, without raising ---------------------------------------------------------------


def test_examine_tells_everything(tmp_path: Path) -> None:
    put(tmp_path, "good.png")
    put(tmp_path, "silent.png", None)
    Image.new("RGBA", (20, 30)).save(tmp_path / "clear.png")
    (tmp_path / "bad.png").write_bytes(b"no image")
    found = examine(dataset(tmp_path))
    assert [item.key for item in found.items] == ["clear.png", "good.png", "silent.png"]
    assert [line.split()[0] for line in found.broken] == ["bad.png"]
    assert found.silent == found.wordless == ["clear.png", "silent.png"]
    assert found.transparent == 1
    assert examine(dataset(tmp_path, default_caption="x")).wordless == []
