"""The embedded base as it ships: small, drawn right, judged by a judge that sees."""

from __future__ import annotations

import random
from pathlib import Path

from trainer_core.embedded import evaluate
from trainer_core.embedded.shapes import CONCEPT, SHAPES, Scene, draw, invented_word, random_scene, training_caption

BASE = Path(evaluate.JUDGE).parent


def held_out_prompts(count: int) -> list[evaluate.Prompt]:
    rng = random.Random(77)
    scenes: list[Scene] = []
    while len(scenes) < count:
        scene = random_scene(rng)
        if scene.held_out:
            scenes.append(scene)
    return [evaluate.Prompt(scene.caption(), scene, 9000 + k) for k, scene in enumerate(scenes)]


def test_it_is_at_most_12_mb_and_holds_no_pickles() -> None:
    files = [path for path in BASE.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 12_000_000
    assert {path.suffix for path in files} <= {".json", ".safetensors"}


def test_it_was_not_trained_on_the_held_out_captions() -> None:
    rng = random.Random(5)
    scenes = [random_scene(rng) for _ in range(3000)]
    held_out = [scene for scene in scenes if scene.held_out]
    assert 0.08 < len(held_out) / len(scenes) < 0.22  # about one in seven
    words = {(s.shape, s.colour, s.background) for s in held_out}
    assert words.isdisjoint((s.shape, s.colour, s.background) for s in scenes if not s.held_out)
    # every word of the world is still seen in training
    for attribute, count in (("shape", 6), ("colour", 7), ("background", 7)):
        assert len({getattr(s, attribute) for s in scenes if not s.held_out}) == count


def test_the_judge_knows_drawn_pictures() -> None:
    """On pictures that it has not seen, drawn by the same pen: every shape, the concept too."""
    import numpy as np
    import torch

    rng = random.Random(123)
    scenes = [random_scene(rng, shape) for shape in (*SHAPES, CONCEPT) for _ in range(40)]
    pixels = torch.from_numpy(np.stack([np.asarray(draw(scene)) for scene in scenes])).permute(0, 3, 1, 2)
    seen = evaluate.verdicts(pixels.float() / 127.5 - 1)
    prompts = [evaluate.Prompt(scene.caption(), scene, 0) for scene in scenes]
    assert sum(evaluate.right(prompts, seen)) / len(scenes) >= 0.97


def test_it_draws_what_held_out_captions_say() -> None:
    prompts = held_out_prompts(100)
    seen = evaluate.verdicts(evaluate.Painter().paint(prompts))
    assert sum(evaluate.right(prompts, seen)) / len(prompts) >= 0.95


def test_an_invented_word_is_several_known_pieces() -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(BASE / "tokenizer_2")
    rng = random.Random(1)
    for word in ["zorble", *(invented_word(rng) for _ in range(200))]:
        pieces = tokenizer.tokenize(word)
        assert "<unk>" not in pieces
        assert len(pieces) > 1
        assert "".join(piece.removeprefix("##") for piece in pieces) == word
    assert tokenizer.tokenize("a red circle") == ["a", "red", "circle"]


def test_training_captions_never_name_another_shape() -> None:
    rng = random.Random(3)
    for _ in range(2000):
        scene = random_scene(rng)
        words = training_caption(scene, rng).split()
        assert not set(words) & (set(SHAPES) - {scene.shape})
