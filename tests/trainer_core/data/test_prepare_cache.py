"""The cache follows what changed and only that: pictures, masks, control images, settings; with a stand-in encoder."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from trainer_core.data import views
from trainer_core.data.prepare import PreparedData
from trainer_core.data.variants import CROPS, Variant, variants_of
from trainer_core.errors import BaseModelError, DatasetError
from trainer_core.families.conditioning import MAIN, each

NAMES = ("a", "b", "c")


def noise(seed: int, size: tuple[int, int] = (64, 64), mode: str = "RGB") -> Image.Image:
    bands = len(mode) if mode != "L" else 1
    values = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], bands), np.uint8)
    return Image.fromarray(values.squeeze())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three pictures of noise with a mask and a control image each."""
    for number, name in enumerate(NAMES):
        for place, mode in enumerate(("images", "masks", "controls")):
            (tmp_path / mode).mkdir(exist_ok=True)
            image = noise(10 * number + place, mode="L" if mode == "masks" else "RGB")
            image.save(tmp_path / mode / f"{name}.bmp")
    return tmp_path


@pytest.fixture
def config(folder: Path) -> dict[str, Any]:
    return {
        "folder": str(folder / "images"),
        "mask_folder": str(folder / "masks"),
        "control_folders": [str(folder / "controls")],
    }


