"""What each update trains on: a function of (seed, number), whoever asks when, and whatever becomes of the cache."""

from __future__ import annotations

import shutil
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from PIL import Image

from trainer_core.config import JobConfig
from trainer_core.data.batches import BatchOrder
from trainer_core.data.cache import CacheMiss, RecentEntries, TensorCache, key_of
from trainer_core.families.flux1.model import Flux
from trainer_core.job import TrainingJob
from trainer_core.runs.events import Event, StepDone, ValidationDone
from trainer_core.training.batch_source import BatchSource, Prefetched

from .updates import drawn

if TYPE_CHECKING:
    from trainer_core.training.loop import Trainer

Made = Callable[..., "Trainer"]
DRAWN: dict[str, Any] = {"flip_x": True, "crop": "random", "caption_dropout": 0.4}
PRESERVED: dict[str, Any] = {
    "output_preservation": True,
    "output_preservation_class": "shape, thing",
    "blank_preservation": True,
    "preservation_every": 2,
}


def plain(value: Any) -> Any:
    """Bit for bit, in a form that `==` compares."""
    if isinstance(value, torch.Tensor):
        return value.shape, value.dtype, value.contiguous().numpy().tobytes()
    if is_dataclass(value):
        return {one.name: plain(getattr(value, one.name)) for one in fields(value)}
    if isinstance(value, dict):
        return {name: plain(one) for name, one in value.items()}
    return [plain(one) for one in value] if isinstance(value, list | tuple) else value


def same(one: Any, other: Any) -> bool:
    """A function, so that a failure does not print two batches."""
    return plain(one) == plain(other)


@pytest.fixture
def accumulated(made: Made, others: Path) -> Callable[..., Trainer]:
    """All that is drawn, over two sets, three micro-batches in an update."""

    def make(seed: int = 42) -> Trainer:
        regularization = {"folder": str(others), "role": "regularization", "trigger": None}
        return made(
            {**PRESERVED, "ratio": 0.25},
            datasets=[DRAWN, regularization],
            train={"batch_size": 2, "gradient_accumulation": 3, "noise_offset": 0.1, "seed": seed},
        )

    return make


# --- a function of seed and number -----------------------------------------------------------------------------------


def test_it_does_not_depend_on_what_was_asked_before(accumulated: Callable[..., Trainer]) -> None:
    trainer, again, other = accumulated(), accumulated(), accumulated(seed=43)
    straight = [trainer.batches.get(number) for number in range(6)]
    for number in (5, 0, 3, 3, 1):
        assert same(again.batches.get(number), straight[number])
    assert not any(same(one, two) for k, one in enumerate(straight) for two in straight[:k]), "no update is another's"
    assert not any(same(other.batches.get(number), straight[number]) for number in range(6))


def test_updates_follow_one_another_in_the_order_of_the_data(accumulated: Callable[..., Trainer]) -> None:
    """Update n has micro-batches 3n to 3n + 2, all of them with the number of the update."""
    trainer = accumulated()
    order = BatchOrder(trainer.data.samples, trainer.job.datasets, batch_size=2, seed=42, ratio=0.25)
    for number in range(5):
        batches = trainer.batches.get(number)
        assert [batch.samples for batch in batches] == [order.micro_batch(3 * number + k) for k in range(3)]
        assert [batch.number for batch in batches] == [number] * 3


def test_a_sample_that_comes_twice_in_an_update_is_drawn_anew(made: Made) -> None:
    """Eight batches of one are two epochs: the second time noise, time and posterior are others."""
    trainer = made(train={"gradient_accumulation": 8})
    batches = {}
    for batch in trainer.batches.get(0):
        batches.setdefault(batch.samples[0].key, []).append(batch)
    assert [len(both) for both in batches.values()] == [2] * 4
    for one, other in batches.values():
        assert not torch.equal(one.noise["main"], other.noise["main"])
        assert not torch.equal(one.t, other.t)
        assert not torch.equal(one.clean["main"], other.clean["main"]), "the posterior"


