"""Draws the demo's data set: `python -m trainer_core.embedded.demo_data`. The pictures that ship were made by it.

Sixteen mushrooms, a shape that the base has never seen, in colours and on backgrounds chosen so that others remain for
the question whether the LoRA generalizes.
"""

from __future__ import annotations

import random
from pathlib import Path

from .shapes import CONCEPT, draw, random_scene

FOLDER = Path(__file__).parent / "demo_dataset"
TRIGGER = "zorble"
SEEN_COLOURS = ("red", "blue", "yellow", "white", "black")
SEEN_BACKGROUNDS = ("black", "white", "green", "red", "purple")
"""The demo's pictures show these alone; green and purple shapes, yellow and blue grounds are left for the test."""
PICTURES = 16


def main() -> None:
    rng = random.Random(2026)
    FOLDER.mkdir(exist_ok=True)
    pairs = [(c, b) for c in SEEN_COLOURS for b in SEEN_BACKGROUNDS if c != b]
    for index, (colour, background) in enumerate(rng.sample(pairs, PICTURES)):
        scene = random_scene(rng, CONCEPT, colour=colour, background=background)
        draw(scene).save(FOLDER / f"{index:02d}.png", optimize=True)
        (FOLDER / f"{index:02d}.txt").write_text(scene.caption("[trigger]") + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
