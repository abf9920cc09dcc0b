"""Digests of large files: of every byte, and read only once."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from trainer_core import content
from trainer_core.files import state_folder

LONG_AGO = (1e9, 1e9)


@pytest.fixture(autouse=True)
def _new_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(content, "_known", {})


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Files that were read, each time."""
    hashed, read = content._hashed, []

    def counted(path: Path, spans: list[tuple[int, int]]) -> list[str]:
        read.append(path)
        return hashed(path, spans)

    monkeypatch.setattr(content, "_hashed", counted)
    return read


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "weights.safetensors"
    path.write_bytes(bytes(range(256)) * 10)
    os.utime(path, LONG_AGO)
    return path


def test_it_is_the_hash_of_the_blocks_hashes(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(content, "_BLOCK", 1000)
    data = file.read_bytes()
    blocks = [hashlib.sha256(data[start : start + 1000]).hexdigest() for start in (0, 1000, 2000)]
    expected = hashlib.sha256("".join(f"{k}:{block}\n" for k, block in enumerate(blocks)).encode()).hexdigest()
    assert content.whole_file(file) == expected


def test_spans_count_with_their_titles_and_nothing_else(file: Path) -> None:
    data = file.read_bytes()
    lines = [f"{title}:{hashlib.sha256(data[a:b]).hexdigest()}\n" for title, a, b in (("x", 500, 900), ("y", 0, 7))]
    expected = hashlib.sha256("".join(lines).encode()).hexdigest()
    assert content.spans_of_file(file, [(500, 900), (0, 7)], ["x", "y"]) == expected


def test_the_second_time_nothing_is_read(file: Path, reads: list[Path]) -> None:
    first = content.whole_file(file)
    assert content.whole_file(file) == first
    content._known.clear()  # the next process
    assert content.whole_file(file) == first
    assert len(reads) == 1


@pytest.mark.skipif(sys.platform == "win32", reason="Windows tells when a file was made, not when it was last changed")
def test_other_contents_of_the_same_size_and_time_are_noticed(file: Path) -> None:
    before = content.whole_file(file)
    time.sleep(0.05)  # longer than a tick of the file system's clock
    with file.open("r+b") as opened:
        opened.write(b"other")
    os.utime(file, LONG_AGO)
    assert content.whole_file(file) != before


def test_a_file_that_was_written_just_now_is_not_remembered(file: Path, reads: list[Path]) -> None:
    os.utime(file)
    assert content.whole_file(file) == content.whole_file(file)
    assert len(reads) == 2


@pytest.mark.parametrize("damage", [b"", b"00", b"\xff\xfe", b"0" * 64 + b" " + b"0" * 64])
def test_a_damaged_entry_costs_another_reading(damage: bytes, file: Path, reads: list[Path]) -> None:
    first = content.whole_file(file)
    content._known.clear()
    (entry,) = (state_folder() / "digests").iterdir()
    entry.write_bytes(damage)
    assert content.whole_file(file) == first
    content._known.clear()
    assert content.whole_file(file) == first
    assert len(reads) == 2


def test_where_nothing_can_be_kept_a_process_still_remembers(
    file: Path, reads: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "state").write_text("in the way")
    monkeypatch.setenv("LORA_FOUNDRY_STATE", str(tmp_path / "state"))
    assert content.whole_file(file) == content.whole_file(file)
    assert len(reads) == 1


def test_a_file_that_ends_too_early_is_told(file: Path) -> None:
    with pytest.raises(OSError, match=r"weights\.safetensors: ends before"):
        content.spans_of_file(file, [(0, 9999)], ["x"])


def test_processes_that_hash_the_same_files_at_once(tmp_path: Path) -> None:
    files = [tmp_path / f"{number}.bin" for number in range(20)]
    for number, path in enumerate(files):
        path.write_bytes(bytes([number]) * 100_000)
        os.utime(path, LONG_AGO)
    code = "import sys; from pathlib import Path; from trainer_core.content import whole_file\n"
    code += "for name in sys.argv[1:]: print(whole_file(Path(name)))"
    command = [sys.executable, "-c", code, *map(str, files)]
    root = Path(__file__).parents[2]
    several = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=root) for _ in range(3)]
    found = [one.communicate(timeout=120)[0] for one in several]
    assert [one.returncode for one in several] == [0, 0, 0]
    assert found == ["".join(f"{content.whole_file(path)}\n" for path in files)] * 3
    entries = list((state_folder() / "digests").iterdir())
    assert len(entries) == 20


@pytest.fixture
def told() -> tuple[list[str], Callable[..., str]]:
    """A function that is read once, and what it has read."""
    read: list[str] = []

    @content.read_once
    def text(path: Path, ending: str = "") -> str:
        read.append(path.name + ending)
        return path.read_text() + ending

    return read, text


Told = tuple[list[str], Callable[..., str]]


def settled(path: Path, text: str) -> Path:
    path.write_text(text)
    os.utime(path, LONG_AGO)
    return path


def test_what_is_read_once_depends_on_file_and_arguments(told: Told, tmp_path: Path) -> None:
    read, text = told
    one, other = settled(tmp_path / "one", "1"), settled(tmp_path / "other", "2")
    for _ in range(2):
        assert [text(one), text(one, "!"), text(one, ending="!"), text(other)] == ["1", "1!", "1!", "2"]
    assert read == ["one", "one!", "one!", "other"]
    settled(one, "33")
    assert text(one) == "33"
    assert text(other) == "2"
    assert len(read) == 5


def test_what_was_written_just_now_is_read_each_time(told: Told, tmp_path: Path) -> None:
    read, text = told
    (tmp_path / "one").write_text("1")
    assert [text(tmp_path / "one") for _ in range(3)] == ["1"] * 3
    assert len(read) == 3


def test_errors_are_not_kept_and_are_the_function_s_own(told: Told, tmp_path: Path) -> None:
    read, text = told
    with pytest.raises(FileNotFoundError):
        text(tmp_path / "one")
    with pytest.raises(ValueError, match="null"):
        text(tmp_path / "one\0")
    (tmp_path / "one").write_bytes(b"\xff")
    os.utime(tmp_path / "one", LONG_AGO)
    for _ in range(2):
        with pytest.raises(UnicodeDecodeError):
            text(tmp_path / "one")
    assert len(read) == 4


def test_what_is_kept_has_an_end(told: Told, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read, text = told
    monkeypatch.setattr(content, "_MOST", 3)
    files = [settled(tmp_path / str(k), str(k)) for k in range(10)]
    assert [text(file) for file in files] == list("0123456789")
    assert text(files[9]) == "9"
    assert len(read) == 10
    assert text(files[0]) == "0"
    assert len(read) == 11
