"""Pinned checkpoints are never deleted, whatever happens to the file that names them."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest

from trainer_core.config import JobConfig
from trainer_core.errors import RunError
from trainer_core.runs.run_folder import RunFolder

FILES = {"lora.safetensors": b"lora" * 10, "state.safetensors": b"state" * 100}


@pytest.fixture
def run(tmp_path: Path, job_of: Callable[..., JobConfig]) -> RunFolder:
    return RunFolder.create(tmp_path / "runs", job_of())


def steps(run: RunFolder) -> list[int]:
    return [checkpoint.step for checkpoint in run.checkpoints()]


def test_pinned_and_best_checkpoints_are_kept(run: RunFolder) -> None:
    for step, loss in ((1, 0.4), (2, 0.2), (3, 0.3), (4, math.nan)):
        run.append_metrics({"step": step, "validation_loss": loss})
    for step in range(1, 8):
        run.save_checkpoint(step, FILES)
    run.pin(1)
    run.pin(3)
    assert run.pinned() == RunFolder.open(run.path).pinned() == {1, 3}
    run.prune_checkpoints(2, keep_best=True)
    assert steps(run) == [1, 2, 3, 6, 7]
    run.unpin(3)
    run.unpin(5)
    run.prune_checkpoints(2, keep_best=False)
    assert steps(run) == [1, 6, 7]


def test_only_what_is_there_can_be_pinned(run: RunFolder) -> None:
    with pytest.raises(RunError, match="none"):
        run.pin(1)
    run.save_checkpoint(1, FILES)
    run.save_checkpoint(2, FILES)
    (run.path / "checkpoints" / "step_00000002" / "lora.safetensors").unlink()
    with pytest.raises(RunError, match=r"2 to pin.* 1$"):
        run.pin(2)
    assert not (run.path / "pinned.json").exists()


def test_pins_written_by_hand(run: RunFolder) -> None:
    (run.path / "pinned.json").write_text("[4, 2]")
    assert run.pinned() == {2, 4}


@pytest.mark.parametrize(
    "text", ["", "[1", "{}", "[true]", '["1"]', "1", '{"steps": [1], "sha256": "0"}', "\xff", "[" * 9999]
)
def test_nothing_is_deleted_while_nobody_knows_what_is_pinned(text: str, run: RunFolder) -> None:
    for step in (1, 2, 3):
        run.save_checkpoint(step, FILES)
    (run.path / "pinned.json").write_bytes(text.encode("latin-1"))
    run.prune_checkpoints(1)
    assert steps(run) == [1, 2, 3]
    (note,) = run.repair()
    assert "pinned.json is damaged" in note
    run.save_checkpoint(4, FILES)
    run.save_checkpoint(5, FILES)
    run.prune_checkpoints(1)
    assert steps(run) == [1, 2, 3, 5]
    assert run.repair() == []


def test_no_flipped_bit_unpins(run: RunFolder) -> None:
    for step in (1, 2, 3):
        run.save_checkpoint(step, FILES)
    run.pin(1)
    run.pin(2)
    path = run.path / "pinned.json"
    whole = path.read_bytes()
    for bit in range(8 * len(whole)):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        assert run.pinned() >= {1, 2}, bytes(damaged)
