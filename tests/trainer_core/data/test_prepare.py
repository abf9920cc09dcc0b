"""Encoding happens when something changed and only then; what comes out is what the encoders gave."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from trainer_core.config import JobConfig
from trainer_core.data.cache import TensorCache
from trainer_core.data.images import load_image, to_bucket
from trainer_core.data.prepare import PreparedData
from trainer_core.data.variants import Variant
from trainer_core.errors import Interrupted
from trainer_core.families.base import Base
from trainer_core.families.conditioning import MAIN
from trainer_core.families.registry import open_base


class Counter:
    """Counts what an encoder is given, and passes it on."""

    def __init__(self, base: Base) -> None:
        self.texts: list[str] = []
        self.images = 0
        self._prompts, self._pixels = base.encode_prompts, base.encode_pixels

    def encode_prompts(self, prompts: list[str], pictures: Any = ()) -> Any:
        self.texts += dict.fromkeys(prompts)  # the same with texts
        return self._prompts(prompts, pictures)

    def encode_pixels(self, pixels: torch.Tensor) -> Any:
        self.images += len(torch.unique(pixels, dim=0))  # the last of a batch is repeated to fill it
        return self._pixels(pixels)


@pytest.fixture
def copied(pictures: Path, tmp_path: Path) -> Path:
    """Pictures that a test may change."""
    return Path(shutil.copytree(pictures, tmp_path / "copied"))


@pytest.fixture
def prepare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, base: Base) -> Callable[..., tuple[PreparedData, Counter]]:
    """Prepares a job's data against one cache; says what had to be encoded. The session's encoders are lent to it."""

    def prepare(job: JobConfig, extra: tuple[str, ...] = ()) -> tuple[PreparedData, Counter]:
        opened = open_base(job.model)
        if job.model.vae_dtype == job.model.text_encoder_dtype == "auto":
            opened._encoders, opened._vae = base._encoders, base._vae  # type: ignore[attr-defined]
        counter = Counter(opened)
        opened.encode_prompts, opened.encode_pixels = counter.encode_prompts, counter.encode_pixels  # type: ignore[attr-defined, method-assign]
        data = PreparedData(job, opened, TensorCache(tmp_path / "cache"))
        data.encode_texts(extra, lambda *_: None)
        data.encode_images(lambda *_: None)
        return data, counter

    return prepare


def test_the_second_time_nothing_is_encoded(job_of: Any, prepare: Any) -> None:
    _, first = prepare(job_of())
    assert sorted(first.texts) == [f"a {colour} zorble" for colour in ("blue", "green", "red", "white")]
    assert first.images == 4
    _, second = prepare(job_of(train={"seed": 7, "steps": 9}))
    assert (second.texts, second.images) == ([], 0)


def test_a_touched_or_moved_file_is_not_encoded_again(job_of: Any, prepare: Any, copied: Path) -> None:
    prepare(job_of(dataset={"folder": str(copied)}))
    for path in copied.iterdir():
        os.utime(path, (1, 1))
    (copied / "red.png").rename(copied / "crimson.png")
    (copied / "red.txt").rename(copied / "crimson.txt")
    _, again = prepare(job_of(dataset={"folder": str(copied)}))
    assert (again.texts, again.images) == ([], 0)


def test_a_changed_picture_is_encoded_again_even_under_its_old_time_and_size(
    job_of: Any, prepare: Any, copied: Path
) -> None:
    path = copied / "red.bmp"
    Image.new("RGB", (64, 64), "red").save(path)
    job = job_of(dataset={"folder": str(copied), "default_caption": "x"})
    old, _ = prepare(job)
    status = path.stat()
    Image.new("RGB", (64, 64), "blue").save(path)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    new, counter = prepare(job)
    assert counter.images == 1
    (sample,) = [s for s in new.samples[0] if s.item.key == "red.bmp"]
    assert not torch.equal(old.latents(sample, Variant()).mean[MAIN], new.latents(sample, Variant()).mean[MAIN])


def test_a_changed_caption_is_encoded_again_alone(job_of: Any, prepare: Any, copied: Path) -> None:
    prepare(job_of(dataset={"folder": str(copied)}))
    (copied / "red.txt").write_text("a crimson [trigger]")
    _, counter = prepare(job_of(dataset={"folder": str(copied)}))
    assert (counter.texts, counter.images) == (["a crimson zorble"], 0)


def test_another_trigger_another_resolution_another_precision(job_of: Any, prepare: Any) -> None:
    prepare(job_of())
    _, counter = prepare(job_of(dataset={"trigger": "snark"}))
    assert (len(counter.texts), counter.images) == (4, 0)
    _, counter = prepare(job_of(dataset={"resolutions": (48,)}))
    assert (counter.texts, counter.images) == ([], 4)
    _, counter = prepare(job_of(dataset={"flip_x": True}))
    assert (counter.texts, counter.images) == ([], 4), "the mirrored ones alone"
    _, counter = prepare(job_of(model={"vae_dtype": "bfloat16"}))
    assert (counter.texts, counter.images) == ([], 4)
    _, counter = prepare(job_of(model={"text_encoder_dtype": "bfloat16"}))
    assert (len(counter.texts), counter.images) == (4, 0)


def test_a_damaged_entry_is_made_again(job_of: Any, prepare: Any, tmp_path: Path) -> None:
    before, _ = prepare(job_of())
    for path in (tmp_path / "cache").rglob("*.safetensors"):
        path.write_bytes(path.read_bytes()[:-3])
    after, counter = prepare(job_of())
    assert (len(counter.texts), counter.images) == (4, 4)
    sample = before.samples[0][0]
    assert torch.equal(before.latents(sample, Variant()).mean[MAIN], after.latents(sample, Variant()).mean[MAIN])


def test_latents_are_what_the_vae_gives_for_the_picture(job_of: Any, prepare: Any, base: Base) -> None:
    data, _ = prepare(job_of(dataset={"flip_x": True, "resolutions": (48, 64)}))
    assert len(data.samples[0]) == 8
    for sample in data.samples[0]:
        pixels = to_bucket(load_image(sample.item.path), sample.size)
        for flip in (False, True):
            mean, std = base.encode_pixels((pixels.flip(-1) if flip else pixels)[None])
            latents = data.latents(sample, Variant(flip_x=flip))
            # the VAE computes a little differently for one picture than for several
            torch.testing.assert_close(latents.mean[MAIN], mean[MAIN][0], rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(latents.std[MAIN], std[MAIN][0], rtol=1e-4, atol=1e-5)


def test_latents_do_not_depend_on_what_else_was_missing(job_of: Any, prepare: Any, tmp_path: Path) -> None:
    """Bit for bit: a run that goes on with a cache that lost some entries goes on as if it had not."""
    before, _ = prepare(job_of(dataset={"flip_x": True}))
    kept = [before.latents(sample, Variant(flip)) for sample in before.samples[0] for flip in (False, True)]
    for number, path in enumerate(sorted((tmp_path / "cache").rglob("*.safetensors"))):
        if number % 3:
            path.unlink()
    after, counter = prepare(job_of(dataset={"flip_x": True}))
    assert counter.images
    again = [after.latents(sample, Variant(flip)) for sample in after.samples[0] for flip in (False, True)]
    for one, other in zip(kept, again, strict=True):
        assert torch.equal(one.mean[MAIN], other.mean[MAIN])
        assert torch.equal(one.std[MAIN], other.std[MAIN])


def test_texts_are_what_the_encoders_give_alone(job_of: Any, prepare: Any, base: Base) -> None:
    """Bit for bit: an embedding must not depend on which other texts were missing from the cache."""
    data, _ = prepare(job_of(), extra=("", "a red circle", "x", "y", "z", "q"))
    for text in ("a red zorble", "a white zorble", "", "a red circle"):
        (alone,) = base.encode_prompts([text])
        for name, value in alone.items():
            assert torch.equal(data.text(text)[name], value), text


def test_a_stop_is_heard_while_encoding(job_of: Any, base: Base, tmp_path: Path) -> None:
    calls = 0

    def progress(*_: object) -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise Interrupted

    opened = open_base(job_of().model)
    opened._encoders, opened._vae = base._encoders, base._vae  # type: ignore[attr-defined]
    data = PreparedData(job_of(), opened, TensorCache(tmp_path / "cache"))
    data.encode_texts([], lambda *_: None)
    with pytest.raises(Interrupted):
        data.encode_images(progress)
    data.encode_texts([], lambda *_: None)
    data.encode_images(lambda *_: None)
    assert data.latents(data.samples[0][0], Variant()).mean[MAIN].shape == (16, 8, 8)


def test_digest_of_the_data_is_of_its_content_and_not_of_its_place(
    job_of: Any, prepare: Any, copied: Path, pictures: Path
) -> None:
    here, there = prepare(job_of())[0].digest(), prepare(job_of(dataset={"folder": str(copied)}))[0].digest()
    assert here == there
    (copied / "red.txt").write_text("something else")
    changed = prepare(job_of(dataset={"folder": str(copied)}))[0].digest()
    assert changed != here
    Image.new("RGB", (64, 64)).save(copied / "red.png")
    assert prepare(job_of(dataset={"folder": str(copied)}))[0].digest() not in {here, changed}


def test_the_memory_limit_holds_and_loses_nothing(job_of: Any, prepare: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer_core.data.prepare._MEMORY_LIMIT", 10_000)
    data, _ = prepare(job_of())
    for _ in range(2):
        for sample in data.samples[0]:
            assert data.latents(sample, Variant()).mean[MAIN].shape == (16, 8, 8)
