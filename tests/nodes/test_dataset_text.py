"""What Load Dataset says of a data set."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest

Pack = Callable[[str], ModuleType]


@pytest.fixture
def text_of(pack: Pack) -> Callable[..., str]:
    text, report = pack("nodes.dataset_text"), pack("trainer_core.data.lint.report")

    def shown(*findings: tuple[Any, ...]) -> str:
        return text.findings_text(report.LintReport(tuple(report.Finding(*one) for one in findings), 10, ("x",)))

    return shown


def test_findings_are_lines_with_a_mark_and_a_file(text_of: Callable[..., str]) -> None:
    shown = text_of(
        ("error", "broken", ("a.png",), "cannot be read"),
        ("warning", "duplicates", ("b.png", "c.png", "d.png"), "look alike"),
        ("note", "count", (), "few images"),
    )
    assert shown.splitlines() == [
        "checked 10 images: 1 error, 1 warning, 1 note",
        "✖ a.png: cannot be read",
        "⚠ b.png and 2 more: look alike",
        "• few images",
    ]


def test_a_clean_data_set_is_one_line(text_of: Callable[..., str]) -> None:
    assert len(text_of().splitlines()) == 1


def test_many_findings_are_cut_short(text_of: Callable[..., str]) -> None:
    alike = text_of(*(("warning", "tiny", (f"{k}.png",), "is tiny") for k in range(40)))
    assert len(alike.splitlines()) == 5
    assert "37 more" in alike
    many = text_of(*(("warning", f"check {k}", (f"{k}.png",), "is odd") for k in range(40)))
    assert len(many.splitlines()) == 14
    assert "lora-foundry lint" in many.splitlines()[-1]


def test_summary_tells_what_there_is_and_nothing_else(pack: Pack) -> None:
    text, summary = pack("nodes.dataset_text").summary_text, pack("trainer_core.data.summary").DatasetSummary
    plain = summary(3, {"64x64": 2, "64x96": 1}, [], [], 0, 0, {}, [], [])
    assert text(plain, (64,)) == "3 images; 64x64: 2, 64x96: 1"
    full = summary(3, {"64x64": 3}, [], [], 2, 1, {"10_cat": 10, "2_dog": 2}, [], ["one", "two"])
    assert text(full, (64,)).splitlines()[1:] == [
        "repeats: 10_cat ×10, 2_dog ×2",
        "masks: 2",
        "control images: 1 each",
        "⚠ one",
        "⚠ two",
    ]


def test_resolutions_above_the_pictures_are_told(pack: Pack) -> None:
    text, summary = pack("nodes.dataset_text").summary_text, pack("trainer_core.data.summary").DatasetSummary
    found = summary(3, {"448x576": 2, "320x320": 1}, [], [], 0, 0, {}, [], [])
    assert text(found, (512,)).splitlines()[1:] == []
    expected = (
        "⚠ resolutions: 768, 1024 is above the pictures' size: none is enlarged, the largest is trained at 448x576"
    )
    assert text(found, (512, 768, 1024)).splitlines()[1:] == [expected]
