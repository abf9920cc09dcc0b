"""What a data set looks like, and the digest that tells ComfyUI whether it changed."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from trainer_core.config import DatasetConfig
from trainer_core.data.summary import digest, summarize
from trainer_core.errors import DatasetError


def dataset(folder: Path | str, **settings: Any) -> DatasetConfig:
    return DatasetConfig(folder=str(folder), **settings)


def test_summary_by_hand(tmp_path: Path) -> None:
    for k in range(10):
        Image.new("RGB", (64, 64)).save(tmp_path / f"{k}.png")
    Image.new("RGB", (128, 64)).save(tmp_path / "wide.png")
    (tmp_path / "0.txt").write_text("a red [trigger]")
    (tmp_path / "1.txt").write_text("a cat")
    summary = summarize(dataset(tmp_path, resolutions=(64,), trigger="zorble", default_caption="a thing"))
    assert summary.count == 11
    # 128 x 64 at an area of 64²: the ideal is 90.5 x 45.3; near are 80 x 48 (1.67), 80 x 32 (2.5), 96 x 32 (3)
    assert summary.buckets == {"64x64": 10, "80x48": 1}
    assert dict(summary.captions)["0.png"] == "a red zorble"
    assert dict(summary.captions)["1.png"] == "zorble a cat"
    assert dict(summary.captions)["wide.png"] == "zorble a thing"
    assert summary.missing_captions == [*(f"{k}.png" for k in range(2, 10)), "wide.png"]
    assert [path.name for path in summary.thumbnails] == [f"{k}.png" for k in range(8)]
    assert any("9" in warning for warning in summary.warnings)
    assert (summary.masks, summary.controls, summary.repeats) == (0, 0, {})


def test_no_warning_where_nothing_is_odd(make_dataset: Callable[..., Path]) -> None:
    assert summarize(dataset(make_dataset())).warnings == []


def picture_in(folder: Path, name: str, caption: str | None = "a picture", mode: str = "RGB") -> None:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, (64, 64)).save(path)
    if caption is not None:
        path.with_suffix(".txt").write_text(caption)


def test_every_caption_of_an_image_is_shown(tmp_path: Path) -> None:
    picture_in(tmp_path, "a.png", "one\ntwo [trigger]")
    picture_in(tmp_path, "b.png", "three")
    summary = summarize(dataset(tmp_path, caption_per_line=True, trigger="zorble"))
    assert summary.count == 2
    assert summary.captions == [("a.png", "zorble one"), ("a.png", "two zorble"), ("b.png", "zorble three")]


def test_metadata_captions_are_captions_of_the_image_s_own(tmp_path: Path) -> None:
    picture_in(tmp_path, "a.png", None)
    (tmp_path / "metadata.csv").write_text("file_name,text\na.png,a cat\ngone.png,a dog\n")
    summary = summarize(dataset(tmp_path))
    assert summary.captions == [("a.png", "a cat")]
    assert summary.missing_captions == []
    assert len(summary.warnings) == 1
    assert "gone.png" in summary.warnings[0]


def test_a_regularization_set_is_shown_without_a_trigger(tmp_path: Path) -> None:
    picture_in(tmp_path, "a.png", "a [trigger] shape")
    assert summarize(dataset(tmp_path, role="regularization")).captions == [("a.png", "a shape")]


def test_masks_and_controls_are_counted(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        picture_in(tmp_path, name)
        for folder in ("masks", "poses", "edges"):
            picture_in(tmp_path / folder, name, None)
    summary = summarize(
        dataset(
            tmp_path,
            mask_folder=str(tmp_path / "masks"),
            control_folders=(str(tmp_path / "poses"), str(tmp_path / "edges")),
        )
    )
    assert (summary.count, summary.masks, summary.controls) == (2, 2, 2)
    assert summary.warnings == []


def test_images_without_transparency_are_told_where_it_is_the_mask(tmp_path: Path) -> None:
    picture_in(tmp_path, "a.png", mode="RGBA")
    picture_in(tmp_path, "b.png")
    picture_in(tmp_path, "c.png")
    summary = summarize(dataset(tmp_path, alpha_mask=True))
    assert summary.masks == 1
    assert any("2 images" in warning for warning in summary.warnings)


def test_kohya_folders_are_shown(tmp_path: Path) -> None:
    picture_in(tmp_path, "10_ohwx man/a.png", None)
    picture_in(tmp_path, "2_dog/a.png")
    picture_in(tmp_path, "plain/a.png")
    summary = summarize(dataset(tmp_path, kohya_folders=True, default_caption="x"))
    assert summary.repeats == {"10_ohwx man": 10, "2_dog": 2}
    assert summary.missing_captions == ["10_ohwx man/a.png"]


def test_kohya_folders_that_are_not_heeded_are_warned_of(tmp_path: Path) -> None:
    picture_in(tmp_path, "10_ohwx man/a.png")
    picture_in(tmp_path, "1_dog/a.png")
    warnings = summarize(dataset(tmp_path)).warnings
    assert len(warnings) == 1
    assert "kohya_folders" in warnings[0]
    assert summarize(dataset(tmp_path, kohya_folders=True)).warnings == []
    picture_in(tmp_path, "other.png")
    assert summarize(dataset(tmp_path)).warnings == []


def test_kohya_folders_without_any_are_warned_of(tmp_path: Path) -> None:
    picture_in(tmp_path, "a.png")
    assert any("kohya_folders" in warning for warning in summarize(dataset(tmp_path, kohya_folders=True)).warnings)


@pytest.mark.parametrize("content", [None, "nothing here"])
def test_what_cannot_be_trained_on_is_refused(content: str | None, tmp_path: Path) -> None:
    if content:
        (tmp_path / "bad.png").write_text(content)
    with pytest.raises(DatasetError, match=r"bad\.png" if content else "no images"):
        summarize(dataset(tmp_path, default_caption="x"))


# --- digest ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def pictures(make_dataset: Callable[..., Path]) -> Path:
    return make_dataset()


def picture(folder: Path) -> Path:
    return sorted(folder.glob("*.png"))[0]


def touch(folder: Path) -> None:
    status = picture(folder).stat()
    os.utime(picture(folder), ns=(status.st_atime_ns, status.st_mtime_ns + 1_000_000_000))


CHANGES: dict[str, Callable[[Path], object]] = {
    "an image is written again": touch,
    "a caption grows": lambda folder: picture(folder).with_suffix(".txt").write_text("something else entirely"),
    "a caption goes": lambda folder: picture(folder).with_suffix(".txt").unlink(),
    "an image goes": lambda folder: picture(folder).unlink(),
    "an image comes": lambda folder: Image.new("RGB", (64, 64)).save(folder / "new.png"),
    "metadata come": lambda folder: (folder / "metadata.jsonl").write_text(""),
    "a mask is written again": lambda folder: touch(folder / "masks"),
    "a mask goes": lambda folder: picture(folder / "masks").unlink(),
    "a control image comes": lambda folder: Image.new("RGB", (64, 64)).save(folder / "poses" / "new.png"),
    "an image is renamed": lambda folder: picture(folder).rename(folder / "other.png"),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=list(CHANGES))
def test_digest_changes_with_the_files(change: Callable[[Path], object], pictures: Path) -> None:
    for folder in ("masks", "poses"):
        picture_in(pictures / folder, "0_red.png", None)
    config = dataset(pictures, mask_folder=str(pictures / "masks"), control_folders=(str(pictures / "poses"),))
    before = digest(config)
    assert digest(config) == before
    change(pictures)
    assert digest(config) != before


def test_digest_changes_with_the_settings_and_not_with_other_files(pictures: Path) -> None:
    before = digest(dataset(pictures))
    (pictures / "notes.md").write_text("x")
    assert digest(dataset(pictures)) == before
    assert digest(dataset(pictures, trigger="zorble")) != before
    assert digest(dataset(pictures, flip_x=True)) != before


def test_digest_of_a_missing_folder_is_one_of_its_own(tmp_path: Path) -> None:
    one, other = digest(dataset(tmp_path / "one")), digest(dataset(tmp_path / "other"))
    assert one != other
    (tmp_path / "one").mkdir()
    assert digest(dataset(tmp_path / "one")) != one


@pytest.mark.parametrize("folder", ["~nosuchuser/x", "x" * 5000])
def test_digest_never_raises(folder: str) -> None:
    assert digest(dataset(folder))


@pytest.mark.parametrize("extension", ["", ".", "a/b", " "])
def test_digest_bears_odd_caption_extensions(extension: str, pictures: Path) -> None:
    """If such an extension is refused at all, it is when the settings are read."""
    try:
        config = dataset(pictures, caption_extension=extension)
    except ValueError:
        return
    assert digest(config)
