"""Which frames of a clip are trained on: resampled, in windows, in lengths, and what becomes of them in the cache."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from trainer_core.config import DatasetConfig
from trainer_core.data import views
from trainer_core.data.batches import BatchOrder
from trainer_core.data.clips.excerpt import Excerpt
from trainer_core.data.clips.header import clip_header
from trainer_core.data.clips.timing import lengths, resampled, starts
from trainer_core.data.images import to_image
from trainer_core.data.variants import Variant, variants_of
from trainer_core.errors import DatasetError
from trainer_core.families.conditioning import AUDIO, MAIN

from ...clips import decoded, frame, write_clip, write_frames, write_gif
from ...toy.video import ToyVideo

Prepared = Callable[..., Any]


def folder_of(tmp_path: Path) -> Path:
    folder = tmp_path / "clips"
    folder.mkdir()
    return folder


def seen_at(times: list[float], rate: float, count: int) -> list[int]:
    """The frames nearest to k / rate by brute force, the earlier of two; none that comes half a frame later."""
    found = []
    for k in range(count):
        away = {number: time - k / rate for number, time in enumerate(times) if time - k / rate < 0.5 / rate - 1e-9}
        found.append(min(away, key=lambda number: (round(abs(away[number]), 9), number)))
    return found


@pytest.mark.parametrize(
    ("own", "wanted"),
    [(Fraction(24000, 1001), 16), (Fraction(30000, 1001), 16), (25, 24), (12, 16), (16, 16), (60, 16), (24, 23.976)],
)
@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_frames_are_resampled_by_their_times(own: Any, wanted: float, suffix: str, tmp_path: Path) -> None:
    """Matroska's times are whole milliseconds."""
    clip = clip_header(write_clip(tmp_path / f"a{suffix}", range(48), own, options={"bf": "2"}))
    assert clip is not None
    tick = float(clip.tick or 0)
    found = list(resampled(clip, Fraction(str(wanted))))
    assert len(found) == pytest.approx(48 / float(own) * wanted, abs=0.51)
    assert found == seen_at([pts * tick for pts in clip.pts], wanted, len(found))


@pytest.mark.parametrize("rate", [Fraction(24000, 1001), Fraction(30000, 1001), Fraction(16), Fraction(25)])
@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_at_its_own_rate_every_frame_comes_once(rate: Fraction, suffix: str, tmp_path: Path) -> None:
    """Also if the rate is written as people do."""
    clip = clip_header(write_clip(tmp_path / f"a{suffix}", range(100), rate))
    assert clip is not None
    assert list(resampled(clip, Fraction(str(round(float(rate), 3))))) == [*range(100)]


def test_lengths_and_windows() -> None:
    assert lengths(100, (33, 81), 4) == [33, 81]
    assert lengths(50, (33, 81), 4) == [33, 49]
    assert lengths(20, (33, 81), 4) == [17], "each once"
    assert lengths(100, (32, 80), 8) == [25, 73]
    assert lengths(3, (33,), 4) == [1]
    assert starts(100, 33, "start") == [0]
    assert starts(100, 33, "middle") == [33]
    assert starts(100, 33, "uniform") == [0, 34, 67], "the first begins, the last ends with the clip"
    assert starts(65, 33, "uniform") == [16], "two do not fit"
    assert starts(66, 33, "uniform") == [0, 33]
    assert starts(100, 33, "random") == [None]


@pytest.mark.parametrize(
    ("part", "windows"), [("start", [0]), ("middle", [15]), ("uniform", [0, 10, 20, 30]), ("random", None)]
)
def test_the_frames_of_a_part_are_encoded(
    part: str, windows: list[int] | None, prepared: Prepared, tmp_path: Path
) -> None:
    folder = folder_of(tmp_path)
    write_clip(folder / "a.mp4", range(39), 16)
    data, base = prepared({"folder": str(folder), "frames": 9, "clip_part": part})
    begins = [numbers[0] for numbers in base.shown]
    assert all(numbers == tuple(range(numbers[0], numbers[0] + 9)) for numbers in base.shown)
    if windows is None:
        assert len(data.samples[0]) == 1
        assert len(set(begins)) == 4, "four random parts"
        assert all(0 <= one <= 30 for one in begins)
    else:
        assert begins == windows
        assert len({sample.key for sample in data.samples[0]}) == len(windows)


