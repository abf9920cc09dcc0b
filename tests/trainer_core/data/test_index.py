"""One look at a data set's folder: what stays as it is is read once, and every change is seen at once."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from trainer_core.config import DatasetConfig, load_job
from trainer_core.data import header
from trainer_core.data.cache import TensorCache
from trainer_core.data.lint import lint, lint_job
from trainer_core.data.prepare import PreparedData
from trainer_core.data.scan import Item, scan
from trainer_core.data.summary import digest, summarize
from trainer_core.families.registry import open_base
from trainer_core.job import TrainingJob

LONG_AGO = (1e9, 1e9)


class Seen:
    """What Python asked the system for below a folder, while it listens."""

    def __init__(self) -> None:
        self.below: str | None = None
        self.walked: Counter[str] = Counter()
        self.opened: Counter[str] = Counter()

    def __call__(self, event: str, args: tuple[Any, ...]) -> None:
        if self.below and event in {"open", "os.scandir"} and isinstance(args[0], (str, Path)):
            counter = self.opened if event == "open" else self.walked
            if str(args[0]).startswith(self.below):
                counter[os.path.relpath(args[0], self.below)] += 1


_SEEN = Seen()
sys.addaudithook(_SEEN)  # it cannot be removed, only told to listen to nothing


@pytest.fixture
def seen(tmp_path: Path) -> Iterator[Seen]:
    _SEEN.below = str(tmp_path / "pictures")
    _SEEN.walked.clear()
    _SEEN.opened.clear()
    yield _SEEN
    _SEEN.below = None


def settle(folder: Path) -> None:
    """What was written within the last seconds is read again each time."""
    for path in folder.rglob("*"):
        os.utime(path, LONG_AGO)


def dataset(folder: Path, **settings: Any) -> DatasetConfig:
    return DatasetConfig(**{"folder": str(folder), "resolutions": (64,), "default_caption": "a thing", **settings})


def test_a_press_of_run_walks_once_a_look_and_reads_each_file_once(
    make_dataset: Callable[..., Path],
    make_job: Callable[..., Path],
    tmp_path: Path,
    seen: Seen,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = make_dataset(6)
    settle(folder)
    job = load_job(make_job(validation={"share": 0.2}))
    (one,) = job.datasets
    headers: Counter[Path] = Counter()
    opened = header.opened
    monkeypatch.setattr(header, "opened", lambda file: headers.update([Path(file.name)]) or opened(file))
    base = open_base(job.model)
    seen.opened.clear()
    looks: dict[str, Callable[[], object]] = {
        "is it unchanged": lambda: digest(one.but(trigger=None)),
        "Load Dataset": lambda: summarize(one.but(trigger=None)),
        "Load Dataset's check": lambda: lint(one.but(trigger=None), tokenizers=()),
        "Caption with Trigger": lambda: summarize(one),
        "lint": lambda: lint_job(job, tokenizers=()),
        "Train LoRA": lambda: TrainingJob.new(tmp_path / "runs", job),
        "the run": lambda: PreparedData(job, base, TensorCache(tmp_path / "cache")).digest(),
    }
    for name, look in looks.items():
        seen.walked.clear()
        look()
        assert seen.walked == {".": 1}, name
    pictures, captions = sorted(folder.glob("*.png")), sorted(folder.glob("*.txt"))
    assert headers == dict.fromkeys(pictures, 1)
    # of a picture: its header, its pixels for lint, its digest
    assert seen.opened == {
        **dict.fromkeys([p.name for p in pictures], 3),
        **dict.fromkeys([c.name for c in captions], 1),
    }
    seen.opened.clear()
    for look in looks.values():
        look()
    assert not seen.opened


def bmp(path: Path, width: int, height: int) -> Path:
    """All of so many pixels have the same number of bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (width, height)).save(path, format="BMP")
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two pictures, one captioned by a file and one by metadata, that were looked at."""
    made = tmp_path / "pictures"
    for name in ("a.bmp", "b.bmp"):
        bmp(made / name, 64, 128)
        bmp(made / "masks" / name, 64, 128)
    (made / "a.txt").write_text("a cat")
    (made / "metadata.csv").write_text("file_name,text\nb.bmp,a dog\n")
    settle(made)
    assert looked(made) == {"a.bmp": ((64, 128), "a cat", True), "b.bmp": ((64, 128), "a dog", True)}
    return made


def looked(folder: Path) -> dict[str, tuple[tuple[int, int], str, bool]]:
    def fact(item: Item) -> tuple[tuple[int, int], str, bool]:
        return (item.width, item.height), item.captions[0], item.mask is not None

    return {item.key: fact(item) for item in scan(dataset(folder, mask_folder=str(folder / "masks")))}


CHANGES: dict[str, tuple[Callable[[Path], object], dict[str, Any]]] = {
    "a picture of the same size": (lambda one: bmp(one / "a.bmp", 128, 64), {"a.bmp": ((128, 64), "a cat", True)}),
    "a caption of the same size": (
        lambda one: (one / "a.txt").write_text("a cow"),
        {"a.bmp": ((64, 128), "a cow", True)},
    ),
    "metadata of the same size": (
        lambda one: (one / "metadata.csv").write_text("file_name,text\nb.bmp,a cow\n"),
        {"b.bmp": ((64, 128), "a cow", True)},
    ),
    "a caption comes": (lambda one: (one / "b.txt").write_text("an owl"), {"b.bmp": ((64, 128), "an owl", True)}),
    "a caption goes": (lambda one: (one / "a.txt").unlink(), {"a.bmp": ((64, 128), "a thing", True)}),
    "metadata go": (lambda one: (one / "metadata.csv").unlink(), {"b.bmp": ((64, 128), "a thing", True)}),
    "metadata come": (
        lambda one: (one / "metadata.jsonl").write_text('{"file_name": "b.bmp", "text": "a cow"}'),
        {"b.bmp": ((64, 128), "a cow", True)},
    ),
    "a picture comes": (
        lambda one: (bmp(one / "sub" / "c.bmp", 64, 64), bmp(one / "masks" / "sub" / "c.png", 64, 64)),
        {"sub/c.bmp": ((64, 64), "a thing", True)},
    ),
    "a picture goes": (lambda one: (one / "a.bmp").unlink(), {"a.bmp": None}),
    "a picture takes the place of another": (
        lambda one: bmp(one / "new", 128, 64).replace(one / "a.bmp"),
        {"a.bmp": ((128, 64), "a cat", True)},
    ),
}


@pytest.mark.parametrize("set_back", [False, True], ids=["", "time set back"])
@pytest.mark.parametrize(("change", "expected"), CHANGES.values(), ids=list(CHANGES))
def test_every_change_is_seen_at_once(
    change: Callable[[Path], object], expected: dict[str, Any], set_back: bool, folder: Path
) -> None:
    if set_back and sys.platform == "win32":
        pytest.skip("Windows tells when a file was made, not when it was last changed")
    before = looked(folder)
    time.sleep(0.05)  # longer than a tick of the file system's clock
    change(folder)
    if set_back:
        settle(folder)
    assert looked(folder) == {key: fact for key, fact in {**before, **expected}.items() if fact}


def test_lint_sees_changes_too(folder: Path) -> None:
    config = dataset(folder)
    assert not lint(config, tokenizers=()).of("unreadable-image")
    size = (folder / "a.bmp").stat().st_size
    (folder / "a.bmp").write_bytes(b"x" * size)
    assert [one.files for one in lint(config, tokenizers=()).of("unreadable-image")] == [("a.bmp",)]
    bmp(folder / "a.bmp", 20, 20)
    found = lint(config, tokenizers=())
    assert not found.of("unreadable-image")
    assert [one.files for one in found.of("tiny-image")] == [("a.bmp",)]


def test_what_was_written_just_now_is_read_again(folder: Path) -> None:
    """A second change within the file system's tick might leave it the same times."""
    caption = folder / "a.txt"
    for text in ("a cow", "a hen", "a pig"):
        caption.write_text(text)
        assert looked(folder)["a.bmp"][1] == text


def test_threads_look_while_files_change(folder: Path) -> None:
    sizes, wrong, stop = ((64, 128), (128, 64)), list[object](), threading.Event()

    def look() -> None:
        while not stop.is_set():
            try:
                wrong.extend(fact for fact in looked(folder).values() if fact[0] not in sizes)
            except Exception as error:  # noqa: BLE001 - whatever it is, a thread must not keep it for itself
                wrong.append(error)

    threads = [threading.Thread(target=look) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        for number in range(50):
            other = bmp(folder / "new", *sizes[number % 2])
            os.utime(other, LONG_AGO)
            other.replace(folder / "a.bmp")
            assert looked(folder)["a.bmp"][0] == sizes[number % 2]
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert not wrong


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="only Linux lists a process' open files")
def test_no_file_stays_open(folder: Path) -> None:
    summarize(dataset(folder))
    lint(dataset(folder), tokenizers=())
    opened = [os.path.realpath(one) for one in Path("/proc/self/fd").iterdir()]
    assert not [path for path in opened if path.startswith(str(folder))]
