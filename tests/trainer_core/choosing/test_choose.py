"""Choosing on tiny runs: what is measured, drawn and kept, and what becomes of odd runs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from trainer_core.api import Choice, choose_checkpoint, known_choice
from trainer_core.choosing.gallery import FOLDER
from trainer_core.config import DatasetConfig, SampleConfig, ValidationConfig
from trainer_core.errors import RunError
from trainer_core.job import TrainingJob
from trainer_core.runs.run_folder import RunFolder

from ..conftest import silent
from .conftest import job_with


def steps_of(choice: Choice) -> list[int]:
    return [one.step for one in choice.checkpoints]


def without(run: RunFolder, *names: str) -> None:
    """Takes what training has logged or drawn."""
    for name in names:
        if (run.path / name).is_dir():
            shutil.rmtree(run.path / name)
        else:
            (run.path / name).unlink()


def test_what_training_measured_and_drew_is_used(run: RunFolder) -> None:
    choice = choose_checkpoint(run, pictures=1, embedding="statistics")
    logged = {line["step"]: line["validation_loss"] for line in run.metrics() if "validation_loss" in line}
    assert {one.step: one.held_out for one in (choice.base, *choice.checkpoints)} == logged
    assert (choice.drawn, choice.pictures, steps_of(choice)) == (0, 2, [2, 4])
    assert not (run.path / FOLDER).exists()
    assert choice.base.leak == 0
    assert all(one.leak is not None and one.leak > 0 for one in choice.checkpoints)
    losses = [line["loss"] for line in run.metrics() if "loss" in line]
    assert [one.train_loss for one in choice.checkpoints] == pytest.approx([sum(losses[:2]) / 2, sum(losses) / 4])


def test_what_is_measured_and_drawn_anew_is_what_training_would(run: RunFolder, trained: RunFolder) -> None:
    expected = choose_checkpoint(run, pictures=1, embedding="statistics")
    without(run, "choice.json", "samples", "metrics.jsonl")
    found = choose_checkpoint(run, pictures=1, embedding="statistics")
    assert found.drawn == 6
    for one, other in zip((found.base, *found.checkpoints), (expected.base, *expected.checkpoints), strict=True):
        assert one.held_out == pytest.approx(other.held_out, rel=1e-5)
        assert (one.leak, one.likeness) == pytest.approx((other.leak, other.likeness), abs=0.02)
    drawn = {Image.open(path).info["prompt"]: path for path in (run.path / FOLDER / "step_00000004").glob("*.png")}
    for path in trained.sample_paths(4):
        with Image.open(path) as own, Image.open(drawn[own.info["prompt"]]) as again:
            differences = [abs(a - b) for a, b in zip(own.tobytes(), again.tobytes(), strict=True)]
            assert max(differences) <= 1


def test_a_second_call_measures_nothing(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    assert known_choice(run) is None
    first = choose_checkpoint(run, pictures=2, embedding="statistics")
    assert first.drawn == 6  # one prompt of each kind is the previews', the other a caption

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("something was measured")

    monkeypatch.setattr("trainer_core.choosing.measuring.open_base", refuse)
    written = (run.path / "choice.json").stat().st_mtime_ns
    again, known = choose_checkpoint(run, pictures=2, embedding="statistics"), known_choice(run)
    assert known is not None
    for other in (again, known):
        assert (other.checkpoints, other.base, other.best) == (first.checkpoints, first.base, first.best)
        assert (other.reasons, other.notes, other.pictures) == (first.reasons, first.notes, first.pictures)
    assert (again.drawn, (run.path / "choice.json").stat().st_mtime_ns) == (0, written)
    with pytest.raises(AssertionError, match="measured"):
        choose_checkpoint(run, pictures=2, prompts=["a green [trigger]"], embedding="statistics")


def test_only_a_new_checkpoint_is_measured(run: RunFolder) -> None:
    later = run.path / "checkpoints" / "step_00000004"
    shutil.move(later, run.path.parent / "later")
    first = choose_checkpoint(run, pictures=2, embedding="statistics")
    assert (steps_of(first), first.best) == ([2], 2)
    assert first.reasons == ("Step 2 is the only checkpoint.",)
    shutil.move(run.path.parent / "later", later)
    known = known_choice(run)
    assert known is not None
    assert (steps_of(known), known.unmeasured) == ([2], (4,))
    second = choose_checkpoint(run, pictures=2, embedding="statistics")
    assert (steps_of(second), second.drawn) == ([2, 4], 2)
    assert second.checkpoints[0] == first.checkpoints[0]


@pytest.mark.parametrize(("embedding", "counts"), [("the data's own statistics", False), ("DINOv2", True)])
def test_likeness_by_the_datas_own_statistics_counts_only_without_held_out_loss(
    embedding: str, counts: bool, run: RunFolder
) -> None:
    first = choose_checkpoint(run, pictures=1, embedding="statistics")
    assert "Likeness does not count" in " ".join(first.notes)
    record = json.loads((run.path / "choice.json").read_text(encoding="utf-8"))
    record["embedding"] = embedding
    held_out, pictures = record["held_out"]["values"], record["pictures"]["values"]
    digests = [digest for digest in pictures if digest != "base"]
    # the later one is a little worse, and looks far more like the data
    for step, digest in enumerate(digests):
        held_out[digest] = {"held_out": held_out["base"]["held_out"] - 0.1 + 0.005 * step}
        pictures[digest] = {"leak": 0.0, "likeness": 0.3 + 0.5 * step, "variety": None}
    (run.path / "choice.json").write_text(json.dumps(record), encoding="utf-8")
    known = known_choice(run)
    assert known is not None
    assert known.best == (4 if counts else 2)
    assert ("Likeness does not count" in " ".join(known.notes)) != counts
    assert [one.likeness for one in known.checkpoints] == [0.3, 0.8], "told either way"


def test_without_pictures_only_losses_are_looked_at(run: RunFolder) -> None:
    choice = choose_checkpoint(run, draw=False)
    assert (choice.embedding, choice.pictures, choice.drawn) == (None, 0, 0)
    assert all(one.held_out is not None and one.leak is None for one in choice.checkpoints)
    assert choice.best == min(choice.checkpoints, key=lambda one: one.held_out or 0).step


def test_damaged_checkpoints_are_left_out_and_told(run: RunFolder) -> None:
    path = run.path / "checkpoints" / "step_00000002" / "lora.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    choice = choose_checkpoint(run, draw=False)
    assert steps_of(choice) == [4]
    assert [note for note in choice.notes if "Step 2" in note and "hash differs" in note]
    (run.path / "checkpoints" / "step_00000004" / "manifest.json").write_text("{}")
    with pytest.raises(RunError, match="no intact checkpoint"):
        choose_checkpoint(run)


def test_a_damaged_record_is_measured_again(run: RunFolder) -> None:
    expected = choose_checkpoint(run, draw=False)
    (run.path / "choice.json").write_text('{"version": 1, "held_out": {"values": 3}}')
    assert known_choice(run) is None
    assert choose_checkpoint(run, draw=False).checkpoints == expected.checkpoints


class Cancelled(Exception):
    pass


def test_what_was_done_before_a_cancel_is_kept(run: RunFolder) -> None:
    without(run, "samples", "metrics.jsonl")

    def cancel(what: str, done: int, total: int) -> None:
        if what == "drawing step 4 (3 of 3)":
            raise Cancelled

    with pytest.raises(Cancelled):
        choose_checkpoint(run, pictures=1, embedding="statistics", progress=cancel)
    assert len([*(run.path / FOLDER).glob("*/*.png")]) == 4
    assert len(json.loads((run.path / "choice.json").read_text())["held_out"]["values"]) == 3
    assert choose_checkpoint(run, pictures=1, embedding="statistics").drawn == 2


def test_a_checkpoint_that_is_deleted_meanwhile_is_left_out(run: RunFolder) -> None:
    without(run, "metrics.jsonl")

    def prune(what: str, done: int, total: int) -> None:
        if what.startswith("measuring the base"):
            run.prune_checkpoints(1)

    choice = choose_checkpoint(run, pictures=1, embedding="statistics", progress=prune)
    assert (steps_of(choice), choice.best) == ([4], 4)
    assert [note for note in choice.notes if note.startswith("Step 2 is left out: it was deleted meanwhile")]


def test_a_run_without_trigger_and_hold_out_says_what_is_not_measured(pictures: Path, tmp_path: Path) -> None:
    plain = DatasetConfig(folder=str(pictures), resolutions=(64,))
    sample = SampleConfig(prompts=(), steps=2, before_training=False)
    job = job_with(pictures, datasets=(plain,), validation=ValidationConfig(), sample=sample)
    training = TrainingJob.new(tmp_path, job, queue_up=False)
    training.run_here(silent)
    choice = choose_checkpoint(training.run, pictures=2, embedding="statistics")
    assert [(one.held_out, one.leak) for one in choice.checkpoints] == [(None, None)] * 2
    assert all(one.likeness and one.variety for one in choice.checkpoints)
    assert any("nothing is held out" in note for note in choice.notes)
    assert any("without a trigger" in note for note in choice.notes)
    assert (choice.pictures, choice.drawn) == (2, 6)
    shutil.rmtree(training.run.path / FOLDER)
    moved = job.model_copy(update={"datasets": (plain.but(folder=str(tmp_path / "gone")),)})
    training.run.write_job(moved)
    gone = choose_checkpoint(training.run, embedding="statistics")
    assert (gone.best, gone.pictures) == (None, 0)
    with pytest.MonkeyPatch.context() as patch:
        patch.delattr("trainer_core.choosing.measuring.open_base")
        assert choose_checkpoint(training.run, embedding="statistics").notes == gone.notes
    assert any("gone" in note for note in gone.notes)


def test_pictures_that_are_gone_are_told(run: RunFolder, tmp_path: Path) -> None:
    without(run, "metrics.jsonl")
    job = run.job()
    run.write_job(job.model_copy(update={"datasets": (job.datasets[0].but(folder=str(tmp_path / "gone")),)}))
    choice = choose_checkpoint(run, pictures=1, embedding="statistics")
    assert [one.held_out for one in choice.checkpoints] == [None, None]
    assert all(one.leak and one.likeness is None for one in choice.checkpoints), "the previews are there"
    assert [note.partition(" is not")[0] for note in choice.notes] == ["Held-out loss", "Likeness"]


def test_nothing_of_the_run_is_changed(run: RunFolder) -> None:
    def files() -> Iterator[tuple[Path, bytes]]:
        return ((path, path.read_bytes()) for path in sorted(run.path.rglob("*")) if path.is_file())

    before = dict(files())
    choose_checkpoint(run, pictures=2, embedding="statistics")
    after = dict(files())
    assert {path: data for path, data in after.items() if path in before} == before
    added = {path.relative_to(run.path).parts[0] for path in after.keys() - before.keys()}
    assert added == {"choice.json", FOLDER}
