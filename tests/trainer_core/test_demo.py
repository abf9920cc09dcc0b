"""The demo, whole: what a new user runs first."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from trainer_core import demo
from trainer_core.embedded.demo_data import FOLDER, SEEN_BACKGROUNDS, SEEN_COLOURS, TRIGGER
from trainer_core.embedded.evaluate import plain_prompts, right, trigger_prompts, unseen_prompts
from trainer_core.embedded.judge import Verdict
from trainer_core.embedded.shapes import CONCEPT, SHAPES


def test_the_data_hold_sixteen_pictures_in_the_seen_colours_only() -> None:
    captions = [path.read_text(encoding="utf-8").split() for path in sorted(FOLDER.glob("*.txt"))]
    assert len(captions) == len(list(FOLDER.glob("*.png"))) == 16
    assert {words[1] for words in captions} <= set(SEEN_COLOURS)
    assert {words[5] for words in captions} <= set(SEEN_BACKGROUNDS)
    assert all(words[2] == "[trigger]" for words in captions)


def test_prompts_ask_for_what_they_measure() -> None:
    for prompt in unseen_prompts(TRIGGER, 200):
        words = prompt.text.split()
        assert words[2] == TRIGGER
        assert words[1] not in SEEN_COLOURS
        assert words[5] not in SEEN_BACKGROUNDS
        assert words[1] != words[5]
    assert all(TRIGGER in prompt.text for prompt in trigger_prompts(TRIGGER, 200))
    plain = plain_prompts(200)
    assert all(TRIGGER not in prompt.text and CONCEPT not in prompt.text for prompt in plain)
    assert {prompt.scene.shape for prompt in plain} == set(SHAPES)
    assert len({prompt.seed for prompt in plain}) == 200


def test_right_means_shape_colour_and_background() -> None:
    (prompt,) = plain_prompts(1)
    good = Verdict(prompt.scene.shape, prompt.scene.colour, prompt.scene.background)
    for wrong in (
        Verdict("other", good.colour, good.background),
        Verdict(good.shape, good.background, good.background),
        Verdict(good.shape, good.colour, good.colour),
    ):
        assert right([prompt, prompt], [good, wrong]) == [True, False]


@pytest.mark.slow
def test_the_demo_teaches_the_shape(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The promise of the README: the word means nothing before and the shape after, in colours never shown.

    A quarter of its pictures shows that; the README has the figures of all.
    """
    monkeypatch.setattr(demo, "IMAGES", demo.IMAGES // 4)
    monkeypatch.setattr(demo, "_GRID", demo._GRID[:2])
    said: list[str] = []
    result = demo.run_demo(tmp_path / "out", tmp_path / "demo.json", emit=said.append)
    assert json.loads((tmp_path / "demo.json").read_text(encoding="utf-8")) == result
    assert set(result) == {"activation", "generalization", "leak"}
    assert result["activation"]["before"] <= 0.05
    assert result["activation"]["after"] >= 0.85
    assert result["generalization"]["after"] >= 0.75
    assert result["leak"]["before"] == 0
    assert 0 <= result["leak"]["after"] <= 0.1
    assert any("activation" in line for line in said)
    assert (tmp_path / "out" / "demo.png").stat().st_size > 1000