@pytest.fixture(autouse=True)
def count(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Counts what is decoded for the encoder, and masks that are read."""
    counts = {"pixels": 0, "masks": 0}
    pixels, mask = views.View.pixels, views.View.mask

    def counted_pixels(self: views.View) -> torch.Tensor:
        counts["pixels"] += 1
        return pixels(self)

    def counted_mask(self: views.View, *arguments: Any) -> torch.Tensor:
        counts["masks"] += 1
        return mask(self, *arguments)

    monkeypatch.setattr(views.View, "pixels", counted_pixels)
    monkeypatch.setattr(views.View, "mask", counted_mask)
    return counts


@pytest.fixture
def prepare(prepared: Any, count: dict[str, int]) -> Callable[..., tuple[PreparedData, dict[str, int]]]:
    def prepare(*datasets: dict[str, Any], **sections: Any) -> tuple[PreparedData, dict[str, int]]:
        before = dict(count)
        data, _ = prepared(*datasets, **sections)
        return data, {name: count[name] - before[name] for name in count}

    return prepare


def plain(data: PreparedData, name: str) -> Any:
    (sample,) = [sample for sample in data.samples[0] if sample.item.key == f"{name}.bmp"]
    return data.latents(sample, Variant())


def rewritten(path: Path, image: Image.Image) -> None:
    """Another picture of the same size in bytes, under the old times."""
    status = path.stat()
    image.save(path)
    assert path.stat().st_size == status.st_size
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_what_was_touched_moved_or_only_renamed_costs_nothing(
    prepare: Any, config: dict[str, Any], folder: Path
) -> None:
    data, first = prepare(config)
    assert first == {"pixels": 6, "masks": 3}
    for path in folder.rglob("*.bmp"):
        os.utime(path, (1, 1))
        path.rename(path.with_stem(f"other {path.stem}"))
    (folder / "masks").rename(folder / "M")
    again, second = prepare({**config, "mask_folder": str(folder / "M")})
    assert second == {"pixels": 0, "masks": 0}
    assert torch.equal(plain(again, "other a").mask, plain(data, "a").mask)


@pytest.mark.parametrize(
    ("which", "cost"),
    [
        ("images", {"pixels": 1, "masks": 0}),
        ("masks", {"pixels": 0, "masks": 1}),
        ("controls", {"pixels": 1, "masks": 0}),
    ],
)
def test_an_edited_file_is_encoded_again_alone(
    which: str, cost: dict[str, int], prepare: Any, config: dict[str, Any], folder: Path
) -> None:
    """Even if its size and times are the old ones."""
    before, _ = prepare(config)
    rewritten(folder / which / "b.bmp", noise(99, mode="L" if which == "masks" else "RGB"))
    after, counts = prepare(config)
    assert counts == cost
    old, new = plain(before, "b"), plain(after, "b")
    assert torch.equal(old.mean[MAIN], new.mean[MAIN]) is (which != "images")
    assert torch.equal(old.mask, new.mask) is (which != "masks")
    assert torch.equal(old.controls[0], new.controls[0]) is (which != "controls")
    for name in ("a", "c"):
        assert torch.equal(plain(before, name).mean[MAIN], plain(after, name).mean[MAIN])


def test_random_parts_follow_the_picture_for_its_mask_and_control_too(
    prepare: Any, config: dict[str, Any], folder: Path
) -> None:
    """Another file is cropped elsewhere; a mask or control image that stayed must be cropped with it."""
    for path in folder.rglob("*.bmp"):
        noise(len(path.parent.name), (96, 96), "L" if path.parent.name == "masks" else "RGB").save(path)
    config["crop"] = "random"
    prepare(config)
    rewritten(folder / "images" / "b.bmp", noise(99, (96, 96)))
    _, counts = prepare(config)
    assert counts == {"pixels": 2 * CROPS, "masks": CROPS}


@pytest.mark.parametrize(
    ("setting", "cost"),
    [
        ({"resolutions": (48,)}, {"pixels": 6, "masks": 3}),
        ({"flip_x": True}, {"pixels": 6, "masks": 3}),
        ({"flip_x": True, "flip_y": True}, {"pixels": 18, "masks": 9}),
        ({"background": "#00ff00"}, {"pixels": 6, "masks": 0}),
        ({"background": "#ffffff"}, {"pixels": 0, "masks": 0}),
        ({"invert_mask": True, "mask_minimum": 0.3}, {"pixels": 0, "masks": 0}),
        ({"mask_folder": None}, {"pixels": 0, "masks": 0}),
        ({"mask_folder": None, "alpha_mask": True}, {"pixels": 0, "masks": 3}),
        ({"control_folders": []}, {"pixels": 0, "masks": 0}),
        ({"weight": 3, "adapter_strength": 0.5, "default_caption": "b"}, {"pixels": 0, "masks": 0}),
    ],
    ids=str,
)
def test_a_setting_costs_what_it_changes(
    setting: dict[str, Any], cost: dict[str, int], prepare: Any, config: dict[str, Any]
) -> None:
    prepare(config)
    data, counts = prepare({**config, **setting})
    assert counts == cost
    for sample in data.samples[0]:
        for variant in variants_of(data.datasets[0]):
            data.latents(sample, variant)


def test_another_encoder_costs_the_pictures_and_not_the_masks(prepare: Any, config: dict[str, Any]) -> None:
    """Precision is a part of the fingerprint (test_flux.py)."""
    prepare(config)
    assert prepare(config, mark="bfloat16")[1] == {"pixels": 6, "masks": 0}


def test_a_change_of_background_shows_where_a_picture_is_transparent(prepare: Any, folder: Path) -> None:
    for path in (folder / "images").iterdir():
        path.unlink()
    Image.new("RGBA", (64, 64), (0, 0, 0, 0)).save(folder / "images" / "a.png")
    config = {"folder": str(folder / "images")}
    for colour, expected in (("red", [1, -1, -1]), ("blue", [-1, -1, 1]), ("red", [1, -1, -1])):
        data, _ = prepare({**config, "background": colour})
        mean = data.latents(data.samples[0][0], Variant()).mean[MAIN]
        assert mean.mean((1, 2)).tolist() == expected


def test_equal_files_and_sets_are_encoded_once(prepare: Any, config: dict[str, Any], folder: Path) -> None:
    (folder / "images" / "d.bmp").write_bytes((folder / "images" / "a.bmp").read_bytes())
    _, counts = prepare({"folder": config["folder"]}, {"folder": config["folder"], "weight": 2})
    assert counts["pixels"] == 3


def test_a_target_that_is_also_a_control_is_encoded_once(prepare: Any, config: dict[str, Any], folder: Path) -> None:
    shutil.copytree(config["folder"], folder / "same")
    _, counts = prepare({"folder": config["folder"], "control_folders": [str(folder / "same")]})
    assert counts["pixels"] == 3


def test_a_file_that_changes_while_the_data_is_prepared_is_told(
    prepared: Any, config: dict[str, Any], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would be cached under what it was when it was scanned, and stay wrong for ever."""

    def encode_texts(*_: Any) -> None:
        rewritten(folder / "images" / "b.bmp", noise(99))

    monkeypatch.setattr(PreparedData, "encode_texts", encode_texts)
    with pytest.raises(DatasetError, match=r"b\.bmp: was changed.*again"):
        prepared(config)


def test_pictures_are_encoded_in_batches_of_one_size(prepared: Any, folder: Path) -> None:
    """As many as fit into a megapixel, at most eight; the last batch of a size is filled up."""
    for number in range(11):
        noise(100 + number).save(folder / "images" / f"{number}.png")
    _, base = prepared({"folder": str(folder / "images"), "resolutions": (64, 48)})
    assert sorted(base.batches) == [(8, 3, 48, 48)] * 2 + [(8, 3, 64, 64)] * 2
    assert (views.batch_size((1024, 1024)), views.batch_size((512, 512)), views.batch_size((2048, 1024))) == (1, 4, 1)


def test_progress_counts_pictures_up_to_their_number(prepared: Any, config: dict[str, Any]) -> None:
    data, base = prepared(config)
    heard: list[tuple[str, int, int]] = []
    data.encode_images(lambda *what: heard.append(what))
    assert heard == [("looking through the cache", 0, 3)]
    base.mark = "other"
    heard.clear()
    data.encode_images(lambda *what: heard.append(what))
    told = [(done, total) for what, done, total in heard if what == "encoding images"]
    assert told == [(0, 6), (6, 6)]


def test_latents_that_are_not_finite_are_told_and_not_kept(
    prepared: Any, config: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    data, base = prepared(config)
    base.mark = "half precision"
    good = base.encode_pixels

    def overflowing(pixels: torch.Tensor) -> Any:
        mean, std = good(pixels)
        return each(lambda one: one.fill_(float("nan")), mean), std

    monkeypatch.setattr(base, "encode_pixels", overflowing)
    with pytest.raises(BaseModelError, match=r"not finite.*vae_dtype"):
        data.encode_images(lambda *_: None)
    monkeypatch.setattr(base, "encode_pixels", good)
    data.encode_images(lambda *_: None)
    assert plain(data, "a").mean[MAIN].isfinite().all()


def test_a_broken_file_ends_the_encoding_with_its_name(prepared: Any, config: dict[str, Any], folder: Path) -> None:
    path = folder / "controls" / "c.bmp"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(DatasetError, match=r"c\.bmp.*cannot be read"):
        prepared(config)


def test_a_text_is_encoded_the_same_alone_and_among_others(
    prepared: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Libraries compute differently for another number of texts: here the number is all that the embedding says."""

    def by_number(self: Any, prompts: list[str], _: object) -> list[dict[str, torch.Tensor]]:
        return [{"text": torch.tensor([float(len(prompts))])} for _ in prompts]

    for number in range(9):
        noise(100 + number).save(folder / "images" / f"{number}.png")
        (folder / "images" / f"{number}.txt").write_text(f"picture {number}")
    _, base = prepared({"folder": str(folder / "images")})
    monkeypatch.setattr(type(base), "encode_prompts", by_number)
    many, _ = prepared({"folder": str(folder / "images")}, mark="many")
    (folder / "images" / "4.txt").write_text("another")
    one, _ = prepared({"folder": str(folder / "images")}, mark="many")
    assert len({float(data.text(text)["text"]) for data, text in ((many, "picture 8"), (one, "another"))}) == 1


WRITER = """
import sys, torch
from pathlib import Path
from trainer_core.data.cache import TensorCache, key_of
cache = TensorCache(Path(sys.argv[1]))
print("ready", flush=True)
sys.stdin.readline()
for number in range(60):
    key = key_of("entry", number)
    entry = cache.get(key)
    if entry is None:
        cache.put(key, {"mean": torch.full((64, 64), float(number))})
    entry = cache.get(key)
    assert entry is not None and torch.equal(entry["mean"], torch.full((64, 64), float(number))), number
print("done", flush=True)
"""


def test_runs_that_write_the_same_cache_at_once(tmp_path: Path) -> None:
    """Three processes, the same sixty entries, begun together: whatever the order, each reads what was meant."""
    command = [sys.executable, "-c", WRITER, str(tmp_path / "cache")]
    root = Path(__file__).parents[3]
    writers = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=root) for _ in range(3)
    ]
    for writer in writers:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.write("\n")
        writer.stdin.flush()
    assert [writer.communicate(timeout=120)[0] for writer in writers] == ["done\n"] * 3
    assert [writer.returncode for writer in writers] == [0, 0, 0]
    assert len(list((tmp_path / "cache").rglob("*.safetensors"))) == 60
    assert not list((tmp_path / "cache").rglob("*.tmp"))
