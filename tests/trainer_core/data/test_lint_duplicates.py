"""Lint across images: what looks alike, and validation splits that leak."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from trainer_core.config import DatasetConfig, JobConfig, validated
from trainer_core.data.holdout import held_out
from trainer_core.data.lint import LintReport, lint, lint_job
from trainer_core.data.lint import looks as looks_module
from trainer_core.data.lint.looks import Looks, look_at


def photo(number: int, width: int = 300, height: int = 240) -> Image.Image:
    """Smooth blots of colours with detail, as photographs have them; another one for each number."""
    rng = np.random.default_rng(number)
    total = np.zeros((height, width, 3))
    for cells, share in ((5, 0.6), (20, 0.25), (60, 0.15)):
        noise = Image.fromarray(rng.integers(0, 256, (cells, cells, 3), np.uint8))
        total += share * np.asarray(noise.resize((width, height), Image.Resampling.BICUBIC), float)
    return Image.fromarray(total.clip(0, 255).astype(np.uint8))


def save(image: Image.Image, path: Path, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)
    path.with_suffix(".txt").write_text(f"a picture called {path.parent.name} {path.stem}", encoding="utf-8")
    return path


def alike(one: Path, other: Path) -> bool:
    return Looks([look_at(one), look_at(other)]).groups() == [[0, 1]]


def look(folder: Path, share: float = 0.0, **settings: Any) -> LintReport:
    dataset = DatasetConfig(**{"folder": str(folder), "resolutions": (256,), **settings})
    return lint(dataset, share=share, tokenizers=())


def job_of(*sets: dict[str, Any], **sections: Any) -> JobConfig:
    datasets = [{"resolutions": [256], **one, "folder": str(one["folder"])} for one in sets]
    return validated(JobConfig, {"name": "x", "datasets": datasets, **sections})


# looks


def test_copies_of_many_kinds_look_alike(tmp_path: Path) -> None:
    image = photo(1)
    original = save(image, tmp_path / "original.png")
    half = image.resize((150, 120))
    trimmed = image.crop((3, 2, 297, 238))
    copies = [
        save(image, tmp_path / "poor.jpg", quality=25),
        save(half, tmp_path / "half.webp"),
        save(image.resize((1200, 960)), tmp_path / "large.jpg"),
        save(trimmed, tmp_path / "trimmed.png"),
        save(ImageEnhance.Brightness(image).enhance(1.05), tmp_path / "brighter.png"),
        save(image.resize((200, 300)), tmp_path / "squeezed.png"),
    ]
    assert [path.name for path in copies if not alike(original, path)] == []


def test_different_photographs_do_not(tmp_path: Path) -> None:
    looks = Looks([look_at(save(photo(k), tmp_path / f"{k}.jpg")) for k in range(60)])
    assert looks.groups() == []
    assert looks.mirrored_pairs() == []


def test_flat_pictures_are_told_apart_by_their_colour(tmp_path: Path) -> None:
    """A difference hash alone has no bit for them."""
    red, dark, green = (
        save(Image.new("RGB", (80, 80), colour), tmp_path / f"{number}.png")
        for number, colour in enumerate(("#ff0000", "#f80400", "#00ff00"))
    )
    assert alike(red, dark)
    assert not alike(red, green)


def test_the_hash_of_a_slope_by_hand(tmp_path: Path) -> None:
    """Brightness that rises to the right sets all bits of the rows and none of the columns; in a mirror, none."""
    slope = np.tile(np.linspace(100, 127, 72), (72, 1)).astype(np.uint8)
    rising = save(Image.fromarray(slope), tmp_path / "a.png")
    falling = save(Image.fromarray(slope[:, ::-1].copy()), tmp_path / "b.png")
    assert look_at(rising).bits == b"\xff" * 8 + b"\x00" * 8
    assert look_at(rising).mirrored_bits == b"\x00" * 16
    assert not alike(rising, falling), "their colours nearly agree, 64 bits do not"


def test_the_same_thing_in_two_colours_is_no_copy(tmp_path: Path) -> None:
    image = photo(2)
    turned = Image.merge("RGB", image.split()[::-1])
    assert not alike(save(image, tmp_path / "a.png"), save(turned, tmp_path / "b.png"))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_images_are_compared_as_they_are_seen(orientation: int, suffix: str, tmp_path: Path) -> None:
    """Pillow's own exif_transpose says what is seen."""
    from PIL import ImageOps

    exif = Image.Exif()
    exif[0x0112] = orientation
    turned = tmp_path / f"turned.{suffix}"
    photo(3).save(turned, exif=exif)
    with Image.open(turned) as image:
        upright = ImageOps.exif_transpose(image)
    path = save(upright.convert("RGB"), tmp_path / "upright.png")
    assert alike(turned, path)
    assert (look_at(turned).width, look_at(turned).height) == upright.size


