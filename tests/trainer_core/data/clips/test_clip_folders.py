"""What is a clip and what is not, what summary and lint say of clips, and what families of pictures make of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from trainer_core.config import DatasetConfig, ModelConfig
from trainer_core.data.clips.decode import first_picture
from trainer_core.data.clips.timing import timing_of
from trainer_core.data.index import index
from trainer_core.data.lint import lint
from trainer_core.data.lint.report import LintReport
from trainer_core.data.prepare import samples_of
from trainer_core.data.scan import scan
from trainer_core.data.summary import digest, summarize
from trainer_core.errors import DatasetError
from trainer_core.families.registry import family_spec

from ...clips import frame, number_of, write_clip, write_frames, write_gif
from ...toy.video import SPEC

VIDEO, PICTURES = SPEC, family_spec("flux1")


def config(folder: Path, **settings: Any) -> DatasetConfig:
    return DatasetConfig(**{"folder": str(folder), "resolutions": (64,), **settings})


def keys_of(folder: Path, video: bool = True, **settings: Any) -> dict[str, str]:
    """Keys of items, and the first caption of each."""
    one = config(folder, **settings)
    timing = timing_of(one, SPEC) if video else None
    return {item.key: item.captions[0] for item in scan(one, timing)}


def test_captions_lie_beside_clips(tmp_path: Path) -> None:
    for name in ("a.mp4", "b.webm"):
        write_clip(tmp_path / name, range(3), 12, codec="libvpx" if name == "b.webm" else "libx264")
    (tmp_path / "a.txt").write_text("a walk")
    write_frames(tmp_path / "v1.2", range(3))
    (tmp_path / "v1.2.txt").write_text("a second version")
    write_frames(tmp_path / "run", range(3))
    write_gif(tmp_path / "c.gif", range(3), 80)
    (tmp_path / "metadata.jsonl").write_text(
        '{"file_name": "b.webm", "text": "a jump"}\n{"file_name": "run", "text": "a run"}\n'
    )
    expected = {"a.mp4": "a walk", "b.webm": "a jump", "c.gif": "none", "run/": "a run", "v1.2/": "a second version"}
    assert keys_of(tmp_path, default_caption="none") == expected
    assert index(config(tmp_path), timing_of(config(tmp_path), SPEC)).absent() == []


def test_which_folders_are_clips(tmp_path: Path) -> None:
    """Pictures that are numbered, alike and without captions of their own."""
    write_frames(tmp_path / "walk", range(3))
    write_frames(tmp_path / "deep" / "er" / "run", range(2))
    write_frames(tmp_path / "captioned", range(2))
    (tmp_path / "captioned" / "frame1.txt").write_text("a picture")
    write_frames(tmp_path / "named", range(2))
    frame(1).save(tmp_path / "named" / "cover.png")
    write_frames(tmp_path / "one", range(1))
    frame(1).save(tmp_path / "1.png")
    frame(1).save(tmp_path / "2.png")
    found = keys_of(tmp_path, default_caption="x")
    assert {key for key in found if key.endswith("/")} == {"walk/", "deep/er/run/"}
    assert {key for key in found if "." in key} == {
        "1.png", "2.png", "captioned/frame1.png", "captioned/frame2.png",
        "named/cover.png", "named/frame1.png", "named/frame2.png", "one/frame1.png",
    }  # fmt: skip
    assert not any(key.endswith("/") for key in keys_of(tmp_path, video=False, default_caption="x"))


def test_folders_of_kohya_are_no_clips(tmp_path: Path) -> None:
    write_frames(tmp_path / "5_cat", range(3))
    write_frames(tmp_path / "3_dog" / "walk", range(3))
    one = config(tmp_path, kohya_folders=True)
    found = {item.key: (item.captions, item.repeats) for item in scan(one, timing_of(one, SPEC))}
    assert found == {
        **{f"5_cat/frame{k}.png": (("cat",), 5) for k in (1, 2, 3)},
        "3_dog/walk/": (("dog",), 3),
    }


def test_families_of_pictures_leave_clips_out_and_say_so(tmp_path: Path) -> None:
    frame(3).save(tmp_path / "a.png")
    write_clip(tmp_path / "b.mp4", range(3), 12)
    write_gif(tmp_path / "c.gif", range(3), 80)
    write_gif(tmp_path / "d.webp", range(3), 80)
    one = config(tmp_path, default_caption="x")
    assert keys_of(tmp_path, video=False, default_caption="x").keys() == {"a.png", "d.webp"}
    assert {sample.item.key for sample in samples_of(one, 16)} == {"a.png", "d.webp"}
    summary = summarize(one, PICTURES)
    assert (summary.count, summary.clips) == (2, 0)
    assert any("b.mp4: clips, which only video models train on: left out" in warning for warning in summary.warnings)
    report = lint(one, model=ModelConfig(family="flux1"), tokenizers=())
    assert report.of("clips")[0].files == ("b.mp4",)
    assert report.of("other-pictures")[0].files == ("c.gif",)
    assert (report.images, report.clips) == (2, 0)
    (tmp_path / "a.png").unlink()
    (tmp_path / "d.webp").unlink()
    with pytest.raises(DatasetError, match=r"holds no images .*there are b\.mp4: clips, which only video models"):
        summarize(one, PICTURES)


def test_the_summary_counts_clips_and_seconds(tmp_path: Path) -> None:
    write_clip(tmp_path / "a.mp4", range(48), 24)
    write_frames(tmp_path / "walk", range(16))
    frame(3).save(tmp_path / "still.png")
    summary = summarize(config(tmp_path, default_caption="x", frames=(9, 33)), VIDEO)
    assert (summary.count, summary.clips) == (3, 2)
    assert summary.seconds == pytest.approx(3)
    assert summary.buckets == {"64x64": 1, "64x64x13": 1, "64x64x29": 1, "64x64x9": 2}
    assert [number_of(first_picture(path)) for path in summary.thumbnails] == [0, 3, 0]


def test_before_a_model_is_chosen_clips_with_captions_count(tmp_path: Path) -> None:
    """Load Dataset does not know what is trained: what is of no use to pictures must not stop who trains on them."""
    frame(3).save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("a picture")
    write_clip(tmp_path / "good.mp4", range(24), 24)
    (tmp_path / "good.txt").write_text("a clip")
    write_clip(tmp_path / "wordless.mp4", range(3), 12)
    (tmp_path / "broken.mov").write_bytes(b"nothing")
    (tmp_path / "broken.txt").write_text("nothing")
    write_frames(tmp_path / "pictures", range(3))
    for k in range(3):
        (tmp_path / "pictures" / f"frame{k + 1}.txt").write_text("a picture")
    summary = summarize(config(tmp_path))
    assert (summary.count, summary.clips, round(summary.seconds)) == (5, 1, 1)
    (warning,) = (one for one in summary.warnings if "clips" in one)
    assert "broken.mov (" in warning
    assert "wordless.mp4 (no caption)" in warning
    report = lint(config(tmp_path), tokenizers=())
    assert (report.images - report.clips, report.clips) == (5, 1), "the broken one is no clip"
    assert report.of("unreadable-clip")[0].files == ("broken.mov",)
    assert report.of("clips")[0].files == ("wordless.mp4",)


def test_the_digest_changes_with_clips(tmp_path: Path) -> None:
    write_clip(tmp_path / "a.mp4", range(3), 12)
    write_frames(tmp_path / "walk", range(3))
    one = config(tmp_path)
    seen = {digest(one)}
    (tmp_path / "walk.txt").write_text("a walk")
    seen.add(digest(one))
    write_clip(tmp_path / "a.mp4", range(9), 12)
    seen.add(digest(one))
    write_gif(tmp_path / "b.gif", range(3), 80)
    seen.add(digest(one))
    frame(9).save(tmp_path / "walk" / "frame2.png")
    seen.add(digest(one))
    assert len(seen) == 5


@pytest.mark.parametrize("family", ["toy_video"])
def test_broken_clips_are_all_told(family: str, tmp_path: Path) -> None:
    write_clip(tmp_path / "good.mp4", range(9), 16)
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.webm").write_text("no clip")
    whole = write_clip(tmp_path / "cut.mkv", range(60), 24, options={"g": "12"})
    whole.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    one = config(tmp_path, default_caption="x", frames=9)
    with pytest.raises(DatasetError, match=r"cut\.mkv \(.*empty\.mp4 \(.*text\.webm \(.*cannot be read as an image or"):
        scan(one, timing_of(one, family_spec(family)))
    report = lint(one, model=ModelConfig(family=family) if family else None, tokenizers=())
    assert {file for finding in report.of("unreadable-clip") for file in finding.files} == {
        "cut.mkv", "empty.mp4", "text.webm",
    }  # fmt: skip
    assert not report.ok


@pytest.fixture
def checked(tmp_path: Path) -> Callable[..., LintReport]:
    def check(**settings: Any) -> LintReport:
        return lint(
            config(tmp_path, default_caption="x", **settings), model=ModelConfig(family="toy_video"), tokenizers=()
        )

    return check


def test_lint_knows_clips(checked: Callable[..., LintReport], tmp_path: Path) -> None:
    write_clip(tmp_path / "fine.mp4", range(48), 24, sound=0.5)
    write_clip(tmp_path / "short.mp4", range(12), 24, sound=0.5)
    write_clip(tmp_path / "slow.mp4", range(20), 10, sound=0.5)
    write_clip(tmp_path / "still.mp4", [85] * 48, 24, sound=0.5)
    write_clip(tmp_path / "black.mp4", [0] * 48, 24, sound=0.5)
    write_clip(tmp_path / "mute.mp4", range(100, 148), 24)
    report = checked(frames=25)
    assert (report.images, report.clips) == (6, 6)
    assert report.summary().startswith("6 clips: ")
    found = {check: report.of(check)[0].files for check in ("short-clip", "frame-rate", "no-motion", "black-clip")}
    assert found == {
        "short-clip": ("short.mp4",),
        "frame-rate": ("slow.mp4",),
        "no-motion": ("still.mp4",),
        "black-clip": ("black.mp4",),
    }
    assert report.of("no-sound")[0].files == ("mute.mp4",)
    assert "8 frames" in report.of("short-clip")[0].message
    assert report.ok


def test_a_slight_motion_is_one(checked: Callable[..., LintReport], tmp_path: Path) -> None:
    """A quarter of the picture moves by some grey levels; compression's own noise does not count."""
    folder = tmp_path / "walk"
    folder.mkdir()
    rng = np.random.default_rng(0)
    ground = rng.integers(60, 200, (64, 64, 3), np.uint8)
    for k in range(33):
        picture = ground.copy()
        picture[:32, :32] = np.roll(ground[:32, :32], k, axis=1)
        Image.fromarray(picture).save(folder / f"{k}.png")
    assert not checked().of("no-motion")


