"""Which folders are data sets, what they are called, and what requests can name."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from trainer_core.api import Library, Places, Roots
from trainer_core.config import DatasetConfig, JobConfig, dump_job
from trainer_core.errors import ConfigError, NotListed

from ...clips import write_frames

Make = Callable[..., Path]


@pytest.fixture
def own(tmp_path: Path) -> Path:
    (tmp_path / "input").mkdir()
    return tmp_path / "input"


@pytest.fixture
def put(own: Path) -> Make:
    """Puts pictures, and captions where there are texts, into a folder below the host's own."""

    def make(folder: str, *names: str, caption: str | None = None, at: Path = own) -> Path:
        path = at / folder
        path.mkdir(parents=True, exist_ok=True)
        for name in names:
            Image.new("RGB", (64, 64), "red").save(path / f"{name}.png")
            if caption is not None:
                (path / f"{name}.txt").write_text(caption, encoding="utf-8")
        return path

    return make


@pytest.fixture
def library(tmp_path: Path, own: Path) -> Library:
    """That of a host with one folder of its own, and one that its owner allows."""
    places = Places(
        own, (tmp_path / "allowed",), tmp_path / "demo", tmp_path / "runs", tmp_path / "drafts", frozenset({"pasted"})
    )
    roots = Roots((own, tmp_path / "allowed", tmp_path / "demo"), tmp_path / "roots.txt")
    return Library(lambda: places, roots.holds)


def named(library: Library) -> dict[str, tuple[int, int]]:
    """Pictures and captions of all sets by their names."""
    return {one["name"]: (one["pictures"], one["captioned"]) for one in library.datasets()}


def test_folders_with_pictures_are_data_sets_with_all_below_them(library: Library, put: Make, own: Path) -> None:
    put("", "single")
    put("cats", "a", "b", caption="a cat")
    put("cats/more", "c")
    put("group/dogs", "a")
    put("group/birds", "a", caption="a bird")
    put("pasted", "x")
    put(".hidden", "x")
    (own / "texts").mkdir()
    (own / "texts" / "a.txt").write_text("no picture")
    assert named(library) == {"cats": (3, 2), "group/birds": (1, 1), "group/dogs": (1, 0)}


def test_masks_and_controls_are_found_by_their_names(library: Library, put: Make) -> None:
    put("faces", "a", "b")
    put("faces/masks", "a", "b")
    put("faces/control_1", "a")
    put("shoes", "a")
    put("shoes_mask", "a")
    put("shoes-control", "a")
    put("masks", "a")  # nobody's: a set like any other
    sets = {one["name"]: one["id"] for one in library.datasets()}
    assert sets.keys() == {"faces", "shoes", "masks"}
    faces, shoes = library.open(sets["faces"]), library.open(sets["shoes"])
    rows = [faces.row(item) for item in faces.ordered(missing_first=False)]
    assert [(row["file"], row["mask"], row["controls"]) for row in rows] == [("a.png", True, 1), ("b.png", True, 0)]
    (shoe,) = shoes.keys
    assert shoes.path(shoe, "mask").parent.name == "shoes_mask"
    assert shoes.path(shoe, "control1").parent.name == "shoes-control"
    assert shoes.path(shoe, "control2") is None
    assert shoes.path(shoe, "../a.png") is None


def test_folders_by_kohyas_rules_and_frames_belong_to_the_folder_around_them(
    library: Library, put: Make, own: Path
) -> None:
    put("kohya/5_zorble", "a")
    put("kohya/2_other", "a")
    write_frames(own / "film" / "walk", range(3))
    (own / "film" / "walk.txt").write_text("a walk")
    sets = {one["name"]: one["id"] for one in library.datasets()}
    assert sets.keys() == {"kohya", "film"}
    kohya = library.open(sets["kohya"])
    assert kohya.config.kohya_folders
    assert {kohya.row(item)["fallback"] for item in kohya.keys} == {"zorble", "other"}
    (walk,) = (library.open(sets["film"]).row(item) for item in library.open(sets["film"]).keys)
    assert (walk["caption"], walk["clip"]["frames"]) == ("a walk", 3)


