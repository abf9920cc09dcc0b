"""Checkpoints: whole or absent, damage noticed, nothing lost to a failure or a kill."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from trainer_core.errors import SaveError
from trainer_core.runs import checkpoints as checkpoints_module
from trainer_core.runs.checkpoints import Checkpoint, Checkpoints

FILES = {"lora.safetensors": b"lora" * 10, "state.safetensors": b"state" * 100}


@pytest.fixture
def found(tmp_path: Path) -> Checkpoints:
    return Checkpoints(tmp_path / "checkpoints")


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def steps(found: Checkpoints) -> list[int]:
    return [checkpoint.step for checkpoint in found.intact()]


def test_a_checkpoint(found: Checkpoints) -> None:
    checkpoint = found.save(250, FILES)
    assert checkpoint == Checkpoint(250, found.folder / "step_00000250")
    assert checkpoint.lora.read_bytes() == FILES["lora.safetensors"]
    assert checkpoint.state.read_bytes() == FILES["state.safetensors"]
    manifest = json.loads((checkpoint.path / "manifest.json").read_text())
    assert manifest["step"] == 250
    assert manifest["files"]["lora.safetensors"]["size"] == 40
    # printf 'lora%.0s' {1..10} | sha256sum
    assert manifest["files"]["lora.safetensors"]["sha256"].startswith("8aaad4103d75f7af")
    assert [path.name for path in (found.folder).iterdir()] == ["step_00000250"]
    assert found.latest() == checkpoint


def test_the_manifest_is_written_last(found: Checkpoints, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[str] = []
    original = checkpoints_module.write_durably

    def record(path: Path, data: bytes) -> None:
        written.append(path.name)
        original(path, data)

    monkeypatch.setattr(checkpoints_module, "write_durably", record)
    found.save(1, FILES)
    assert written[-1] == "manifest.json"
    assert len(written) == 3


DAMAGE: dict[str, Callable[[Path], object]] = {
    "a file truncated": lambda p: (p / "state.safetensors").write_bytes(FILES["state.safetensors"][:-1]),
    "a file grown": lambda p: (p / "state.safetensors").write_bytes(FILES["state.safetensors"] + b"x"),
    "a bit flipped": lambda p: (p / "lora.safetensors").write_bytes(b"mora" + FILES["lora.safetensors"][4:]),
    "a file empty": lambda p: (p / "lora.safetensors").write_bytes(b""),
    "a file gone": lambda p: (p / "state.safetensors").unlink(),
    "no manifest": lambda p: (p / "manifest.json").unlink(),
    "manifest empty": lambda p: (p / "manifest.json").write_bytes(b""),
    "manifest zeros": lambda p: (p / "manifest.json").write_bytes(b"\0" * 50),
    "manifest cut": lambda p: (p / "manifest.json").write_bytes((p / "manifest.json").read_bytes()[:60]),
    "manifest a list": lambda p: (p / "manifest.json").write_text("[]"),
    "manifest without files": lambda p: (p / "manifest.json").write_text('{"step": 2, "files": {}}'),
    "manifest with odd files": lambda p: (p / "manifest.json").write_text('{"step": 2, "files": [1]}'),
    "manifest not text": lambda p: (p / "manifest.json").write_bytes(b"\xff\xfe"),
    "manifest of another step": lambda p: (p / "manifest.json").write_text(
        (p / "manifest.json").read_text().replace('"step": 2', '"step": 3')
    ),
    "the folder empty": lambda p: [file.unlink() for file in p.iterdir()],  # type: ignore[func-returns-value]
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=list(DAMAGE))
def test_a_damaged_checkpoint_is_skipped_and_told(damage: Callable[[Path], object], found: Checkpoints) -> None:
    for step in (1, 2):
        found.save(step, FILES)
    damage(found.folder / "step_00000002")
    assert steps(found) == [1]
    assert found.latest() == Checkpoint(1, found.folder / "step_00000001")
    problems = {checkpoint.step: problem for checkpoint, problem in found.examine()}
    assert problems[1] is None
    assert problems[2]


def test_what_is_no_checkpoint_is_not_looked_at(found: Checkpoints) -> None:
    found.save(1, FILES)
    for name in ("step_x", ".tmp_1234", "best", "step_-0000001", "step_²", "step_"):
        (found.folder / name).mkdir()
    assert steps(found) == [1]


def test_checkpoints_come_in_the_order_of_their_steps(found: Checkpoints) -> None:
    for step in (10, 9, 123456789, 100):
        found.save(step, FILES)
    assert steps(found) == [9, 10, 100, 123456789]
    assert found.latest() is not None
    assert found.latest().step == 123456789  # type: ignore[union-attr]


def full(*_: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def attempt(save: Callable[[], object]) -> str:
    """What the user is told if it fails, or nothing."""
    try:
        save()
    except SaveError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.parametrize("after", range(4))
def test_a_failed_save_leaves_everything_as_it_was(
    call: str, after: int, found: Checkpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk fills up at each of the moments when something is written."""
    found.save(1, FILES)
    before, calls, original = content(found.folder), 0, getattr(os, call)

    def failing(*arguments: Any) -> None:
        nonlocal calls
        calls += 1
        full() if calls > after else original(*arguments)

    monkeypatch.setattr(os, call, failing)
    message = attempt(lambda: found.save(2, FILES))
    monkeypatch.undo()
    if calls > after:
        assert "disk is full" in message
        assert content(found.folder) == before
        assert found.save(2, FILES).step == 2
    assert steps(found) == [1, 2]