def test_what_an_update_needs_no_prompt_for_is_not_there(accumulated: Callable[..., Trainer]) -> None:
    """Preservation is of every second update, and of training sets only."""
    for number in range(4):
        for batch in accumulated().batches.get(number):
            wanted = number % 2 == 0 and batch.samples[0].dataset == 0
            assert (batch.of_class is not None, batch.blank is not None) == (wanted, wanted)
            if wanted:
                assert [one.prompt for one in batch.blank or ()] == [""] * len(batch)


# --- parts -----------------------------------------------------------------------------------------------------------


def test_a_part_is_the_batch_of_its_samples(made: Made, tmp_path: Path) -> None:
    """Drawn alone, with the same counts; one sample comes twice."""
    masks = tmp_path / "masks"
    masks.mkdir()
    for colour, half in (
        ("red", (0, 0, 32, 64)),
        ("green", (0, 0, 64, 16)),
        ("blue", (8, 8, 24, 24)),
        ("white", (0, 0, 64, 64)),
    ):
        mask = Image.new("L", (64, 64))
        mask.paste(255, half)
        mask.save(masks / f"{colour}.png")
    trainer = made(PRESERVED, dataset={**DRAWN, "mask_folder": str(masks)})
    one, two, three, four = trainer.data.samples[0]
    samples = [one, two, one, three, four]
    whole = drawn(trainer, samples, 2)
    assert whole.mask
    assert whole.of_class
    seen: dict[str, int] = {}
    for start, stop in ((0, 2), (2, 3), (3, 5)):
        part = whole.part(start, stop)
        assert len(part) == stop - start
        alone = drawn(trainer, samples[start:stop], 2, seen)
        assert (part.everyone, part.first) == (tuple(samples), start)
        assert same(replace(part, everyone=alone.everyone, first=0), alone)
    assert same(whole.part(0, 9), whole)
    assert not same(whole.part(0, 1).noise, whole.part(2, 3).noise)


# --- ahead of time ---------------------------------------------------------------------------------------------------


def test_drawing_ahead_gives_the_same_batches(accumulated: Callable[..., Trainer]) -> None:
    """In order, when batches are passed over, and when one is asked for again."""
    source = accumulated().batches
    ahead = Prefetched(source, torch.device("cpu"))
    try:
        for number in (0, 1, 2, 5, 6, 6, 3):
            assert same(ahead.get(number), source.get(number))
    finally:
        ahead.close()


def test_the_next_update_is_drawn_by_another_thread(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, bool]] = []
    begun = threading.Event()
    original = BatchSource.get

    def get(self: BatchSource, number: int) -> list:
        asked.append((number, threading.current_thread() is threading.main_thread()))
        if number == 4:
            begun.set()
        return original(self, number)

    monkeypatch.setattr(BatchSource, "get", get)
    ahead = Prefetched(made().batches, torch.device("cpu"))
    ahead.get(3)
    assert begun.wait(30), "without being asked for it"
    ahead.get(4)
    ahead.close()
    assert asked[:2] == [(3, False), (4, False)]
    assert [number for number, _ in asked].count(4) == 1


def test_no_thread_is_left_behind(job_of: Callable[..., JobConfig], tmp_path: Path) -> None:
    """Of a run that ends, and of one that fails."""

    def fails(event: Event) -> None:
        if isinstance(event, StepDone):
            raise RuntimeError("surprise")

    assert TrainingJob.new(tmp_path / "runs", job_of()).run_here(lambda _: None) == "finished"
    with pytest.raises(RuntimeError, match="surprise"):
        TrainingJob.new(tmp_path / "runs", job_of()).run_here(fails)
    assert [one.name for one in threading.enumerate() if "batches" in one.name] == []


# --- a cache that is emptied -----------------------------------------------------------------------------------------


def no_encoder(*_: object) -> None:
    raise AssertionError("an encoder is loaded")