def test_caption_files_of_another_suffix_are_taken_where_they_are_the_usual_ones(library: Library, put: Make) -> None:
    folder = put("set", "a", "b")
    for name in ("a", "b"):
        (folder / f"{name}.caption").write_text("written")
    (only,) = library.datasets()
    opened = library.open(only["id"])
    assert opened.config.caption_extension == "caption"
    assert {opened.row(item)["caption"] for item in opened.keys} == {"written"}


def test_what_runs_used_is_read_as_they_did(library: Library, put: Make, tmp_path: Path) -> None:
    folder = put("set", "a", caption="x")
    put("set/odd", "a")
    foreign = put("elsewhere", "a", at=tmp_path)
    for name, mask, resolution in (("first", None, 64), ("second", str(folder / "odd"), 128)):
        run = tmp_path / "runs" / name
        run.mkdir(parents=True)
        sets = [DatasetConfig(folder=str(folder), mask_folder=mask, resolutions=(resolution,), trigger="zorble")]
        job = JobConfig(name=name, datasets=(*sets, DatasetConfig(folder=str(foreign))))
        (run / "job.yaml").write_text(dump_job(job), encoding="utf-8")
        (run / "run.json").write_text("{}")
        os.utime(run / "job.yaml", (resolution, resolution))
    (only,) = library.datasets()
    assert only["used_by"] == ["first", "second"]
    assert only["resolutions"] == [128]
    opened = library.open(only["id"])
    assert [*opened.keys.values()] == ["a.png"]
    assert opened.config.trigger == "zorble"


def test_a_set_is_named_by_an_id_that_was_given_out_and_by_nothing_else(library: Library, put: Make, own: Path) -> None:
    put("set", "a")
    put("elsewhere", "a", at=own.parent)
    (only,) = library.datasets()
    opened = library.open(only["id"])
    for name in ("set", str(own / "set"), "../elsewhere", "", only["id"].upper() + "0", None, 7, ["set"]):
        with pytest.raises(NotListed):
            library.open(name)
        with pytest.raises(NotListed):
            opened.key(name)
    (own / "set" / "a.png").unlink()
    (own / "set").rmdir()
    with pytest.raises(NotListed):
        library.open(only["id"])


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")
def test_links_are_followed_only_into_roots(library: Library, put: Make, own: Path, tmp_path: Path) -> None:
    put("good", "a", at=tmp_path / "allowed")
    secret = put("secret", "a", "b", at=tmp_path)
    (own / "inside").symlink_to(tmp_path / "allowed" / "good", target_is_directory=True)
    (own / "outside").symlink_to(secret, target_is_directory=True)
    (own / "circle").symlink_to(own, target_is_directory=True)
    known = put("later", "a")
    sets = {one["name"]: one for one in library.datasets()}
    assert sets.keys() == {"inside", "later"}
    known.rename(own / "moved")
    known.symlink_to(secret, target_is_directory=True)
    with pytest.raises(NotListed):
        library.open(sets["later"]["id"])


def test_new_sets_have_plain_names_and_are_listed_while_they_are_empty(library: Library, own: Path) -> None:
    made = library.create("new cats")
    assert (made["upload"], made["pictures"], (own / "new cats").is_dir()) == ("new cats", 0, True)
    assert named(library) == {"new cats": (0, 0)}
    assert library.open(made["id"]).ordered(missing_first=True) == []
    for name in ("new cats", "../x", "a/b", "a\\b", "", " ", ".x", "CON", "pasted", "demo", "a\0b", "x" * 101, None, 7):
        with pytest.raises(ConfigError, match="name"):
            library.create(name)
    assert [path.name for path in own.iterdir()] == ["new cats"]


def test_files_that_come_are_seen(library: Library, put: Make) -> None:
    folder = put("set", "a")
    old = time.time() - 60
    os.utime(folder, (old, old))
    (only,) = library.datasets()
    before = library.open(only["id"])
    assert library.open(only["id"]) is before  # nothing has changed: not looked at again
    put("set", "b")
    assert [*library.open(only["id"]).keys.values()] == ["a.png", "b.png"]
