"""`lora-foundry lint`, `cache` and `captions` as a user meets them."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from trainer_core.cli import main
from trainer_core.data.cache import CACHE_FOLDER, TensorCache, key_of

Make = Callable[..., Path]


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Defaults such as ./runs must not touch the checkout."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("COLUMNS", "200")


def run(capsys: pytest.CaptureFixture[str], *argv: str, code: int = 0) -> str:
    assert main(list(argv)) == code
    return capsys.readouterr().out


# lint


def test_lint_of_a_good_folder(make_dataset: Make, capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(make_dataset(caption="a large {colour} [trigger]"))
    common = ("lint", folder, "--trigger", "zorble", "--base", "embedded", "--resolutions", "64")
    assert run(capsys, *common) == "3 images: nothing to complain about\n"
    assert json.loads(run(capsys, *common, "--json"))["findings"] == []


def test_lint_tells_all_and_fails_for_errors_alone(make_dataset: Make, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_dataset(3, caption="a watercolor of a {colour} cat")
    common = ("lint", str(folder), "--base", "embedded", "--resolutions", "64", "--style", "watercolor")
    common += ("--trigger", "circle", "--class", "circle", "--placement", "only_placeholder")
    lines = run(capsys, *common).splitlines()
    assert [line.split()[:2] for line in lines[:-2] if line[0] != " "] == [
        ["warning", "style-in-caption"],
        ["warning", "missing-trigger"],
        ["warning", "common-trigger"],
        ["warning", "known-trigger"],
        ["warning", "trigger-and-class"],
    ]
    assert lines[-2:] == ["", "3 images: 5 warnings"]
    (folder / "0_red.png").write_bytes(b"")
    (folder / "1_green.txt").unlink()
    report = json.loads(run(capsys, *common, "--json", code=1))
    errors = [(one["check"], one["files"]) for one in report["findings"] if one["severity"] == "error"]
    assert errors == [("unreadable-image", ["0_red.png"]), ("missing-caption", ["1_green.png"])]
    assert report["counts"]["error"] == 2
    assert report["folders"] == [str(folder)]


def test_lint_wraps_long_rows(
    make_dataset: Make, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    folder = make_dataset(6, caption=None)
    lines = run(capsys, "lint", str(folder), "--resolutions", "64", "--base", "embedded", code=1).splitlines()
    assert lines[0].startswith("error  missing-caption  0_red.png, 1_green.png, 2_blue.png and 3 more: ")
    assert lines[1].startswith(" " * len("error  missing-caption  ") + "have")
    assert max(map(len, lines)) <= 80


def test_lint_of_a_job(make_job: Make, make_dataset: Make, capsys: pytest.CaptureFixture[str]) -> None:
    good = make_dataset(caption="a large {colour} [trigger]")
    assert run(capsys, "lint", str(make_job())) == "3 images: nothing to complain about\n"
    # the same pictures once more, to validate on
    sets: list[dict[str, Any]] = [
        {"folder": str(good), "resolutions": [64], "trigger": "zorble"},
        {"folder": str(good), "resolutions": [64], "role": "validation", "trigger": "zorble"},
    ]
    report = json.loads(run(capsys, "lint", str(make_job(datasets=sets)), "--json", code=1))
    assert report["checks"] == {"validation-leak": 3}
    assert report["images"] == 6


def test_lint_refuses_what_it_would_ignore(make_job: Make, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["lint", str(make_job()), "--trigger", "x", "--class", "y"]) == 1
    assert "--trigger, --class" in capsys.readouterr().err
    assert main(["lint", "nix.yaml"]) == 1
    assert "no such file" in capsys.readouterr().err
    assert main(["lint", ".", "--family", "flux11"]) == 1
    assert "did you mean `flux1`" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["lint", ".", "--validation-share", "0.6"])


def test_lint_of_no_folder_is_a_report(capsys: pytest.CaptureFixture[str]) -> None:
    assert "no such folder" in run(capsys, "lint", "nowhere", code=1)
    assert json.loads(run(capsys, "lint", "nowhere", "--json", code=1))["images"] == 0


# cache


def filled(root: Path, ages: list[float]) -> list[int]:
    """A cache of one entry for each age in days; gives the files' sizes."""
    import torch

    cache, sizes = TensorCache(root), []
    for number, days in enumerate(ages):
        cache.put(key_of(number), {"mean": torch.zeros(1000 * (number + 1))})
        (path,) = root.rglob(f"{key_of(number)}.safetensors")
        moment = time.time() - days * 86_400
        os.utime(path, (moment, moment))
        sizes.append(path.stat().st_size)
    return sizes


