"""Hostile data sets: pipes and devices, links, names that lead out, images that are programs, bombs or nonsense."""

from __future__ import annotations

import io
import json
import os
import random
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import EpsImagePlugin, Image

from trainer_core.config import DatasetConfig
from trainer_core.data.header import MAX_PIXELS, UNREADABLE, read_header
from trainer_core.data.images import load_image
from trainer_core.data.index import index
from trainer_core.data.lint import lint
from trainer_core.data.lint.looks import look_at
from trainer_core.data.scan import scan
from trainer_core.data.summary import digest, summarize
from trainer_core.errors import DatasetError

pipes = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
links = pytest.mark.skipif(os.name == "nt", reason="links need rights there")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A data set of one good picture."""
    path = tmp_path / "set"
    path.mkdir()
    Image.new("RGB", (64, 64), "red").save(path / "good.png")
    (path / "good.txt").write_text("a red square", encoding="utf-8")
    return path


def config(folder: Path, **settings: Any) -> DatasetConfig:
    return DatasetConfig(folder=str(folder), **settings)


def refusal(folder: Path, **settings: Any) -> str:
    with pytest.raises(DatasetError) as caught:
        scan(config(folder, **settings))
    return str(caught.value)


def rows(folder: Path, *values: dict[str, Any]) -> None:
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, values)), encoding="utf-8")


# files that are none


@pipes
@pytest.mark.parametrize("name", ["b.png", "metadata.jsonl", "metadata.csv"])
def test_pipes_in_the_folder_are_passed_over(name: str, folder: Path) -> None:
    os.mkfifo(folder / name)
    assert [item.key for item in scan(config(folder))] == ["good.png"]
    assert lint(config(folder, resolutions=(64,)), tokenizers=()).ok
    assert digest(config(folder))


@pipes
def test_a_pipe_instead_of_a_caption_is_told_and_not_waited_for(folder: Path) -> None:
    (folder / "good.txt").unlink()
    os.mkfifo(folder / "good.txt")
    assert "no regular file" in refusal(folder)
    assert not lint(config(folder), tokenizers=()).ok
    assert digest(config(folder))


@links
def test_links_to_devices_are_not_read_to_their_end(folder: Path) -> None:
    (folder / "zero.png").symlink_to("/dev/zero")
    assert [item.key for item in scan(config(folder))] == ["good.png"]
    (folder / "good.txt").unlink()
    (folder / "good.txt").symlink_to("/dev/zero")
    assert "no regular file" in refusal(folder)


@links
def test_links_in_circles_end(folder: Path) -> None:
    (folder / "round").symlink_to(folder)
    assert [item.key for item in scan(config(folder))] == ["good.png"]
    (folder / "self.png").symlink_to(folder / "self.png")
    assert [item.key for item in scan(config(folder))] == ["good.png"]
    assert any("self.png" in warning for warning in summarize(config(folder)).warnings)
    (found,) = lint(config(folder, resolutions=(64,)), tokenizers=()).of("dead-link")
    assert found.files == ("self.png",)


def test_a_zero_byte_is_refused_in_a_caption_file_as_in_metadata(folder: Path) -> None:
    (folder / "good.txt").write_bytes(b"a\0b")
    assert "good.txt: holds a zero byte" in refusal(folder)


def test_run_folders_and_other_pictures_are_left_out_and_named(folder: Path) -> None:
    samples = folder / "runs" / "one" / "samples"
    samples.mkdir(parents=True)
    for name in ("run.json", "job.yaml"):
        (samples.parent / name).write_text("{}", encoding="utf-8")
    Image.new("RGB", (64, 64)).save(samples / "a.png")
    for name in ("b.gif", "c.TIFF"):
        (folder / name).write_bytes(b"x")
    found = summarize(config(folder))
    assert found.count == 1
    assert any("runs/one" in warning for warning in found.warnings)
    assert any("b.gif, c.TIFF" in warning for warning in found.warnings)
    report = lint(config(folder, resolutions=(64,)), tokenizers=())
    assert report.of("run-folder")[0].files == ("runs/one",)
    assert report.of("other-pictures")[0].files == ("b.gif", "c.TIFF")


def test_metadata_find_an_image_whichever_way_its_accents_are_written(folder: Path) -> None:
    (folder / "good.txt").unlink()
    (folder / "good.png").rename(folder / "e\u0301.png")
    rows(folder, {"file_name": "\u00e9.png", "text": "x"})
    assert scan(config(folder))[0].captions == ("x",)
    assert summarize(config(folder)).warnings == []


def test_a_caption_of_a_gigabyte_is_not_read(folder: Path) -> None:
    with (folder / "good.txt").open("wb") as file:
        file.truncate(1 << 30)  # sparse
    assert "larger than" in refusal(folder)


def test_folders_in_folders_have_an_end(folder: Path) -> None:
    place = folder
    for _ in range(150):
        place = place / "d"
        place.mkdir()
    assert "levels deep" in refusal(folder)


@pytest.mark.skipif(os.name == "nt", reason="names are text there")
def test_names_that_are_no_text_are_told(folder: Path) -> None:
    (folder / os.fsdecode(b"\xff.png")).write_bytes((folder / "good.png").read_bytes())
    assert "no valid text" in refusal(folder)


# names that lead out


@pytest.mark.parametrize(
    "name",
    [
        "../outside.png",
        "a/../../outside.png",
        "..",
        "/etc/passwd",
        "//server/share/a.png",
        "\\\\server\\share\\a.png",
        "..\\outside.png",
        "C:\\a.png",
        "C:a.png",
    ],
)
@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_names_in_metadata_that_lead_out_are_refused_and_not_looked_up(
    name: str, kind: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kind == "csv":
        (folder / "metadata.csv").write_text(f'file_name,text\n"{name}",x\n', encoding="utf-8")
    else:
        rows(folder, {"file_name": name, "text": "x"})
    asked: list[str] = []
    exists = Path.exists
    monkeypatch.setattr(Path, "exists", lambda path, **_: asked.append(str(path)) or exists(path))
    with pytest.raises(DatasetError, match=rf"metadata\.{kind}, line {1 + (kind == 'csv')}: .*leads out"):
        summarize(config(folder))
    assert not [path for path in asked if "outside" in path or "server" in path]


def test_names_in_metadata_may_go_up_within_the_folder(folder: Path) -> None:
    (folder / "good.txt").unlink()
    (folder / "tables").mkdir()
    rows(folder / "tables", {"file_name": "../good.png", "text": "from below"})
    assert scan(config(folder))[0].captions == ("from below",)


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"file_name": "good.png", "text": "\ud800"}, "half of a character"),
        ({"file_name": "good.png", "text": ["a", "b\0c"]}, "zero byte"),
        ({"file_name": "\ud800.png", "text": "x"}, "has no `file_name`"),
        ({"file_name": ["good.png"], "text": "x"}, "has no `file_name`"),
        ({"file_name": "good.png", "text": {"a": 1}}, "neither a text"),
        ({"file_name": "good.png", "text": "x", "more": float("nan")}, "no valid JSON"),
    ],
)
def test_metadata_that_no_encoder_could_read_are_refused(row: dict[str, Any], says: str, folder: Path) -> None:
    rows(folder, row)
    assert says in refusal(folder)


def test_metadata_nested_too_deeply_are_refused(folder: Path) -> None:
    (folder / "metadata.jsonl").write_text('{"file_name": ' + "[" * 100_000, encoding="utf-8")
    assert "nested too deeply" in refusal(folder)


def test_a_name_too_long_for_any_file_is_only_absent(folder: Path) -> None:
    rows(folder, {"file_name": "x" * 5000 + ".png", "text": "x"})
    assert index(config(folder)).absent() == ["x" * 5000 + ".png"]


# images


def eps() -> bytes:
    return b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n%%EndComments\n(x) run showpage\n%%EOF\n"


def other_format(kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64)).save(buffer, kind)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["EPS", "GIF", "TIFF", "ICNS", "PCX", "TGA", "PPM", "PDF", "IM", "SGI"])
def test_other_formats_are_not_decoded_whatever_they_are_called(
    kind: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pillow decodes EPS by starting Ghostscript, which is a programming language."""
    started: list[object] = []
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *given, **_: started.append(given))
    path = folder / "good.png"
    path.write_bytes(eps() if kind == "EPS" else other_format(kind))
    assert "good.png" in refusal(folder)
    for read in (load_image, look_at, read_header):
        with pytest.raises((DatasetError, *UNREADABLE)):
            read(path)
    assert started == []