def test_jpegs_are_measured_before_they_are_shrunk(tmp_path: Path) -> None:
    path = save(photo(4, 1024, 800), tmp_path / "a.jpg")
    assert (look_at(path).width, look_at(path).height) == (1024, 800)


def test_what_is_behind_transparency_does_not_count(tmp_path: Path) -> None:
    """Two icons on transparent black: as they are seen, on a coloured ground, they differ."""
    icons = []
    for number, box in enumerate(((10, 10, 40, 40), (40, 40, 70, 70))):
        icon = Image.new("RGBA", (80, 80), (0, 0, 0, 0))
        icon.paste((0, 0, 0, 255), box)
        icons.append(save(icon, tmp_path / f"{number}.png"))
    assert not alike(*icons)
    assert look_at(icons[0]).transparent
    assert Looks([look_at(path, "black") for path in icons]).groups() == [[0, 1]], "black on black"


def test_alike_is_handed_on(tmp_path: Path) -> None:
    """A walk in small steps: neighbours look alike, its ends do not, and all are one group."""
    image = photo(5, 400, 300)
    frames = [save(image.crop((k * 2, 0, 360 + k * 2, 300)), tmp_path / f"{k:02}.png") for k in range(20)]
    looks = [look_at(path) for path in frames]
    assert Looks([looks[0], looks[-1]]).groups() == []
    assert Looks(looks).groups() == [list(range(20))]


def test_comparison_in_chunks_finds_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looks = [look_at(save(photo(k % 7), tmp_path / f"{k}.png")) for k in range(14)]
    expected = [[k, k + 7] for k in range(7)]
    assert Looks(looks).groups() == expected
    monkeypatch.setattr(looks_module, "_CHUNK", 14 * 3)  # three rows at a time
    assert Looks(looks).groups() == expected
    assert Looks([]).groups() == []


# duplicates


