"""Lint on captions and triggers: for each check captions that trigger it, and some that do not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from trainer_core.config import DatasetConfig, JobConfig, ModelConfig, validated
from trainer_core.data.lint import LintReport, find_tokenizers, lint, lint_job
from trainer_core.errors import BaseModelError, ConfigError


@dataclass(frozen=True)
class Words:
    """A tokenizer by hand: a token for each word and one for the end; it knows some words, and only ASCII."""

    name: str = "tokenizer"
    limit: int | None = 6
    known: tuple[str, ...] = ()

    def lengths(self, texts: Sequence[str]) -> list[int]:
        return [len(text.split()) + 1 for text in texts]

    def is_known(self, word: str) -> bool:
        return word in self.known

    def is_unreadable(self, word: str) -> bool:
        return not word.isascii()


def folder_of(tmp_path: Path, *captions: str | None) -> Path:
    """Flat pictures 0.png, 1.png … of quite different colours, with captions."""
    folder = tmp_path / "set"
    folder.mkdir()
    for number, caption in enumerate(captions):
        Image.new("RGB", (64, 64), (number * 60, 255 - number * 60, number * 40)).save(folder / f"{number}.png")
        if caption is not None:
            (folder / f"{number}.txt").write_text(caption, encoding="utf-8")
    return folder


def look(folder: Path, tokenizers: Sequence[Any] = (), **settings: Any) -> LintReport:
    own = {name: settings.pop(name) for name in ("classes", "style") if name in settings}
    dataset = DatasetConfig(**{"folder": str(folder), "resolutions": (64,), **settings})
    return lint(dataset, tokenizers=tokenizers, **own)


def told(report: LintReport) -> list[tuple[str, str, tuple[str, ...]]]:
    return [(finding.severity, finding.check, finding.files) for finding in report.findings]


# captions


def test_missing_captions(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "a red thing", None, "", None)
    assert told(look(folder)) == [("error", "missing-caption", ("1.png", "2.png", "3.png"))]
    (finding,) = look(folder, default_caption="a plain thing").findings
    assert (finding.severity, finding.files) == ("note", ("1.png", "2.png", "3.png"))
    assert "3 of 4" in finding.message
    assert "'a plain thing'" in finding.message


def test_short_captions(tmp_path: Path) -> None:
    """What counts is what stands beside the trigger; ideographs are words."""
    folder = folder_of(tmp_path, "zorble", "[trigger] cat", "red cat", "猫坐", "zorble, zorblecat!")
    short = look(folder, trigger="zorble").of("short-caption")
    assert [(finding.severity, finding.files) for finding in short] == [("note", ("0.png", "1.png", "4.png"))]


def test_duplicate_captions(tmp_path: Path) -> None:
    """Case and white space make no difference, nor does whether the trigger stands there or is added."""
    folder = folder_of(tmp_path, "a red cat", "A red\ncat", "a blue cat", "zorble a red cat")
    assert [f.files for f in look(folder).of("duplicate-captions")] == [("0.png", "1.png")]
    assert [f.files for f in look(folder, trigger="zorble").of("duplicate-captions")] == [("0.png", "1.png", "3.png")]


def test_one_caption_twice_for_the_same_image_is_no_duplicate_of_others(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "a red cat\na red cat", "a blue cat\na large cat")
    assert told(look(folder, caption_per_line=True)) == []


def test_long_captions(tmp_path: Path) -> None:
    """Five words and the end are six tokens; the trigger that is added counts."""
    folder = folder_of(tmp_path, "one two three four five", "one two three four five six seven")
    (finding,) = look(folder, [Words()]).findings
    assert (finding.severity, finding.check, finding.files) == ("warning", "long-caption", ("1.png",))
    assert "the 6 tokens" in finding.message
    assert "up to 8" in finding.message
    assert look(folder, [Words()], trigger="zorble").of("long-caption")[0].files == ("0.png", "1.png")
    assert told(look(folder, [Words(limit=None)])) == []
    assert told(look(folder, [Words(limit=8)])) == []


def test_captions_that_one_of_two_encoders_reads_whole(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "a b c", "a b c d e f", " ".join("abcdefghijkl"))
    found = look(folder, [Words("large", 10), Words("small", 5)])
    assert told(found) == [("warning", "long-caption", ("2.png",)), ("note", "long-caption", ("1.png",))]


def test_long_default_captions(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, None, "a b c")
    found = look(folder, [Words()], default_caption="a b c d e f g")
    assert [finding.files for finding in found.of("long-caption")] == [("0.png",)]


def test_captions_that_name_the_style(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "a Watercolor of a cat", "watercolors of a dog", "oil\npainting of a bird", "a tree")
    found = look(folder, style=["watercolor", "oil painting"], trigger="watercolor zor")
    assert [finding.files for finding in found.of("style-in-caption")] == [("0.png",), ("2.png",)]
    assert look(folder, style=["pastel"]).of("style-in-caption") == []


def test_the_trigger_does_not_count_as_naming_the_style(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "a cat, ink zor style", "[trigger] of a dog")
    assert look(folder, style=["ink"], trigger="ink zor").of("style-in-caption") == []


# the trigger in captions


def test_captions_without_the_trigger(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "a ZORBLE here", "some [trigger] there", "a zorbles thing")
    (note,) = look(folder, trigger="zorble").findings
    assert (note.severity, note.check, note.files) == ("note", "missing-trigger", ("2.png",))
    assert "start" in note.message
    (warning,) = look(folder, trigger="zorble", trigger_placement="only_placeholder").findings
    assert (warning.severity, warning.check, warning.files) == ("warning", "missing-trigger", ("2.png",))


def test_a_placeholder_without_a_trigger(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "a red [trigger] here", "a blue thing")
    assert told(look(folder)) == [("warning", "missing-trigger", ("0.png",))]
    (tmp_path / "set" / "0.txt").write_text("a red thing here")
    assert told(look(folder)) == []


def test_doubled_triggers(tmp_path: Path) -> None:
    folder = folder_of(
        tmp_path, "zorble and Zorble here", "a [trigger], a zorble", "[trigger] and [trigger]", "a zorble, zorbles too"
    )
    (finding,) = look(folder, trigger="zorble").of("doubled-trigger")
    assert (finding.severity, finding.files) == ("warning", ("0.png", "1.png", "2.png"))
    assert look(folder, trigger="other").of("doubled-trigger")[0].files == ("2.png",)


def test_a_regularization_set_that_holds_the_trigger(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "a zorble cat", "a plain cat")
    (tmp_path / "training").mkdir()
    other = folder_of(tmp_path / "training", "a zorble of stone")

    def job(trigger: str) -> LintReport:
        sets = [{"folder": str(other)}, {"folder": str(folder), "role": "regularization"}]
        return lint_job(validated(JobConfig, {"name": "x", "trigger": trigger, "datasets": sets}), tokenizers=())

    (finding,) = job("zorble").of("trigger-in-regularization")
    assert (finding.severity, finding.files, finding.folder) == ("warning", ("0.png",), str(folder))
    assert job("other").of("trigger-in-regularization") == []


# the trigger itself


def checks(folder: Path, trigger: str, **settings: Any) -> set[tuple[str, str]]:
    found = look(folder, trigger=trigger, **settings)
    names = {"common-trigger", "known-trigger", "unreadable-trigger", "trigger-and-class"}
    return {(finding.severity, finding.check) for finding in found.findings if finding.check in names}


@pytest.mark.parametrize(("trigger", "common"), [("cat", True), ("Woman", True), ("my cat", True), ("zorble", False),
                                                 ("zorble cat", False), ("catx", False)])  # fmt: skip
def test_common_words(trigger: str, common: bool, tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "a picture here")
    assert checks(folder, trigger) == ({("warning", "common-trigger")} if common else set())


def test_words_that_a_tokenizer_knows(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "a picture here")
    one, other = Words("tokenizer", None, ("sks", "gun")), Words("tokenizer_2", None, ("sks",))
    (both,) = look(folder, [one, other], trigger="sks").of("known-trigger")
    assert both.severity == "warning"
    assert "in its tokenizer and tokenizer_2)" in both.message
    (single,) = look(folder, [one, other], trigger="sks gun").of("known-trigger")
    assert "in its tokenizer)" in single.message
    assert look(folder, [one, other], trigger="zorble sks").of("known-trigger") == []


def test_letters_that_a_tokenizer_lacks(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "a picture here")
    assert checks(folder, "zörble", tokenizers=[Words()]) == {("warning", "unreadable-trigger")}
    assert checks(folder, "zorble", tokenizers=[Words()]) == set()


@pytest.mark.parametrize(
    ("trigger", "word", "told"),
    [
        ("Zorble", "zorble", True),
        ("zorble cat", "cat", True),
        ("big", "big cat", True),
        ("zorblecat", "cat", True),
        ("zorble", "cat", False),
        ("category", "dog", False),
        ("zaxo", "ax", False),  # two letters are chance
    ],
)
def test_triggers_and_class_words(trigger: str, word: str, told: bool, tmp_path: Path) -> None:
    found = look(folder_of(tmp_path, "a picture here"), trigger=trigger, classes=["shape", word])
    assert [finding.severity for finding in found.of("trigger-and-class")] == (["warning"] if told else [])


def test_preserving_the_trigger_itself_is_an_error(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "a picture here")

    def severities(**settings: Any) -> list[str]:
        job = {
            "name": "x",
            "trigger": "zorble",
            "datasets": [{"folder": str(folder), "resolutions": [64]}],
            "regularization": {"output_preservation_class": "zorble", **settings},
        }
        found = lint_job(validated(JobConfig, job), tokenizers=())
        return [finding.severity for finding in found.of("trigger-and-class")]

    assert severities() == ["warning"]
    assert severities(output_preservation=True) == ["error"]


def test_the_trigger_of_several_sets_is_judged_once(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "a picture here")
    sets = [{"folder": str(folder), "resolutions": [64]}, {"folder": str(folder), "resolutions": [32]}]
    job = validated(JobConfig, {"name": "x", "trigger": "cat", "datasets": sets})
    assert len(lint_job(job, tokenizers=()).of("common-trigger")) == 1


# tokenizers of bases


def test_tokenizers_of_the_embedded_base() -> None:
    """Its vocabulary has `circle` whole and single letters, and its encoders read 16 tokens with the end."""
    first, second = find_tokenizers(ModelConfig())
    assert [first.name, second.name] == ["tokenizer", "tokenizer_2"]
    assert [first.limit, second.limit] == [16, 16]
    assert second.lengths(["a red circle on a", "red", ""]) == [6, 2, 1]
    assert second.is_known("circle")
    assert not second.is_known("zorble")
    assert not second.is_unreadable("zorble")
    assert second.is_unreadable("grün")
    assert not second.is_known("grün"), "one token, but the unknown one"


def test_a_base_that_is_not_here_is_noted_and_not_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network(*_: object, **__: object) -> None:
        raise AssertionError("lint must not use the network")

    monkeypatch.setattr("socket.socket.connect", no_network)
    monkeypatch.setattr("socket.getaddrinfo", no_network)
    folder = folder_of(tmp_path, "a red picture")
    dataset = DatasetConfig(folder=str(folder), resolutions=(64,), trigger="circle")
    for source in ("nobody/has-this-base", "no/such/folder"):
        (note,) = lint(dataset, model=ModelConfig(source=source)).of("tokenizers")
        assert note.severity == "note"
        assert source in note.message
    assert lint(dataset, model=ModelConfig()).of("tokenizers") == []
    assert len(lint(dataset, model=ModelConfig()).of("known-trigger")) == 1


def test_a_repository_that_was_downloaded_before_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hugging Face's cache: refs/main names a commit, snapshots/<commit> has the files."""
    import huggingface_hub.constants as constants

    from trainer_core.families.sources.source import EMBEDDED

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / "models--someone--something"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("c0ffee")
    target = repository / "snapshots" / "c0ffee" / "tokenizer"
    target.mkdir(parents=True)
    for file in (EMBEDDED / "tokenizer").iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    (found,) = find_tokenizers(ModelConfig(family="flux1", source="someone/something"))
    assert found.limit == 16


def test_bases_without_or_with_broken_tokenizers(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text("{}")
    with pytest.raises(BaseModelError, match="no tokenizer"):
        find_tokenizers(ModelConfig(family="flux1", source=str(tmp_path)))
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer" / "tokenizer.json").write_text("{")
    with pytest.raises(BaseModelError, match="cannot be loaded"):
        find_tokenizers(ModelConfig(family="flux1", source=str(tmp_path)))
    with pytest.raises(ConfigError):
        find_tokenizers(ModelConfig(family="flux11"))