def test_a_format_of_ours_may_have_another_suffix(folder: Path) -> None:
    Image.new("RGB", (64, 64), "blue").save(folder / "good.png", "JPEG")
    assert load_image(folder / "good.png").size == (64, 64)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, *more: bytes) -> bytes:
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return (
        b"\x89PNG\r\n\x1a\n" + head + b"".join(more) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    )


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_bomb_is_refused_even_if_the_host_switched_pillows_limit_off(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    path = folder / "good.png"
    path.write_bytes(png(20_000, MAX_PIXELS // 20_000 + 1))
    assert "too many" in refusal(folder)
    for read in (load_image, look_at):
        with pytest.raises((DatasetError, *UNREADABLE), match="too many"):
            read(path)


@pytest.mark.parametrize("kind", [b"zTXt", b"iTXt", b"iCCP"])
def test_text_chunks_that_unpack_to_gigabytes_are_refused(kind: bytes, folder: Path) -> None:
    packed = zlib.compress(b"\0" * (100 << 20), 9)
    head = b"a\0\1\0\0\0" if kind == b"iTXt" else b"a\0\0"
    (folder / "good.png").write_bytes(png(8, 8, chunk(kind, head + packed)))
    assert "good.png" in refusal(folder, resolutions=(16,))


def exif_image(kind: str) -> tuple[bytes, int, int]:
    """A picture with many EXIF tags, and where they are."""
    exif = Image.Exif()
    exif.update({0x0112: 6, 0x010F: "maker", 0x8298: "owner", 0x011A: (72, 1)})
    exif[0x8769] = {0x9286: b"comment", 0x829A: 1.5}
    buffer = io.BytesIO()
    Image.new("RGB", (40, 48), "red").save(buffer, kind, exif=exif)
    data = buffer.getvalue()
    return data, next(at for mark in (b"MM\0*", b"II*\0") if (at := data.find(mark)) >= 0), len(exif.tobytes()) - 6


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_nonsense_in_exif_spoils_no_picture(kind: str, tmp_path: Path) -> None:
    """Pillow's exif_transpose writes EXIF anew and fails with TypeError or struct.error for a part of these."""
    data, start, length = exif_image(kind)
    rng, path = random.Random(3), tmp_path / "a.png"
    for _ in range(300):
        damaged = bytearray(data)
        for _ in range(rng.choice((1, 2, 4, 8))):
            damaged[start + rng.randrange(length)] = rng.choice((0, 255, rng.randrange(256)))
        if kind == "PNG":
            at = damaged.find(b"eXIf")
            size = int.from_bytes(damaged[at - 4 : at], "big")
            damaged[at + 4 + size : at + 8 + size] = struct.pack(">I", zlib.crc32(damaged[at : at + 4 + size]))
        path.write_bytes(damaged)
        outcome = _outcome(lambda: load_image(path).mode)
        assert outcome == "RGB" or "a.png" in str(outcome)
        _outcome(lambda: read_header(path), *UNREADABLE)
        _outcome(lambda: look_at(path), *UNREADABLE)


def _outcome(read: Callable[[], object], *more: type[BaseException]) -> object:
    try:
        return read()
    except (DatasetError, *more) as error:
        return str(error)
