"""Writing: the old content or the new one, never half, and a message that tells the causes apart."""

from __future__ import annotations

import errno
import hashlib
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from trainer_core import files
from trainer_core.errors import SaveError
from trainer_core.files import append_line, save_error, sha256_of, sync_folder, write_atomically, write_fresh


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
        (errno.EROFS, "read-only"),
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


def test_an_interruption_leaves_no_temporary_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.txt").write_bytes(b"old")

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(tmp_path / "a.txt", b"new")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("a.txt", b"old")]


@pytest.mark.parametrize("refusals", [1, 3, 100])
def test_a_reader_on_windows_delays_a_replacement(
    refusals: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Windows refuses to replace a file while it is open; a page that polls run.json must not end a training."""
    original, calls = os.replace, 0

    def refuse(*arguments: Any) -> None:
        nonlocal calls
        ours = Path(arguments[1]).parent == tmp_path  # a thread of an earlier test may be writing too
        calls += ours
        if ours and calls <= refusals:
            raise PermissionError(errno.EACCES, "Access is denied")
        original(*arguments)

    monkeypatch.setattr(files, "_PAUSES", (0.0, 0.0, 0.0))
    monkeypatch.setattr(os, "replace", refuse)
    if refusals == 100:
        with pytest.raises(SaveError, match="another program has it open"):
            write_atomically(tmp_path / "a.txt", b"new")
        assert (calls, list(tmp_path.iterdir())) == (4, [])
    else:
        write_atomically(tmp_path / "a.txt", b"new")
        assert (tmp_path / "a.txt").read_bytes() == b"new"


@pytest.mark.skipif(os.name == "nt", reason="folders cannot be waited for")
@pytest.mark.parametrize(("number", "fatal"), [(errno.EINVAL, False), (errno.ENOTSUP, False), (errno.EIO, True)])
def test_file_systems_that_cannot_wait_for_folders(
    number: int, fatal: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", refuse)
    if fatal:
        with pytest.raises(OSError, match=os.strerror(number)):
            sync_folder(tmp_path)
    else:
        sync_folder(tmp_path)


# --- lines -----------------------------------------------------------------------------------------------------------


def test_lines_are_added(tmp_path: Path) -> None:
    for line in ("one", "", "dre\u00ef", "odd \udcff name"):
        append_line(tmp_path / "log.txt", line)
    assert (tmp_path / "log.txt").read_bytes() == b"one\n\ndre\xc3\xaf\nodd \\udcff name\n"


@pytest.mark.parametrize("before", [b"", b"one\n", b"one\ntw", b"\0\0\0"])
def test_half_a_line_is_ended_first(before: bytes, tmp_path: Path) -> None:
    (tmp_path / "log.txt").write_bytes(before)
    append_line(tmp_path / "log.txt", "next")
    assert (tmp_path / "log.txt").read_bytes() in (before + b"next\n", before + b"\nnext\n")
    assert (tmp_path / "log.txt").read_bytes().splitlines()[-1] == b"next"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_line_that_finds_no_room_is_told(tmp_path: Path) -> None:
    (tmp_path / "log.txt").symlink_to("/dev/full")
    with pytest.raises(SaveError, match="disk is full"):
        append_line(tmp_path / "log.txt", "next")


def test_half_a_line_that_found_room_is_taken_back(tmp_path: Path) -> None:
    """In a process of its own, whose files may not grow beyond 8192 bytes: the system then writes what fits."""
    resource = pytest.importorskip("resource")
    path = tmp_path / "log.txt"
    path.write_bytes(b"x" * 8000 + b"\n")
    code = (
        "import resource, signal, sys; from pathlib import Path\n"
        "from trainer_core.files import append_line\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))\n"
        "append_line(Path(sys.argv[1]), 'y' * 1000)\n"
    )
    assert resource
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], cwd=Path(__file__).parents[2], capture_output=True, text=True
    )
    assert "SaveError" in done.stderr
    assert path.read_bytes() == b"x" * 8000 + b"\n"
