"""Writing: the old content or the new one, never half, and a message that tells the causes apart."""

from __future__ import annotations

import errno
import hashlib
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from trainer_core.errors import SaveError
from trainer_core.files import save_error, sha256_of, write_atomically, write_fresh


def test_hash(tmp_path: Path) -> None:
    data = os.urandom(3 << 20) + b"x"
    (tmp_path / "a").write_bytes(data)
    assert sha256_of(tmp_path / "a") == hashlib.sha256(data).hexdigest()


def test_atomic_write_makes_folders_and_replaces(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "er" / "a.txt"
    write_atomically(path, b"one")
    write_atomically(path, b"two")
    assert path.read_bytes() == b"two"
    assert [p.name for p in path.parent.iterdir()] == ["a.txt"]


@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.parametrize("write", [write_atomically, lambda path, data: write_fresh(path.parent, "b", ".txt", data)])
def test_a_failed_write_leaves_what_was_there(
    call: str, write: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"old")

    def refuse(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, call, refuse)
    monkeypatch.setattr(os, "link", refuse)
    with pytest.raises(SaveError, match="disk is full"):
        write(path, b"new")
    monkeypatch.undo()
    assert path.read_bytes() == b"old"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.txt"]


@pytest.mark.parametrize("write", [write_atomically, lambda path, data: write_fresh(path.parent, "b", ".txt", data)])
def test_a_folder_that_is_a_file_is_told(write: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    with pytest.raises(SaveError, match="file"):
        write(tmp_path / "file" / "a.txt", b"new")


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "disk is full"),
        (errno.EDQUOT, "disk is full"),
        (errno.EACCES, "permissions"),
        (errno.EROFS, "permissions"),
        (errno.EIO, "cannot be written"),
    ],
)
def test_messages(number: int, words: str) -> None:
    message = str(save_error(Path("runs/a.txt"), OSError(number, os.strerror(number))))
    assert "a.txt" in message
    assert words in message


def test_a_message_for_an_error_without_a_number() -> None:
    assert "odd" in str(save_error(Path("a.txt"), OSError("odd")))


def test_fresh_names_among_writers_at_once(tmp_path: Path) -> None:
    """Twenty threads, one name: each gets a file of its own with its own content."""
    found: dict[int, Path] = {}

    def write(number: int) -> None:
        found[number] = write_fresh(tmp_path, "lora", ".bin", str(number).encode())

    threads = [threading.Thread(target=write, args=(number,)) for number in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(found.values())) == 20
    assert {number: path.read_text() for number, path in found.items()} == {n: str(n) for n in range(20)}
    assert len(list(tmp_path.iterdir())) == 20


def test_readers_never_see_half(tmp_path: Path) -> None:
    path, seen, stop = tmp_path / "run.json", set(), threading.Event()
    write_atomically(path, b"a" * 100_000)

    def read() -> None:
        while not stop.is_set():
            seen.add(path.read_bytes())

    reader = threading.Thread(target=read)
    reader.start()
    for k in range(60):
        write_atomically(path, (b"a", b"b")[k % 2] * 100_000)
    stop.set()
    reader.join()
    assert seen <= {b"a" * 100_000, b"b" * 100_000}