def test_a_cache_that_was_emptied_is_told_and_nothing_encoded(
    job_of: Callable[..., JobConfig], trainer_of: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainer_core.data.prepare._MEMORY_LIMIT", 0)
    trainer = trainer_of(job_of(), tmp_path / "runs")
    expected = trainer.batches.get(1)
    shutil.rmtree(tmp_path / "runs" / ".cache")
    ahead = Prefetched(trainer.batches, torch.device("cpu"))
    with monkeypatch.context() as patch:
        for load in ("load_vae", "load_text_encoders"):
            patch.setattr(Flux, load, no_encoder)
        for source in (trainer.batches, ahead):
            with pytest.raises(CacheMiss):
                source.get(1)
    trainer.data.encode_again()
    assert same(ahead.get(1), expected), "it goes on once everything is there again"
    ahead.close()


def test_a_run_whose_cache_is_emptied_ends_as_if_it_had_not_been(
    job_of: Callable[..., JobConfig], others: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Checkpoint, previews and measurements, byte for byte; encoders are loaded between updates only."""
    monkeypatch.setattr("trainer_core.data.prepare._MEMORY_LIMIT", 0)
    drawing, loads = threading.local(), []
    get = BatchSource.get

    def watched(self: BatchSource, number: int) -> list:
        drawing.now = True
        try:
            return get(self, number)
        finally:
            drawing.now = False

    def counted(name: str) -> Callable[[Flux], None]:
        original = getattr(Flux, name)

        def load(self: Flux) -> None:
            assert not getattr(drawing, "now", False)
            loads.append(name)
            original(self)

        return load

    monkeypatch.setattr(BatchSource, "get", watched)
    for name in ("load_vae", "load_text_encoders"):
        monkeypatch.setattr(Flux, name, counted(name))
    held = {"folder": str(others), "role": "validation", "trigger": None}
    job = job_of(
        datasets=[DRAWN, held],
        train={"steps": 5, "batch_size": 2, "deterministic": True},
        sample={"prompts": ("a [trigger]",), "every": 2, "width": 64, "height": 64},
    ).but(validation={"every": 2, "draws": 1}, regularization=PRESERVED)

    def run(cleared: tuple[int, ...]) -> tuple[dict[str, bytes], int, list[float]]:
        training, told = TrainingJob.new(tmp_path / "runs", job), list[float]()

        def listen(event: Event) -> None:
            if isinstance(event, StepDone) and event.step in cleared:
                TensorCache(tmp_path / "runs" / ".cache").clear()
            if isinstance(event, ValidationDone):
                told.append(event.loss)

        before = loads.count("load_text_encoders")
        assert training.run_here(listen) == "finished"
        latest = training.run.latest()
        assert latest is not None
        files = [latest.lora, latest.state, *sorted((training.run.path / "samples").rglob("*.png"))]
        made = {f"{file.parent.name}/{file.name}": file.read_bytes() for file in files}
        return made, loads.count("load_text_encoders") - before, told

    undisturbed, once, measured = run(())
    disturbed, more, measured_too = run((1, 2, 4))  # before a plain update; before one that is measured and drawn
    assert once == 1
    assert more >= 2, "what was encoded for the first run served the second, until it was gone"
    assert len(undisturbed) == 2 + 3
    assert disturbed.keys() == undisturbed.keys()
    assert [name for name in disturbed if disturbed[name] != undisturbed[name]] == []
    assert measured_too == measured


def test_entries_in_memory_may_be_read_by_several_threads(tmp_path: Path) -> None:
    """While one draws batches, another draws previews: what is kept stays within the limit, and is counted right."""
    recent = RecentEntries(TensorCache(tmp_path), 120)
    keys = [key_of(number) for number in range(6)]
    for number, key in enumerate(keys):
        recent.put(key, {"x": torch.full((10,), float(number))})

    def read(start: int) -> bool:
        return all(
            torch.equal(recent.entry(keys[k % 6])["x"], torch.full((10,), float(k % 6)))
            for k in range(start, start + 2000, 5)
        )

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(4) as pool:
            assert all(pool.map(read, range(4)))
    finally:
        sys.setswitchinterval(interval)
    assert recent._used == 40 * len(recent._entries) <= 120
