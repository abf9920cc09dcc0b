"""Lint on images and folders: for each check a data set that triggers it, and one that does not."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from trainer_core.config import DatasetConfig, JobConfig, ModelConfig, validated
from trainer_core.data.lint import Finding, LintReport, lint, lint_job
from trainer_core.data.prepare import samples_of
from trainer_core.errors import ConfigError, DatasetError

Put = Callable[..., Path]
WORDS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


def picture(number: int, size: tuple[int, int] = (64, 64)) -> Image.Image:
    """Blocks of colours, others for each number."""
    blocks = np.random.default_rng(number).integers(0, 256, (6, 6, 3), np.uint8)
    return Image.fromarray(blocks).resize(size, Image.Resampling.BICUBIC)


@pytest.fixture
def put(tmp_path: Path) -> Put:
    """Writes an image that looks like no other, with a caption like no other."""
    number = iter(range(1000))

    def write(name: str = "", size: tuple[int, int] = (64, 64), caption: str | None = "", image: Any = None) -> Path:
        k = next(number)
        path = tmp_path / "set" / (name or f"{k}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        (image or picture(k, size)).save(path)
        if caption is not None:
            text = caption or f"a picture of {WORDS[k % 10]} things {k}"
            path.with_suffix(".txt").write_text(text, encoding="utf-8")
        return path

    return write


def report(folder: Path, **settings: Any) -> LintReport:
    """Lint without tokenizers, at 64 pixels."""
    own = {name: settings.pop(name) for name in ("share", "classes", "style") if name in settings}
    dataset = DatasetConfig(**{"folder": str(folder), "resolutions": (64,), **settings})
    return lint(dataset, tokenizers=(), **own)


def told(found: LintReport) -> list[tuple[str, str, tuple[str, ...]]]:
    return [(finding.severity, finding.check, finding.files) for finding in found.findings]


def test_nothing_is_wrong_with_a_good_set(put: Put, tmp_path: Path) -> None:
    for _ in range(4):
        put()
    found = report(tmp_path / "set")
    assert told(found) == []
    assert (found.images, found.ok, found.folders) == (4, True, (str(tmp_path / "set"),))
    assert found.summary() == "4 images: nothing to complain about"


@pytest.mark.parametrize("name", ["nowhere", "a_file.png", "empty", "~nosuchuser/x"])
def test_folders_that_are_none(name: str, put: Put, tmp_path: Path) -> None:
    put("../a_file.png")
    (tmp_path / "empty").mkdir()
    found = report(tmp_path / name if not name.startswith("~") else Path(name))
    assert [(f.severity, f.check) for f in found.findings] == [("error", "folder")]
    assert name.split("/")[0] in found.findings[0].message
    assert (found.images, found.ok) == (0, False)


# what cannot be read


def test_broken_images_are_all_told_and_the_rest_is_looked_at(put: Put, tmp_path: Path) -> None:
    put("good.png")
    for name in ("cut.png", "cut.jpg", "cut (2).webp"):
        path = put(name, size=(200, 200))
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    put("no.png").write_bytes(b"not an image")
    put("empty.jpg").write_bytes(b"")
    put("silent.png", caption=None)
    found = report(tmp_path / "set")
    broken = found.of("unreadable-image")
    assert sorted(file for finding in broken for file in finding.files) == [
        "cut (2).webp", "cut.jpg", "cut.png", "empty.jpg", "no.png"
    ]  # fmt: skip
    assert {finding.severity for finding in broken} == {"error"}
    by_file = {file: finding.message for finding in broken for file in finding.files}
    assert "empty" in by_file["empty.jpg"]
    assert "truncated" in by_file["cut.jpg"]
    assert by_file["cut.jpg"] == by_file["cut.png"]
    assert found.of("missing-caption")[0].files == ("silent.png",)
    assert found.images == 7


@pytest.mark.parametrize("mode", ["P", "LA", "RGBA", "I;16", "CMYK", "1", "L"])
def test_images_of_all_kinds_are_readable(mode: str, put: Put, tmp_path: Path) -> None:
    image = Image.fromarray(np.arange(64 * 64, dtype=np.uint16).reshape(64, 64)) if mode == "I;16" else picture(0)
    put("a.jpg" if mode == "CMYK" else "a.png", image=image if mode == "I;16" else image.convert(mode))
    assert told(report(tmp_path / "set")) == []


def test_broken_captions_and_metadata_are_all_told(put: Put, tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        put(name).with_suffix(".txt").write_bytes(b"\xff\xfe\xfd")
    put("c.png", caption=None)
    put("sub/d.png")
    (tmp_path / "set" / "sub" / "metadata.jsonl").write_text("{broken", encoding="utf-8")
    (tmp_path / "set" / "metadata.csv").write_text("no,name\n1,2\n", encoding="utf-8")
    put("cut.png").write_bytes(b"x")
    found = report(tmp_path / "set")
    assert [f.files for f in found.of("unreadable-caption")] == [("a.png",), ("b.png",)]
    places = " ".join(finding.message for finding in found.of("folder"))
    assert "metadata.jsonl, line 1" in places
    assert "metadata.csv, line 1" in places
    assert len(found.of("folder")) == 2
    assert found.of("unreadable-image")[0].files == ("cut.png",)
    assert found.of("missing-caption") == [], "c.png's may stand in the broken metadata"


def test_captions_of_metadata_count(put: Put, tmp_path: Path) -> None:
    put("a.png", caption=None)
    row = json.dumps({"file_name": "a.png", "text": "a red thing"})
    (tmp_path / "set" / "metadata.jsonl").write_text(row, encoding="utf-8")
    assert told(report(tmp_path / "set")) == []
    more = json.dumps({"file_name": "gone.png", "text": "x"})
    (tmp_path / "set" / "metadata.jsonl").write_text(f"{row}\n{more}", encoding="utf-8")
    assert told(report(tmp_path / "set")) == [("warning", "absent-image", ("gone.png",))]


def test_masks_and_control_images(put: Put, tmp_path: Path) -> None:
    for name in ("a.png", "b.png", "masks/a.png", "masks/b.jpg", "../controls/a.webp"):
        put(name, caption="a mask" if "/" in name else "")
    masks, controls = str(tmp_path / "set" / "masks"), str(tmp_path / "controls")
    assert report(tmp_path / "set", mask_folder=masks).of("missing-counterpart") == []
    assert report(tmp_path / "set", mask_folder=masks, control_folders=(controls,)).of("missing-counterpart") == [
        Finding(
            "error", "missing-counterpart", ("b.png",),
            f"nothing of the same name in {controls}. Put it there (its suffix may differ), or remove the image",
            str(tmp_path / "set"),
        )
    ]  # fmt: skip
    for wrong in (tmp_path / "gone", tmp_path / "set"):
        found = report(tmp_path / "set", mask_folder=str(wrong))
        assert "mask_folder" in found.of("folder")[0].message
        assert found.images == 4, "what can be read is looked at"


def test_kohya_folders_that_do_nothing(put: Put, tmp_path: Path) -> None:
    for name in ("3_red/a.png", "3_red/b.png", "2_blue/c.png"):
        put(name)
    put("0_out/d.png").write_bytes(b"left out, so it may be broken")
    found = report(tmp_path / "set")
    assert ("warning", "kohya-folders", ("0_out", "2_blue", "3_red")) in told(found)
    assert told(report(tmp_path / "set", kohya_folders=True)) == []
    shutil.rmtree(tmp_path / "set")
    put("a.png")
    assert told(report(tmp_path / "set")) == []
    assert told(report(tmp_path / "set", kohya_folders=True)) == [("warning", "kohya-folders", ())]


def test_transparency_that_is_missed(put: Put, tmp_path: Path) -> None:
    clear = picture(0).convert("RGBA")
    clear.putalpha(128)
    put("clear.png", image=clear)
    assert told(report(tmp_path / "set", alpha_mask=True)) == []
    put("opaque.jpg")
    assert told(report(tmp_path / "set", alpha_mask=True)) == [("warning", "opaque", ("opaque.jpg",))]


# sizes


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((15, 300), [("error", "tiny-image")]),  # under the divisor, 16
        ((31, 31), [("warning", "tiny-image")]),  # under half of 64
        ((32, 32), [("warning", "below-resolution")]),
        ((57, 57), [("warning", "below-resolution")]),  # 57 / 64 = 0.89
        ((58, 58), [("note", "below-resolution")]),  # 58 / 64 = 0.91, but under 0.9 · 128 = 115.2
        ((115, 115), [("note", "below-resolution")]),
        ((116, 116), []),
        ((256, 256), []),  # half of it is 128
        ((257, 257), [("note", "shrunk")]),
    ],
)
def test_sizes(size: tuple[int, int], expected: list[tuple[str, str]], put: Put, tmp_path: Path) -> None:
    put("a.png", size=size)
    found = told(report(tmp_path / "set", resolutions=(64, 128)))
    assert [(severity, check) for severity, check, _ in found if check != "cropped"] == expected


def test_what_a_bucket_cuts_off(put: Put, tmp_path: Path) -> None:
    """At divisor 16 and resolution 64, 80 x 63 can be 64 x 48 (aspect 1.333 for 1.270, 5 % lost); at 16,
    whose area is 256 pixels at most, 16 x 47 can only be 16 x 16 (31 of 47 rows lost, 66 %)."""
    put("a.png", size=(80, 63))
    assert report(tmp_path / "set").of("cropped") == []
    (tmp_path / "set" / "a.png").unlink()
    put("b.png", size=(16, 47))
    (finding,) = report(tmp_path / "set", resolutions=(16,)).of("cropped")
    assert finding.files == ("b.png",)
    assert "66% of 16x47 for 16x16" in finding.message


def test_rotated_images_count_as_they_are_seen(put: Put, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    put("a.jpg")
    picture(5, (64, 16)).save(tmp_path / "set" / "b.jpg", exif=exif)
    (tmp_path / "set" / "b.txt").write_text("a strip of colours")
    (finding,) = report(tmp_path / "set").of("below-resolution")  # √(64 · 16) = 32, half of 64
    assert "16x64" in finding.message


def test_lonely_buckets(put: Put, tmp_path: Path) -> None:
    """Without a job, images alone in their bucket are noted; with one, buckets below its batch size."""
    for name in ("a.png", "b.png"):
        put(name)
    assert told(report(tmp_path / "set")) == []
    put("wide.png", size=(128, 32))
    assert told(report(tmp_path / "set")) == [("note", "small-bucket", ("wide.png",))]

    def at(batch_size: int, **settings: Any) -> list[tuple[str, ...]]:
        dataset = {"folder": str(tmp_path / "set"), "resolutions": [64], **settings}
        job = {"name": "x", "datasets": [dataset], "train": {"batch_size": batch_size}}
        return [f.files for f in lint_job(validated(JobConfig, job), tokenizers=()).of("small-bucket")]

    assert at(1) == []
    assert at(2) == [("wide.png",)]
    assert at(3) == [("a.png", "b.png", "wide.png")]
    assert at(2, weight=2) == []


# the report


def test_lint_agrees_with_training(put: Put, tmp_path: Path) -> None:
    """Whatever training refuses is an error, and a set without errors is trained on."""
    faults: list[Callable[[], object]] = [
        lambda: put("a.png").write_bytes(b"x"),
        lambda: put("b.png", caption=None),
        lambda: put("c.png", size=(300, 8)),
        lambda: put("d.png").with_suffix(".txt").write_bytes(b"\xff\xfe\xfd"),
        lambda: (tmp_path / "set" / "metadata.csv").write_text("x\n"),
    ]
    dataset = DatasetConfig(folder=str(tmp_path / "set"), resolutions=(64,))
    for fault in faults:
        shutil.rmtree(tmp_path / "set", ignore_errors=True)
        put("good.png")
        assert report(tmp_path / "set").ok
        assert len(samples_of(dataset, 16)) == 1
        fault()
        assert not report(tmp_path / "set").ok
        with pytest.raises(DatasetError):
            samples_of(dataset, 16)


def test_an_unknown_family_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="flux11"):
        lint(DatasetConfig(folder=str(tmp_path)), model=ModelConfig(family="flux11"))


def test_the_report_in_numbers_and_rows() -> None:
    errors = [Finding("error", "e", (f"{k}.png", "x", "y", "z"), f"m{k}") for k in range(12)]
    found = LintReport((*errors, Finding("note", "n", (), "hint", "f")), 1, ("f",))
    assert found.summary() == "1 image: 12 errors, 1 note"
    rows = found.rows(per_check=10)
    assert len(rows) == 12
    assert rows[0] == ("error", "e", "0.png, x, y and 1 more", "m0")
    assert rows[10] == ("error", "e", "", "and 2 more of this kind")
    assert rows[11] == ("note", "n", "", "hint")
    told = json.loads(json.dumps(found.as_dict()))
    assert told["counts"] == {"error": 12, "warning": 0, "note": 1}
    assert told["checks"] == {"e": 12, "n": 1}
    assert told["findings"][12] == {"severity": "note", "check": "n", "files": [], "message": "hint", "folder": "f"}


def test_findings_come_the_worst_first(put: Put, tmp_path: Path) -> None:
    put("note.png", caption=None)
    put("warning.png", size=(20, 20))
    put("error.png").write_bytes(b"")
    put("small.png", size=(20, 20))
    put("large.png")  # nobody is alone in a bucket
    severities = [finding.severity for finding in report(tmp_path / "set", default_caption="x y z").findings]
    assert severities == ["error", "warning", "note"]


def test_progress_is_told(put: Put, tmp_path: Path) -> None:
    for _ in range(3):
        put()
    heard: list[tuple[int, int]] = []
    dataset = DatasetConfig(folder=str(tmp_path / "set"))
    lint(dataset, tokenizers=(), progress=lambda what, done, total: heard.append((done, total)))
    assert heard == [(0, 3), (1, 3), (2, 3), (3, 3)]


def test_work_that_is_stopped_does_not_look_at_the_rest(
    put: Put, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(60):
        put()
    looked: list[Path] = []

    def slow(path: Path, *_: object) -> str:
        looked.append(path)
        if len(looked) > 1:
            time.sleep(0.2)
        return "not looked at"

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("trainer_core.data.lint.survey._look", slow)
    with pytest.raises(KeyboardInterrupt):
        lint(DatasetConfig(folder=str(tmp_path / "set")), tokenizers=(), progress=stop)
    assert len(looked) < 60