@pytest.mark.parametrize("after", range(3))
def test_a_failed_second_save_of_a_step_keeps_the_first(
    after: int, found: Checkpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    found.save(1, FILES)
    calls, original = 0, os.replace

    def failing(*arguments: Any) -> None:
        nonlocal calls
        calls += 1
        full() if calls == after + 1 else original(*arguments)

    monkeypatch.setattr(os, "replace", failing)
    attempt(lambda: found.save(1, FILES))
    monkeypatch.undo()
    assert steps(found) == [1]


def test_saving_over_a_damaged_checkpoint(found: Checkpoints) -> None:
    found.save(1, FILES)
    (found.folder / "step_00000001" / "lora.safetensors").write_bytes(b"")
    found.save(1, FILES)
    assert steps(found) == [1]
    assert [path.name for path in (found.folder).iterdir()] == ["step_00000001"]


def test_pruning_keeps_the_newest(found: Checkpoints) -> None:
    for step in range(1, 6):
        found.save(step, FILES)
    found.prune(2)
    assert steps(found) == [4, 5]
    found.prune(2)
    assert steps(found) == [4, 5]


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_pruning_never_prefers_a_damaged_checkpoint(keep: int, found: Checkpoints) -> None:
    """The run went on from 4, as 8 was damaged, and has just saved 6: that one is not the oldest."""
    for step in (2, 4, 7, 8):
        found.save(step, FILES)
    for step in (7, 8):
        (found.folder / f"step_0000000{step}" / "state.safetensors").write_bytes(b"x")
    found.save(6, FILES)
    found.prune(keep)
    assert steps(found) == [2, 4, 6][-keep:]


def test_what_is_spared_is_not_pruned(found: Checkpoints) -> None:
    for step in range(1, 8):
        found.save(step, FILES)
    found.prune(2, {1, 4, 99})
    assert steps(found) == [1, 4, 6, 7]
    found.prune(2, {4})
    assert steps(found) == [4, 6, 7]


def test_nothing_is_pruned_while_nothing_is_intact(found: Checkpoints) -> None:
    for step in (1, 2):
        found.save(step, FILES)
        (found.folder / f"step_0000000{step}" / "manifest.json").unlink()
    found.prune(1)
    assert len(list(found.folder.iterdir())) == 2


def test_pruning_leaves_newer_folders_that_look_damaged(found: Checkpoints) -> None:
    """They may be on their way here, from a backup say; older ones go."""
    for step in (1, 2, 3):
        found.save(step, FILES)
    for step in (1, 3):
        (found.folder / f"step_0000000{step}" / "state.safetensors").unlink()
    found.prune(1)
    assert sorted(path.name for path in found.folder.iterdir()) == ["step_00000002", "step_00000003"]


def test_the_manifest_is_of_what_should_be_there(found: Checkpoints, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that stores something else than it was given is noticed, and the checkpoint before stays."""
    found.save(1, FILES)
    original = checkpoints_module.write_durably

    def faulty(path: Path, data: bytes) -> None:
        original(path, data.replace(b"lora", b"loda") if path.name == "lora.safetensors" else data)

    monkeypatch.setattr(checkpoints_module, "write_durably", faulty)
    found.save(2, FILES)
    found.prune(1)
    assert steps(found) == [1]


# --- kills -----------------------------------------------------------------------------------------------------------


def on_its_way_to_the_disk(folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Renames, deletions and flushes from now on, in order; "flush" is one of `folder`'s own entries."""
    seen: list[str] = []
    fsync, replace, rmtree = os.fsync, os.replace, shutil.rmtree

    def flush(handle: int) -> None:
        if folder.exists() and os.path.samestat(os.fstat(handle), folder.stat()):
            seen.append("flush")
        fsync(handle)

    def rename(source: Path, target: Path) -> None:
        replace(source, target)
        seen.append(f"rename {target.name[:5]}")

    def delete(path: Path, **options: Any) -> None:
        if path.exists():
            seen.append(f"delete {path.name[:5]}")
        rmtree(path, **options)

    monkeypatch.setattr(os, "fsync", flush)
    monkeypatch.setattr(os, "replace", rename)
    monkeypatch.setattr(shutil, "rmtree", delete)
    return seen


@pytest.mark.skipif(sys.platform == "win32", reason="folders cannot be flushed there")
def test_a_name_is_on_the_disk_before_what_it_replaces_goes(
    found: Checkpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a power cut, a folder holds what it held at its last flush: renames that come later are undone."""
    with monkeypatch.context() as patch:
        seen = on_its_way_to_the_disk(found.folder.parent, patch)
        found.save(1, FILES)
    assert seen == ["flush", "rename step_"], "the checkpoints' own folder is there before the first of them"
    seen = on_its_way_to_the_disk(found.folder, monkeypatch)
    found.save(2, FILES)
    assert seen == ["rename step_", "flush"]
    seen.clear()
    found.save(2, NEW)
    assert seen == ["rename .old_", "rename step_", "flush", "delete .old_"]
    seen.clear()
    (found.folder / "step_00000002").rename(found.folder / ".old_12345678")
    assert found.clear_leftovers() == [2]
    assert seen == ["rename step_", "flush"]


class Killed(BaseException):
    pass


class Kill:
    """The process dies before its n-th change to the disk: nothing that comes later happens, no cleaning up either."""

    def __init__(self, after: int, monkeypatch: pytest.MonkeyPatch) -> None:
        self.left = after
        for owner, name in ((os, "replace"), (os, "fsync"), (shutil, "rmtree"), (Path, "mkdir")):
            monkeypatch.setattr(owner, name, self._mortal(getattr(owner, name), name))

    def _mortal(self, original: Callable[..., Any], name: str) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            self.left -= 1
            if self.left == -1 and name == "rmtree":  # in the middle of it
                folder = Path(arguments[0])
                for path in sorted(folder.iterdir())[:1] if folder.is_dir() else []:
                    path.unlink()
            if self.left == -1 and name == "fsync" and os.fstat(arguments[0]).st_size > 100:
                os.truncate(arguments[0], 50)
            if self.left < 0:
                raise Killed
            return original(*arguments, **options)

        return call

    @property
    def came(self) -> bool:
        return self.left < 0


NEW = {"lora.safetensors": b"new" * 10, "state.safetensors": b"newer" * 100}


@pytest.mark.parametrize("after", range(14))
@pytest.mark.parametrize("step", [2, 3], ids=["the same step again", "the next step"])
def test_killed_at_each_moment_of_a_save(
    step: int, after: int, found: Checkpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    for earlier in (1, 2):
        found.save(earlier, FILES)
    with monkeypatch.context() as patch:
        kill = Kill(after, patch)
        with contextlib.suppress(Killed):
            found.save(step, NEW)
    again = Checkpoints(found.folder)
    put_back = again.clear_leftovers()
    assert not list(found.folder.glob(".*"))
    assert {1, 2} <= set(steps(again)) <= {1, 2, step}
    latest = again.latest()
    assert latest is not None
    assert latest.state.read_bytes() in (FILES["state.safetensors"], NEW["state.safetensors"])
    assert put_back in ([], [2])
    if not kill.came:
        assert latest.state.read_bytes() == NEW["state.safetensors"]
    again.save(step, NEW)
    assert again.latest() == Checkpoint(step, found.folder / f"step_0000000{step}")


def test_killed_between_the_two_renames(found: Checkpoints) -> None:
    """The only intact copy of the step is the one that made way; the new one was not yet there."""
    for step in (1, 2):
        found.save(step, FILES)
    (found.folder / "step_00000002").rename(found.folder / ".old_12345678")
    (found.folder / ".tmp_12345678").mkdir()
    assert steps(found) == [1]
    assert found.clear_leftovers() == [2]
    assert steps(found) == [1, 2]
    assert sorted(path.name for path in found.folder.iterdir()) == ["step_00000001", "step_00000002"]


def test_what_made_way_comes_back_for_a_damaged_one(found: Checkpoints) -> None:
    found.save(1, FILES)
    shutil.copytree(found.folder / "step_00000001", found.folder / ".old_12345678")
    (found.folder / "step_00000001" / "lora.safetensors").write_bytes(b"")
    assert found.clear_leftovers() == [1]
    assert steps(found) == [1]
    assert [path.name for path in found.folder.iterdir()] == ["step_00000001"]


@pytest.mark.parametrize(
    "manifest", [None, "", "[]", '{"step": "../../x"}', '{"step": -1}', '{"step": true}', "[" * 9999]
)
def test_what_made_way_and_is_damaged_goes(manifest: str | None, found: Checkpoints) -> None:
    found.save(1, FILES)
    old = found.folder / ".old_12345678"
    (found.folder / "step_00000001").rename(old)
    (old / "manifest.json").unlink()
    if manifest is not None:
        (old / "manifest.json").write_text(manifest)
    assert found.clear_leftovers() == []
    assert list(found.folder.iterdir()) == []
    assert list(found.folder.parent.iterdir()) == [found.folder]


@pytest.mark.parametrize("after", range(6))
def test_killed_while_pruning(after: int, found: Checkpoints, monkeypatch: pytest.MonkeyPatch) -> None:
    for step in (1, 2, 3):
        found.save(step, FILES)
    with monkeypatch.context() as patch:
        Kill(after, patch)
        with contextlib.suppress(Killed):
            found.prune(1)
    again = Checkpoints(found.folder)
    assert again.clear_leftovers() == []
    assert not list(found.folder.glob(".*"))
    assert all(problem is None for _, problem in again.examine())
    assert steps(again)[-1] == 3
    assert set(steps(again)) <= {1, 2, 3}
