"""Captions written from a page, drafts, and findings by picture."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from trainer_core.api import Drafts, OpenSet, read_edits, write_captions
from trainer_core.config import DatasetConfig
from trainer_core.data.library.checking import Checks
from trainer_core.errors import CaptionChanged, DatasetError

Open = Callable[..., OpenSet]


@pytest.fixture
def opened(make_dataset: Callable[..., Path]) -> Open:
    """The set of three pictures, `0_red.png` and so on."""
    folder = make_dataset(3)

    def look(**settings: Any) -> OpenSet:
        return OpenSet.of("0" * 16, "pictures", DatasetConfig(folder=str(folder), **settings))

    return look


def item(opened: OpenSet, start: str) -> str:
    return next(item for item, key in opened.keys.items() if key.startswith(start))


def edit(opened: OpenSet, start: str, before: str, caption: str) -> None:
    write_captions(opened, read_edits(opened, [{"item": item(opened, start), "before": before, "caption": caption}]))


def file(opened: OpenSet, name: str) -> Path:
    return opened.index.path / name


def test_a_caption_is_written_over_what_the_editor_saw(opened: Open) -> None:
    one = opened()
    edit(one, "0", "a red [trigger]", "  a crimson [trigger]\n")
    assert file(one, "0_red.txt").read_bytes() == b"a crimson [trigger]"
    row = one.row(item(one, "0"))
    assert (row["caption"], row["own"], row["editable"]) == ("a crimson [trigger]", True, True)
    edit(one, "0", "a crimson [trigger]", "")
    assert one.row(item(one, "0"))["own"] is False
    assert not file(one, "0_red.txt").exists()


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (b"one\r\ntwo\r\n", b"one\r\nthree\r\n"),
        (b"one\ntwo", b"one\nthree"),
        (b"\xef\xbb\xbfone\ntwo\n", b"one\nthree\n"),
    ],
)
def test_line_ends_stay_and_undoing_gives_the_text_back(opened: Open, before: bytes, after: bytes) -> None:
    one = opened()
    file(one, "0_red.txt").write_bytes(before)
    assert one.row(item(one, "0"))["caption"] == "one\ntwo"
    edit(one, "0", "one\ntwo", "one\nthree")
    assert file(one, "0_red.txt").read_bytes() == after
    edit(one, "0", "one\nthree", "one\ntwo")
    assert file(one, "0_red.txt").read_bytes() == before.removeprefix(b"\xef\xbb\xbf")
    edit(one, "0", "one\ntwo", "")
    assert not file(one, "0_red.txt").exists()
    edit(one, "0", "", "one\ntwo")
    assert file(one, "0_red.txt").read_bytes() == before.removeprefix(b"\xef\xbb\xbf")


def test_nothing_is_written_if_one_caption_has_changed_elsewhere(opened: Open) -> None:
    one = opened()
    file(one, "2_blue.txt").write_text("somebody else's")
    edits = [
        {"item": item(one, start), "before": f"a {colour} [trigger]", "caption": "new"}
        for start, colour in (("0", "red"), ("2", "blue"))
    ]
    with pytest.raises(CaptionChanged, match=r"2_blue.png.*changed elsewhere") as caught:
        write_captions(one, read_edits(one, edits))
    assert caught.value.keys == ("2_blue.png",)
    assert file(one, "0_red.txt").read_text() == "a red [trigger]"
    assert file(one, "2_blue.txt").read_text() == "somebody else's"


@pytest.mark.parametrize(
    "given",
    [
        None,
        {},
        "text",
        [1],
        [{"item": "x", "before": "", "caption": ""}],
        [{"item": "../../etc/passwd", "before": "", "caption": "x"}],
        [{"item": None, "before": "", "caption": "x"}],
        [{"item": "ITEM", "before": "", "caption": "x", "file": "/etc/passwd"}],
        [{"item": "ITEM", "before": 1, "caption": "x"}],
        [{"item": "ITEM", "before": "", "caption": None}],
        [{"item": "ITEM", "before": "", "caption": "a\0b"}],
        [{"item": "ITEM", "before": "", "caption": "\ud800"}],
        [{"item": "ITEM", "before": "", "caption": "x" * 50_001}],
        [{"item": "ITEM", "before": "", "caption": "x"}] * 2001,
    ],
)
def test_anything_else_than_edits_is_refused(opened: Open, given: Any) -> None:
    one = opened()
    if isinstance(given, list):
        given = [
            {**entry, "item": item(one, "0")} if isinstance(entry, dict) and entry["item"] == "ITEM" else entry
            for entry in given
        ]
    with pytest.raises(DatasetError):
        write_captions(one, read_edits(one, given))
    assert file(one, "0_red.txt").read_text() == "a red [trigger]"


def test_captions_that_cannot_be_written_back_are_shown_with_the_reason(opened: Open) -> None:
    program = opened(caption_extension="py")
    assert "kind .py" in program.row(item(program, "0"))["problem"]
    with pytest.raises(DatasetError, match=r"kind .py"):
        edit(program, "0", "", "import os")
    assert not file(program, "0_red.py").exists()
    one = opened()
    file(one, "0_red.txt").write_bytes(b"caf\xe9")
    assert "UTF-8" in one.row(item(one, "0"))["problem"]
    with pytest.raises(DatasetError, match="UTF-8"):
        edit(one, "0", "", "cafe")
    assert file(one, "0_red.txt").read_bytes() == b"caf\xe9"


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")
def test_a_linked_caption_is_neither_read_nor_written(opened: Open, tmp_path: Path) -> None:
    (tmp_path / "secret.txt").write_text("secret")
    one = opened()
    file(one, "0_red.txt").unlink()
    file(one, "0_red.txt").symlink_to(tmp_path / "secret.txt")
    row = one.row(item(one, "0"))
    assert (row["caption"], row["editable"]) == ("", False)
    with pytest.raises(DatasetError, match="link"):
        edit(one, "0", "", "mine")
    with pytest.raises(DatasetError, match="link"):
        edit(one, "0", "secret", "mine")
    assert (tmp_path / "secret.txt").read_text() == "secret"


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")
def test_a_folder_swapped_for_a_link_is_not_written_through(opened: Open, tmp_path: Path) -> None:
    one = opened()
    folder = one.index.path
    sub = folder / "more"
    sub.mkdir()
    Image.new("RGB", (64, 64)).save(sub / "x.png")
    one = opened()
    (tmp_path / "outside").mkdir()
    sub.rename(tmp_path / "was")
    sub.symlink_to(tmp_path / "outside", target_is_directory=True)
    with pytest.raises(DatasetError, match="lies elsewhere"):
        edit(one, "more/", "", "x")
    assert [*(tmp_path / "outside").iterdir()] == []


def test_a_tables_caption_is_overruled_by_a_file_and_several_are_only_shown(opened: Open) -> None:
    one = opened()
    for path in one.index.path.glob("*.txt"):
        path.unlink()
    rows = [{"file_name": "0_red.png", "text": "of the table"}, {"file_name": "1_green.png", "text": ["a", "b"]}]
    file(one, "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    one = opened()
    assert one.row(item(one, "0"))["caption"] == "of the table"
    edit(one, "0", "of the table", "of the file")
    assert opened().index.captions("0_red.png") == (("of the file",), True)
    several = one.row(item(one, "1"))
    assert (several["caption"], several["editable"]) == ("a\nb", False)
    assert file(one, "metadata.jsonl").read_text() == "\n".join(map(json.dumps, rows))


def test_pictures_without_a_caption_come_first(opened: Open) -> None:
    one = opened()
    file(one, "1_green.txt").unlink()
    file(one, "2_blue.txt").write_bytes(b"")
    names = [one.keys[item] for item in one.ordered(missing_first=True)]
    assert names == ["1_green.png", "2_blue.png", "0_red.png"]


def test_the_summary_counts(opened: Open) -> None:
    one = opened(resolutions=(32, 64))
    file(one, "1_green.txt").unlink()
    file(one, "broken.png").write_bytes(b"no picture")
    summary = opened(resolutions=(32, 64)).summary()
    assert (summary["count"], summary["captioned"], summary["broken"]) == (4, 2, 1)
    assert summary["sizes"] == {"64x64": 3}
    assert summary["buckets"] == {"32x32": 3, "64x64": 3}


def test_drafts_are_kept_apart_until_they_are_dropped(tmp_path: Path) -> None:
    drafts = Drafts(tmp_path / "drafts")
    drafts.add("a" * 16, {"a.png": " a cat ", "b.png": "", "c.png": "half\ud800"}, "tiny")
    drafts.add("a" * 16, {"d.png": "a dog"}, "other")
    assert drafts.of("a" * 16) == {
        "a.png": {"caption": "a cat", "by": "tiny"},
        "d.png": {"caption": "a dog", "by": "other"},
    }
    assert drafts.of("b" * 16) == {}
    drafts.drop("a" * 16, ["a.png", "x.png"])
    assert [*drafts.of("a" * 16)] == ["d.png"]
    for damaged in (b"", b"[]", b'{"a": 1}', b'{"a": {"caption": 1, "by": ""}}', b"[" * 90_000):
        (tmp_path / "drafts" / f"{'a' * 16}.json").write_bytes(damaged)
        assert drafts.of("a" * 16) == {}


def test_findings_name_pictures_by_their_ids(opened: Open) -> None:
    one, told = opened(), []
    file(one, "1_green.txt").unlink()
    checks = Checks()
    checks.start(one, told.append)
    while checks.of(one.id)["checking"]:
        pass
    findings = {one["check"]: one for one in checks.of(one.id)["findings"]}
    missing = next(found for found in findings.values() if "no caption" in found["message"])
    assert missing["items"] == [item(one, "1")]
    assert missing["severity"] == "error"
    assert checks.of("another") == {"checking": False, "findings": None}
