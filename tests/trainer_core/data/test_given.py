"""Images, captions and masks that a host hands over, kept as a folder that the core reads like any other."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from trainer_core.data.given import keep_images
from trainer_core.errors import DatasetError

RED, BLUE = Image.new("RGB", (8, 6), "red"), Image.new("RGB", (8, 6), "blue")
LEFT = Image.new("L", (8, 6), 0)
LEFT.paste(255, (0, 0, 4, 6))


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*.*")}


def test_each_image_gets_its_caption_and_mask(tmp_path: Path) -> None:
    folder, masks = keep_images(tmp_path, [RED, BLUE], ["a", "b"], [LEFT, LEFT.rotate(180)])
    assert masks == folder / "masks"
    assert sorted(files(folder)) == ["0.png", "0.txt", "1.png", "1.txt", "masks/0.png", "masks/1.png"]
    assert [(folder / f"{k}.txt").read_text() for k in range(2)] == ["a", "b"]
    for k, (image, mask) in enumerate(((RED, LEFT), (BLUE, LEFT.rotate(180)))):
        assert Image.open(folder / f"{k}.png").tobytes() == image.tobytes()
        assert Image.open(masks / f"{k}.png").tobytes() == mask.tobytes()


def test_one_caption_and_one_mask_serve_all(tmp_path: Path) -> None:
    folder, masks = keep_images(tmp_path, [RED] * 11, ["same"], [LEFT])
    assert (folder / "00.png").is_file()  # names sort as the images came
    assert {path.read_text() for path in folder.glob("*.txt")} == {"same"}
    assert len(list(masks.glob("*.png"))) == 11


def test_without_masks_there_is_no_folder_of_them(tmp_path: Path) -> None:
    folder, masks = keep_images(tmp_path, [RED], [], [])
    assert masks is None
    assert sorted(files(folder)) == ["0.png"]


def test_the_folder_follows_from_the_content(tmp_path: Path) -> None:
    first, _ = keep_images(tmp_path, [RED], ["a"], [LEFT])
    assert keep_images(tmp_path, [RED.copy()], ["a"], [LEFT.copy()])[0] == first
    others = [
        keep_images(tmp_path, *given)[0]
        for given in (([BLUE], ["a"], [LEFT]), ([RED], ["b"], [LEFT]), ([RED], ["a"], []))
    ]
    assert len({first, *others}) == 4


@pytest.mark.parametrize(
    ("captions", "masks", "told"),
    [(["a", "b"], [], "2 captions"), ([], [LEFT] * 2, "2 masks"), ([], [Image.new("L", (64, 64))], "64x64")],
)
def test_what_does_not_fit_is_refused_and_nothing_is_written(
    tmp_path: Path, captions: list[str], masks: list[Image.Image], told: str
) -> None:
    with pytest.raises(DatasetError, match=told):
        keep_images(tmp_path, [RED] * 3, captions, masks)
    assert list(tmp_path.iterdir()) == []