def test_cache_says_what_it_holds(capsys: pytest.CaptureFixture[str]) -> None:
    where = str(Path("runs") / CACHE_FOLDER)
    assert run(capsys, "cache") == f"{where}: empty\n"
    assert not Path("runs").exists()
    sizes = filled(Path("runs") / CACHE_FOLDER, [0, 0])
    assert run(capsys, "cache") == f"{where}: 2 entries, {sum(sizes) / 1024:.1f} kB\n"
    told = json.loads(run(capsys, "cache", "--json"))
    assert told == {
        "folder": where, "entries": 2, "bytes": sum(sizes), "deleted_entries": 0, "deleted_bytes": 0,
    }  # fmt: skip


def test_cache_is_cleared(capsys: pytest.CaptureFixture[str]) -> None:
    sizes = filled(Path("mine") / CACHE_FOLDER, [0, 3])
    filled(Path("runs") / CACHE_FOLDER, [0])
    told = json.loads(run(capsys, "cache", "--runs", "mine", "--clear", "--json"))
    assert (told["deleted_entries"], told["deleted_bytes"], told["entries"]) == (2, sum(sizes), 0)
    assert "1 entry" in run(capsys, "cache"), "other runs folders keep theirs"


def test_cache_is_shrunk_and_spares_what_is_in_use(capsys: pytest.CaptureFixture[str]) -> None:
    sizes = filled(Path("runs") / CACHE_FOLDER, [5, 3, 0])
    limit = (sizes[1] + sizes[2] + 10) / 2**30  # room for all but the oldest
    told = json.loads(run(capsys, "cache", "--limit", f"{limit!r}", "--json"))
    assert (told["deleted_entries"], told["deleted_bytes"]) == (1, sizes[0])
    printed = run(capsys, "cache", "--limit", "0").splitlines()
    assert printed[0] == f"deleted 1 entry, {sizes[1] / 1024:.1f} kB"
    assert "1 entry" in printed[1]
    assert "within the last day" in printed[2]


@pytest.mark.parametrize("argv", [["--limit", "-1"], ["--limit", "nan"], ["--limit", "1", "--clear"]])
def test_cache_refuses_nonsense(argv: list[str]) -> None:
    with pytest.raises(SystemExit):
        main(["cache", *argv])


# captions


def test_captions_of_metadata_lines_and_kohya_folders(make_dataset: Make, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_dataset(2, caption=None)
    rows = [{"file_name": "0_red.png", "words": ["a red [trigger]", "red"]}]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    (folder / "1_green.txt").write_text("one\ntwo\n", encoding="utf-8")
    (folder / "2_blue stones").mkdir()
    (folder / "0_red.png").rename(folder / "2_blue stones" / "x.png")
    (folder / "1_green.png").replace(folder / "0_red.png")
    (folder / "0_red.txt").write_text("one\ntwo\n", encoding="utf-8")
    command = ("captions", str(folder), "--trigger", "zor", "--column", "words", "--kohya-folders")
    told = json.loads(run(capsys, *command, "--caption-per-line", "--json"))
    assert told["captions"] == [
        {"file": "0_red.png", "caption": "zor one"},
        {"file": "0_red.png", "caption": "zor two"},
        {"file": "2_blue stones/x.png", "caption": "zor blue stones"},
    ]
    (folder / "0_red.txt").unlink()
    told = json.loads(run(capsys, *command, "--json"))
    assert [one["caption"] for one in told["captions"]] == ["a red zor", "zor red", "zor blue stones"]