def test_clips_that_look_alike_are_told(checked: Callable[..., LintReport], tmp_path: Path) -> None:
    """By a picture out of the middle."""
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    for k in range(5):
        picture = Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).resize((64, 64))
        picture.save(tmp_path / "a" / f"{k}.png")
        picture.save(tmp_path / "b" / f"{k}.bmp")
    assert checked().of("near-duplicates")[0].files == ("a/", "b/")


def test_clips_of_other_kinds_are_told(tmp_path: Path) -> None:
    frame(3).save(tmp_path / "a.png")
    (tmp_path / "old.avi").write_bytes(b"x")
    one = config(tmp_path, default_caption="x")
    for model in (VIDEO, PICTURES, None):
        assert any("old.avi: clips of a kind that is not read" in warning for warning in summarize(one, model).warnings)


def test_clips_of_another_length_share_no_batch(tmp_path: Path) -> None:
    for k in range(2):
        write_clip(tmp_path / f"long{k}.mp4", range(40), 16)
    write_clip(tmp_path / "short.mp4", range(10), 16)
    write_clip(tmp_path / "shorter.mp4", range(6), 16)
    alone = lint(config(tmp_path, default_caption="x"), model=ModelConfig(family="toy_video"), tokenizers=())
    assert [finding.files for finding in alone.of("small-bucket")] == [("short.mp4", "shorter.mp4")]