def test_clips_come_in_several_lengths_and_sizes(prepared: Prepared, tmp_path: Path) -> None:
    folder = folder_of(tmp_path)
    write_clip(folder / "a.mp4", range(20), 16, size=(128, 64))
    frame(5).save(folder / "still.png")
    data, _ = prepared({"folder": str(folder), "frames": [5, 100], "resolutions": [64, 48]})
    found = {(sample.item.key, sample.size, sample.frames) for sample in data.samples[0]}
    assert found == {
        *(("a.mp4", size, frames) for size in ((64, 32), (80, 48)) for frames in (5, 17)),
        ("still.png", (64, 64), 1),
        ("still.png", (48, 48), 1),
    }
    for sample in data.samples[0]:
        latents = data.latents(sample, Variant())
        width, height = sample.size
        assert latents.mean[MAIN].shape == (4, (sample.frames - 1) // 4 + 1, height // 8, width // 8)
        assert latents.first_frame is not None
        assert latents.first_frame.shape == latents.mean[MAIN].shape
        assert latents.frame_rate == 16


def test_latents_are_those_of_the_frames(prepared: Prepared, tmp_path: Path) -> None:
    """The first frame alone, and then the means of four, by hand."""
    folder = folder_of(tmp_path)
    write_frames(folder / "walk", range(30, 43))
    data, _ = prepared({"folder": str(folder), "frames": 9, "clip_part": "middle"})
    (sample,) = data.samples[0]
    latents = data.latents(sample, Variant())
    grey = [np.asarray(frame(30 + k).convert("L").resize((8, 8), Image.Resampling.BOX), float) for k in range(2, 11)]
    own = [value / 127.5 - 1 for value in grey]
    expected = [own[0], np.mean(own[1:5], axis=0), np.mean(own[5:9], axis=0)]
    assert np.allclose(latents.mean[MAIN][0].numpy(), expected, atol=0.01)
    first = latents.first_frame.numpy()
    assert np.allclose(first[0, 0], own[0], atol=0.01)
    assert not first[:, 1:].any()


def test_flips_and_crops_are_those_of_every_frame(prepared: Prepared, tmp_path: Path) -> None:
    folder = folder_of(tmp_path)
    write_clip(folder / "a.mp4", range(9), 16)
    data, _ = prepared({"folder": str(folder), "frames": 9, "flip_x": True, "crop": "random"})
    (sample,) = data.samples[0]
    forms = variants_of(data.datasets[0])
    assert len(forms) == 8
    plain, mirrored = (data.latents(sample, Variant(flip_x=flip, crop=1)).mean[MAIN] for flip in (False, True))
    assert torch.allclose(plain.flip(-1), mirrored, atol=1e-5)


def test_everything_is_encoded_once(prepared: Prepared, tmp_path: Path) -> None:
    folder = folder_of(tmp_path)
    write_clip(folder / "a.mp4", range(20), 24, sound=0.5)
    write_frames(folder / "walk", range(9))
    one = {"folder": str(folder), "frames": 9}
    assert len(prepared(one)[1].shown) == 2
    assert prepared(one)[1].shown == []
    (folder / "a.mp4").rename(folder / "b.mp4")
    (folder / "walk").rename(folder / "run")
    assert prepared(one)[1].shown == [], "the name does not count"
    assert len(prepared({**one, "fps": 12})[1].shown) == 2, "other frames, and other sound"
    assert len(prepared({**one, "clip_part": "middle"})[1].shown) == 1, "the folder has no more than nine"
    frame(77).save(folder / "run" / "frame3.png")
    assert len(prepared(one)[1].shown) == 1


def test_a_clip_that_changes_while_it_is_prepared_is_told(prepared: Prepared, tmp_path: Path) -> None:
    folder = folder_of(tmp_path)
    path = write_clip(folder / "a.mp4", range(20), 16)
    data, _ = prepared({"folder": str(folder), "frames": 9})
    write_clip(path, range(20, 40), 16)
    os.utime(path, ns=(1, 1))
    for file in (tmp_path / "cache").glob("*/*.safetensors"):
        file.unlink()
    with pytest.raises(DatasetError, match=r"a\.mp4: was changed while the data was prepared"):
        data.encode_again()


# sound


def test_sound_goes_with_the_frames(prepared: Prepared, tmp_path: Path) -> None:
    """As long as they are shown, in stereo at the model's rate; the mark says whether it counts."""
    folder = folder_of(tmp_path)
    write_clip(folder / "loud.mp4", range(24), 24, sound=0.8)
    write_clip(folder / "mute.mp4", range(100, 124), 24)
    frame(200).save(folder / "still.png")
    data, base = prepared({"folder": str(folder), "frames": 9})
    heard = {numbers[0]: sound for numbers, sound in zip(base.shown, base.heard, strict=True)}
    assert {number: tuple(sound.shape) for number, sound in heard.items()} == {
        0: (2, 900),  # 9 / 16 s of 1600 samples
        100: (2, 900),
        200: (2, 100),
    }
    assert heard[0].abs().max() > 0.5
    assert not heard[100].any()
    silent = {sample.item.key: data.latents(sample, Variant()).silent for sample in data.samples[0]}
    assert silent == {"loud.mp4": False, "mute.mp4": True, "still.png": True}
    for sample in data.samples[0]:
        expected = (2, 9) if sample.frames == 9 else (2, 1)
        assert data.latents(sample, Variant()).mean[AUDIO].shape == expected


def test_a_family_may_learn_silence(prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ToyVideo, "spec", replace(ToyVideo.spec, learns_silence=True))
    folder = folder_of(tmp_path)
    write_clip(folder / "mute.mp4", range(9), 16)
    data, _ = prepared({"folder": str(folder), "frames": 9})
    latents = data.latents(data.samples[0][0], Variant())
    assert not latents.silent
    assert not latents.mean[AUDIO].any()


# batches


def test_large_clips_are_decoded_one_batch_ahead(
    prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many there are: of small ones four batches wait for the encoder."""
    begun = []
    monkeypatch.setattr(views.View, "pixels", lambda self: begun.append(self) or torch.zeros(3, 9, 64, 64))
    excerpt = Excerpt(None, tuple(range(9)))
    view = views.View(tmp_path, "", (64, 64), (0, 0, 64, 64), (64, 64), Variant(), (0, 0, 0), excerpt=excerpt)
    for most, ahead in ((1 << 26, 4), (9 * 64 * 64, 1)):
        monkeypatch.setattr(views, "PIXELS_AHEAD", most)
        begun.clear()
        batches = views.loaded({str(k): view} for k in range(20))
        for taken in range(3):
            next(batches)
            assert len(begun) <= taken + ahead
        batches.close()


def test_a_batch_holds_clips_of_one_length(prepared: Prepared, tmp_path: Path) -> None:
    folder = folder_of(tmp_path)
    for k in range(3):
        write_clip(folder / f"long{k}.mp4", range(k, k + 20), 16)
        write_clip(folder / f"short{k}.mp4", range(k, k + 6), 16)
        frame(k).save(folder / f"still{k}.png")
    data, _ = prepared({"folder": str(folder), "frames": 17}, {"folder": str(folder), "frames": 17, "fps": 8})
    order = BatchOrder(data.samples, data.datasets, 3, 0, 0.0)
    batches = [order.micro_batch(k) for k in range(order.epoch_length(0))]
    assert {len({(one.size, one.frames, one.dataset) for one in batch}) for batch in batches} == {1}, (
        "another rate has sound of another length"
    )
    drawn = sorted(one.key for batch in batches for one in batch)
    assert drawn == sorted(one.key for group in data.samples for one in group)


# what lies beside


def test_masks_are_stills_or_clips(prepared: Prepared, tmp_path: Path) -> None:
    folder, masks = folder_of(tmp_path), tmp_path / "masks"
    masks.mkdir()
    for name in ("a", "b"):
        write_clip(folder / f"{name}.mp4", range(9), 16)
    left = Image.new("L", (64, 64))
    left.paste(255, (0, 0, 32, 64))
    left.save(masks / "a.png")
    (masks / "b").mkdir()
    for k in range(9):  # from black to white with the fifth frame
        Image.new("L", (64, 64), 255 if k >= 4 else 0).save(masks / "b" / f"{k}.png")
    data, _ = prepared({"folder": str(folder), "frames": 9, "mask_folder": str(masks), "mask_minimum": 0.0})
    still, moving = (data.latents(sample, Variant()).mask for sample in data.samples[0])
    assert still.shape == moving.shape == (1, 3, 8, 8)
    assert (still[..., :4] == 2).all()
    assert not still[..., 4:].any()
    # frames 1 to 4 hold one white one, 5 to 8 are all white, the first is black: 0, 1/4 and 1 in the mean of 5/12
    expected = torch.tensor([0.0, 0.25, 1.0]) / (5 / 12)
    assert torch.allclose(moving, expected[None, :, None, None].expand(1, 3, 8, 8), atol=0.02)


def test_transparency_masks_every_frame(prepared: Prepared, tmp_path: Path) -> None:
    folder = folder_of(tmp_path)
    (folder / "walk").mkdir()
    for k in range(5):
        picture = Image.new("RGBA", (64, 64), (255, 0, 0, 255))
        picture.paste((0, 0, 0, 0), (0, 0, 64, 8 * k))
        picture.save(folder / "walk" / f"{k}.png")
    data, _ = prepared({"folder": str(folder), "frames": 5, "alpha_mask": True, "mask_minimum": 0.0})
    mask = data.latents(data.samples[0][0], Variant()).mask
    assert mask.shape == (1, 2, 8, 8)
    assert len(mask[0, 0].unique()) == 1, "the first frame is opaque"
    opaque = torch.tensor([min(row, 4) / 4 for row in range(8)])  # of the frames 1 to 4
    own = (1 + opaque.mean()) / 2
    assert torch.allclose(mask[0, 1], (opaque / own)[:, None].expand(8, 8), atol=0.01)


def test_controls_are_stills_or_clips_at_the_same_times(prepared: Prepared, tmp_path: Path) -> None:
    folder, controls = folder_of(tmp_path), tmp_path / "controls"
    controls.mkdir()
    write_clip(folder / "a.mp4", range(40), 16)
    write_clip(folder / "b.mp4", range(40, 80), 16)
    frame(222).save(folder / "c.png")
    write_clip(controls / "a.webm", range(100, 180), 32, codec="libvpx-vp9")
    frame(200).save(controls / "b.png")
    write_frames(controls / "c", range(230, 236))
    data, base = prepared(
        {"folder": str(folder), "frames": 5, "clip_part": "middle", "control_folders": [str(controls)]}
    )
    assert set(base.shown) == {
        (17, 18, 19, 20, 21),
        (134, 136, 138, 140, 142),  # of twice the rate
        (57, 58, 59, 60, 61),
        (200,),
        (222,),
        (230,),
    }
    shapes = {s.item.key: data.latents(s, Variant()).controls[0].shape for s in data.samples[0]}
    assert shapes == {"a.mp4": (4, 2, 8, 8), "b.mp4": (4, 1, 8, 8), "c.png": (4, 1, 8, 8)}
    assert len({sample.shape for sample in data.samples[0]}) == 3, "they do not share a batch"


def test_a_control_that_is_too_short_is_told(prepared: Prepared, tmp_path: Path) -> None:
    folder, controls = folder_of(tmp_path), tmp_path / "controls"
    controls.mkdir()
    write_clip(folder / "a.mp4", range(40), 16)
    write_clip(controls / "a.mp4", range(20), 16)
    with pytest.raises(DatasetError, match=r"controls.a\.mp4: has 20 frames at 16 a second, and a\.mp4 is trained on"):
        prepared({"folder": str(folder), "frames": 33, "control_folders": [str(controls)]})


@pytest.mark.parametrize("name", ["a.gif", "a.webp"])
def test_gifs_and_animated_webps_are_clips(name: str, prepared: Prepared, tmp_path: Path) -> None:
    """12 frames a second, more or less: a GIF counts in hundredths."""
    folder = folder_of(tmp_path)
    write_gif(folder / name, range(12), [80, 80, 90] * 4)
    _, base = prepared({"folder": str(folder), "frames": 100})
    times = np.cumsum([0, *([0.08, 0.08, 0.09] * 4)[:-1]])
    assert base.shown == [tuple(seen_at([*times], 16, 13))]


def test_held_out_clips_are_not_trained_on(prepared: Prepared, tmp_path: Path) -> None:
    folder = folder_of(tmp_path)
    for k in range(4):
        write_clip(folder / f"{k}.mp4", range(10 * k, 10 * k + 9), 16)
    data, _ = prepared({"folder": str(folder), "frames": 9}, validation={"every": 2, "share": 0.25})
    trained = {sample.item.key for sample in data.samples[0]}
    held = {sample.item.key for sample in data.validation}
    assert held
    assert not trained & held
    assert trained | held == {f"{k}.mp4" for k in range(4)}


def test_variable_rates_are_resampled_by_time(prepared: Prepared, tmp_path: Path) -> None:
    """Three fast frames, a pause of a second, three fast ones."""
    folder = folder_of(tmp_path)
    pts = [0, 20, 40, 1040, 1060, 1080]
    path = write_clip(folder / "a.mkv", range(6), 30, pts=pts, tick=Fraction(1, 1000))
    assert decoded(path) == [*range(6)]
    _, base = prepared({"folder": str(folder), "frames": 100})
    (numbers,) = base.shown
    assert numbers[:17] == (0, *[2] * 16), "the third one is shown for a second"
    assert numbers[17:] in {(), (5,)}, "how long the last is shown, Matroska does not say"


def test_old_settings_mean_what_they_did() -> None:
    """A data set of pictures draws the same forms as before there were clips."""
    assert variants_of(DatasetConfig(folder="x")) == [Variant()]
    assert to_image(torch.zeros(3, 8, 8)).size == (8, 8)


def test_a_data_set_may_choose_that_clips_go_on_from_their_first_frame(
    prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has no loss where the model hands it on; a still, and a set that does not choose so, are learned whole."""
    folder = folder_of(tmp_path)
    write_clip(folder / "a.mp4", range(9), 16)
    frame(5).save(folder / "still.png")
    spec = replace(ToyVideo.spec, first_frame=False, first_frame_chosen=True, first_frame_kept=True)
    monkeypatch.setattr(ToyVideo, "spec", spec)
    one = {"folder": str(folder), "frames": 9}
    data, base = prepared({**one, "first_frame": True}, one)
    found = {
        (sample.dataset, sample.item.key): data.latents(sample, Variant()) for group in data.samples for sample in group
    }
    clip = found.pop((0, "a.mp4"))
    assert clip.first_frame is not None
    assert clip.mask is not None
    assert clip.mask.shape == (1, *clip.mean[MAIN].shape[1:])
    assert clip.mask.mean((0, 2, 3)).tolist() == pytest.approx([0, 1.5, 1.5])
    assert len(found) == 3
    assert all(one.first_frame is None and one.mask is None for one in found.values())
    _, base = prepared({**one, "first_frame": True}, one)
    assert not base.shown, "both are in the cache"
    monkeypatch.setattr(ToyVideo, "spec", replace(spec, first_frame_kept=False))
    (clip, *_) = [data.latents(one, Variant()) for one in prepared({**one, "first_frame": True})[0].samples[0]]
    assert clip.mask is None
