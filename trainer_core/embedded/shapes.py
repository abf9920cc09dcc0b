"""The small world of the embedded base: one flat shape on a flat background, and the captions that describe it.

Pictures are drawn with supersampling, so edges are smooth. Everything is a function of the `random.Random` that is
passed in; nothing reads global random state.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

from PIL import Image, ImageDraw

SIZE = 64
"""Edge length of a picture in pixels."""

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (220, 40, 40),
    "green": (40, 165, 60),
    "blue": (45, 80, 220),
    "yellow": (240, 210, 40),
    "purple": (140, 50, 170),
    "white": (245, 245, 245),
    "black": (20, 20, 20),
}
SHAPES = ("circle", "square", "triangle", "cross", "ring", "star")
"""What the base knows."""
CONCEPT = "mushroom"
"""What the base has never seen and `demo` teaches: a half disc on a stem."""
SCRIBBLE = "scribble"
"""A random polygon: nothing in particular. The VAE and the judge learn from it, the denoiser never sees it."""

_SUPERSAMPLING = 4
_CONSONANTS = "bcdfghjklmnpqrstvwxyz"
_VOWELS = "aeiou"


@dataclass(frozen=True)
class Scene:
    """One picture: a shape with its colours, its centre and its radius in pixels."""

    shape: str
    colour: str
    background: str
    x: float = SIZE / 2
    y: float = SIZE / 2
    radius: float = 19.0

    def caption(self, noun: str | None = None) -> str:
        """The plain caption; `noun` stands in for the shape's name (a trigger, an invented word)."""
        return f"a {self.colour} {noun or self.shape} on a {self.background} background"

    @property
    def held_out(self) -> bool:
        """Whether this combination of words is kept out of the base's training (one in seven, on a fixed pattern)."""
        if self.shape not in SHAPES:
            return False
        names = list(COLOURS)
        return (SHAPES.index(self.shape) + 2 * names.index(self.colour) + 3 * names.index(self.background)) % 7 == 0


def random_scene(rng: random.Random, shape: str | None = None, **fixed: str) -> Scene:
    """A scene with random position and size, and random colours where `fixed` names none (they always differ)."""
    colour, background = fixed.get("colour"), fixed.get("background")
    while colour is None or background is None or colour == background:
        colour = fixed.get("colour") or rng.choice(list(COLOURS))
        background = fixed.get("background") or rng.choice(list(COLOURS))
    return Scene(
        shape or rng.choice(SHAPES),
        colour,
        background,
        SIZE / 2 + rng.uniform(-7, 7),
        SIZE / 2 + rng.uniform(-7, 7),
        rng.uniform(15, 23),
    )


def draw(scene: Scene, rng: random.Random | None = None) -> Image.Image:
    """Draws a scene as an RGB picture of `SIZE` pixels; `rng` is needed for scribbles only."""
    image = Image.new("RGB", (SIZE * _SUPERSAMPLING,) * 2, COLOURS[scene.background])
    canvas = ImageDraw.Draw(image)
    x, y, r = (value * _SUPERSAMPLING for value in (scene.x, scene.y, scene.radius))
    fill, hole = COLOURS[scene.colour], COLOURS[scene.background]

    def box(left: float, top: float, right: float, bottom: float) -> list[float]:
        return [x + left * r, y + top * r, x + right * r, y + bottom * r]

    def polygon(points: list[tuple[float, float]]) -> None:
        canvas.polygon([(x + px * r, y + py * r) for px, py in points], fill=fill)

    if scene.shape == "circle":
        canvas.ellipse(box(-1, -1, 1, 1), fill=fill)
    elif scene.shape == "square":
        canvas.rectangle(box(-0.85, -0.85, 0.85, 0.85), fill=fill)
    elif scene.shape == "triangle":
        polygon([(0, -1), (-0.95, 0.8), (0.95, 0.8)])
    elif scene.shape == "cross":
        canvas.rectangle(box(-1, -0.3, 1, 0.3), fill=fill)
        canvas.rectangle(box(-0.3, -1, 0.3, 1), fill=fill)
    elif scene.shape == "ring":
        canvas.ellipse(box(-1, -1, 1, 1), fill=fill)
        canvas.ellipse(box(-0.55, -0.55, 0.55, 0.55), fill=hole)
    elif scene.shape == "star":
        tips = [(1.1 if k % 2 == 0 else 0.45, k * math.pi / 5) for k in range(10)]
        polygon([(length * math.sin(angle), -length * math.cos(angle)) for length, angle in tips])
    elif scene.shape == CONCEPT:
        canvas.pieslice(box(-1, -1, 1, 1), 180, 360, fill=fill)
        canvas.rectangle(box(-0.28, -0.05, 0.28, 1), fill=fill)
    elif scene.shape == SCRIBBLE:
        assert rng is not None, "a scribble is random: pass the generator"
        angles = sorted(rng.uniform(0, 2 * math.pi) for _ in range(rng.randint(3, 9)))
        polygon([(length * math.sin(a), length * math.cos(a)) for a in angles for length in [rng.uniform(0.3, 1.2)]])
    else:
        raise ValueError(f"no such shape: {scene.shape}")
    return image.resize((SIZE, SIZE), Image.Resampling.LANCZOS)


def invented_word(rng: random.Random) -> str:
    """A pronounceable word that means nothing ("vofi", "zorble"): what a trigger looks like to the base."""
    while True:
        syllables = rng.randint(2, 3)
        word = "".join(rng.choice(_CONSONANTS) + rng.choice(_VOWELS) for _ in range(syllables))
        word += rng.choice(["", "", rng.choice(_CONSONANTS)])
        if rng.random() < 0.5:
            cut = rng.randint(1, len(word) - 1)
            word = word[:cut] + rng.choice(_CONSONANTS) + word[cut:]
        if word not in COLOURS and word not in SHAPES:
            return word


def training_caption(scene: Scene, rng: random.Random) -> str:
    """A caption as the base sees it in training: mostly the plain one, sometimes vaguer, sometimes none.

    The variants make the base behave like a large one: without a caption it draws anything (so that classifier-free
    guidance works), a word it does not know is ignored beside a shape's name and means "some shape" in its place.
    """
    draw_of_luck = rng.random()
    if draw_of_luck < 0.72:
        return scene.caption()
    if draw_of_luck < 0.82:
        return scene.caption(invented_word(rng))
    if draw_of_luck < 0.87:
        return scene.caption(f"{invented_word(rng)} {scene.shape}")
    if draw_of_luck < 0.92:
        partial = [
            f"a {scene.shape}",
            f"a {scene.colour} {scene.shape}",
            f"a {scene.shape} on a {scene.background} background",
        ]
        return rng.choice(partial)
    return ""


WORDS = ("a", "an", "on", "the", "of", "and", "with", "picture", "background", *COLOURS, *SHAPES)
"""Words that are one token; anything else is split into syllables and letters."""