def test_near_duplicates(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    for k in range(5):
        save(photo(k), folder / f"{k}.png")
    assert look(folder).of("near-duplicates") == []
    save(photo(3).resize((220, 176)), folder / "again.jpg")
    (finding,) = look(folder).of("near-duplicates")
    assert (finding.severity, finding.files) == ("warning", ("3.png", "again.jpg"))
    assert "look alike" in finding.message
    (folder / "twin.png").write_bytes((folder / "0.png").read_bytes())
    (folder / "twin.txt").write_text("some words here")
    first = look(folder).of("near-duplicates")[0]
    assert first.files == ("0.png", "twin.png")
    assert "copies of one file" in first.message


def test_mirror_images(tmp_path: Path) -> None:
    save(photo(1), tmp_path / "set" / "a.png")
    save(photo(1).transpose(Image.Transpose.FLIP_LEFT_RIGHT), tmp_path / "set" / "b.jpg")
    save(photo(2), tmp_path / "set" / "c.png")
    found = look(tmp_path / "set")
    assert [(f.severity, f.check, f.files) for f in found.findings] == [("note", "mirrored", ("a.png", "b.jpg"))]


def test_duplicates_across_sets_of_a_job(tmp_path: Path) -> None:
    save(photo(1), tmp_path / "one" / "a.png")
    save(photo(2), tmp_path / "one" / "b.png")
    save(photo(1), tmp_path / "two" / "c.jpg")
    one, two = {"folder": tmp_path / "one"}, {"folder": tmp_path / "two"}
    twice = {**one, "resolutions": [128]}
    assert lint_job(job_of(one, twice), tokenizers=()).of("near-duplicates") == []
    (finding,) = lint_job(job_of(one, twice, two), tokenizers=()).of("near-duplicates")
    assert finding.files == ("a.png", str(tmp_path / "two" / "c.jpg"))
    assert finding.folder == str(tmp_path / "one")
    (finding,) = lint_job(job_of(one, {**two, "role": "regularization"}), tokenizers=()).of("near-duplicates")
    assert "regularization" in finding.message


# validation


def test_a_validation_set_that_leaks(tmp_path: Path) -> None:
    for k in range(3):
        save(photo(k), tmp_path / "train" / f"{k}.png")
    save(photo(7), tmp_path / "held" / "other.png")
    train, held = {"folder": tmp_path / "train"}, {"folder": tmp_path / "held", "role": "validation"}
    assert lint_job(job_of(train, held), tokenizers=()).of("validation-leak") == []

    save(photo(2), tmp_path / "held" / "near.jpg")
    (finding,) = lint_job(job_of(train, held), tokenizers=()).of("validation-leak")
    assert (finding.severity, finding.folder) == ("warning", str(tmp_path / "held"))
    assert finding.files == ("near.jpg", str(tmp_path / "train" / "2.png"))

    # a set alone is compared with the job's validation sets too, of which nothing else is told
    (tmp_path / "held" / "broken.png").write_bytes(b"")
    job = job_of(train, held)
    alone = lint(job.datasets[0], job=job, tokenizers=())
    assert [(f.check, f.files) for f in alone.findings] == [("validation-leak", finding.files)]


def test_a_file_on_both_sides_is_an_error_as_training_refuses_it(tmp_path: Path) -> None:
    path = save(photo(1), tmp_path / "train" / "a.png")
    save(photo(2), tmp_path / "train" / "b.png")
    (tmp_path / "held").mkdir()
    (tmp_path / "held" / "a.png").write_bytes(path.read_bytes())
    held = {"folder": tmp_path / "held", "role": "validation", "default_caption": "a plain picture"}
    found = lint_job(job_of({"folder": tmp_path / "train"}, held), tokenizers=())
    assert [finding.severity for finding in found.of("validation-leak")] == ["error"]


def test_mirror_images_leak_too(tmp_path: Path) -> None:
    save(photo(1), tmp_path / "train" / "a.png")
    save(photo(1).transpose(Image.Transpose.FLIP_LEFT_RIGHT), tmp_path / "held" / "b.png")
    held = {"folder": tmp_path / "held", "role": "validation"}
    found = lint_job(job_of({"folder": tmp_path / "train"}, held), tokenizers=())
    assert [finding.severity for finding in found.of("validation-leak")] == ["warning"]
    assert found.of("mirrored") == []


def test_a_share_that_is_held_out_and_leaks(tmp_path: Path) -> None:
    """Which images are held out is training's own choice by content; near-duplicates of them must be found."""
    folder = tmp_path / "set"
    paths = [save(photo(k), folder / f"{k}.png") for k in range(6)]
    assert look(folder, share=0.3).of("validation-leak") == []
    # the same pictures once more, in files of other bytes: some pairs come to lie on both sides
    paths += [save(photo(k), folder / f"again_{k}.jpg") for k in range(6)]
    contents = {hashlib.sha256(path.read_bytes()).hexdigest(): path for path in paths}
    held = {contents[content].stem.removeprefix("again_") for content in held_out([list(contents)], [], 0.3)}
    kept = {p.stem.removeprefix("again_") for c, p in contents.items() if c not in held_out([list(contents)], [], 0.3)}
    torn = held & kept
    assert torn, "the share holds one of at least one pair"
    leaks = look(folder, share=0.3).of("validation-leak")
    assert {finding.files[0].removeprefix("again_").split(".")[0] for finding in leaks} == torn
    assert {finding.severity for finding in leaks} == {"warning"}
    assert look(folder).of("validation-leak") == []
    job = job_of({"folder": folder}, validation={"share": 0.3, "every": 5})
    assert len(lint_job(job, tokenizers=()).of("validation-leak")) == len(torn)
