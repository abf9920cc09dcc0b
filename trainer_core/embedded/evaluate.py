"""What a LoRA did to the embedded base, judged on pictures that it draws.

activation      share of trigger prompts whose picture shows the concept
generalization  share of trigger prompts with colours and backgrounds absent from the data whose picture shows concept,
                colour and background all right
leak            share of no-trigger prompts that the base drew right and that the LoRA, with the same seed, draws wrong
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..config import ModelConfig, SampleConfig
from .demo_data import SEEN_BACKGROUNDS, SEEN_COLOURS
from .shapes import COLOURS, CONCEPT, SHAPES, Scene

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ..families.base import Base
    from .judge import Verdict

JUDGE = Path(__file__).parent / "base" / "judge.safetensors"
_BATCH = 50


@dataclass(frozen=True)
class Prompt:
    """A caption, the scene that it asks for, and the seed of its picture."""

    text: str
    scene: Scene
    seed: int


@dataclass(frozen=True)
class Scores:
    """The three numbers for one model; `plain` is the share of no-trigger prompts that are drawn right."""

    activation: float
    generalization: float
    leak: float
    plain: float


def trigger_prompts(trigger: str, count: int, seed: int = 100) -> list[Prompt]:
    """Captions with the trigger in all pairs of colours, seen and unseen."""
    rng = random.Random(seed)
    pairs = [rng.sample(list(COLOURS), 2) for _ in range(count)]
    scenes = [Scene(CONCEPT, colour, background) for colour, background in pairs]
    return [Prompt(scene.caption(trigger), scene, seed * 1000 + k) for k, scene in enumerate(scenes)]


def unseen_prompts(trigger: str, count: int, seed: int = 200) -> list[Prompt]:
    """Captions with the trigger in colours and on backgrounds that no picture of the demo's data shows."""
    pairs = [
        (colour, background)
        for colour in COLOURS
        for background in COLOURS
        if colour not in SEEN_COLOURS and background not in SEEN_BACKGROUNDS and colour != background
    ]
    scenes = [Scene(CONCEPT, *pairs[k % len(pairs)]) for k in range(count)]
    return [Prompt(scene.caption(trigger), scene, seed * 1000 + k) for k, scene in enumerate(scenes)]


def plain_prompts(count: int, seed: int = 300) -> list[Prompt]:
    """Captions without the trigger, of what the base knows."""
    rng = random.Random(seed)
    pairs = [rng.sample(list(COLOURS), 2) for _ in range(count)]
    scenes = [Scene(SHAPES[k % len(SHAPES)], pair[0], pair[1]) for k, pair in enumerate(pairs)]
    return [Prompt(scene.caption(), scene, seed * 1000 + k) for k, scene in enumerate(scenes)]


class Painter:
    """The embedded base with its parts in memory, for drawing many small pictures."""

    def __init__(self, lora: Path | None = None) -> None:
        from ..adapters.comfy_format import for_modules, parse
        from ..adapters.safetensors_file import read_tensors
        from ..families.registry import open_base

        self.base: Base = open_base(ModelConfig(source="embedded"))
        self.base.load_text_encoders()
        self.base.load_vae()
        self.denoiser: nn.Module = self.base.load_denoiser()
        self._changes = for_modules(parse(read_tensors(lora)), self.denoiser, self.base) if lora else None

    def paint(self, prompts: Sequence[Prompt], progress: Callable[[int], None] | None = None) -> Tensor:
        """Pictures (N, 3, 64, 64) in [-1, 1], with the LoRA at strength 1 if there is one."""
        import torch

        from ..adapters.comfy_format import applied
        from ..sampling import SamplerSettings, draw

        settings = SamplerSettings.of(SampleConfig(), self.base)
        pictures = []
        with applied(self.denoiser, self._changes, 1.0) if self._changes else nullcontext():
            for start in range(0, len(prompts), _BATCH):
                part = prompts[start : start + _BATCH]
                *texts, blank = self.base.encode_prompts([*(prompt.text for prompt in part), ""])
                seeds = [prompt.seed for prompt in part]
                latents = draw(self.base, self.denoiser, texts, seeds, settings, blank)
                pictures.append(self.base.decode_latents(latents))
                if progress:
                    progress(len(part))
        return torch.cat(pictures)


def verdicts(pictures: Tensor) -> list[Verdict]:
    """What the judge sees."""
    from .judge import load_judge

    return load_judge(JUDGE).verdicts(pictures)


def right(prompts: Sequence[Prompt], seen: Sequence[Verdict]) -> list[bool]:
    """Which pictures show what was asked for: shape, colour and background."""
    return [
        (v.shape, v.colour, v.background) == (p.scene.shape, p.scene.colour, p.scene.background)
        for p, v in zip(prompts, seen, strict=True)
    ]


def compare(
    lora: Path, trigger: str, count: int = 200, progress: Callable[[int, int], None] | None = None
) -> tuple[Scores, Scores]:
    """Scores of the base alone and with the LoRA, over `count` pictures for each number; 6 · `count` are drawn."""
    groups = [trigger_prompts(trigger, count), unseen_prompts(trigger, count), plain_prompts(count)]
    done = 0

    def advance(pictures: int) -> None:
        nonlocal done
        done += pictures
        if progress:
            progress(done, 6 * count)

    seen = [[verdicts(painter.paint(prompts, advance)) for prompts in groups] for painter in (Painter(), Painter(lora))]
    base_right = right(groups[2], seen[0][2])

    def scores(shown: list[list[Verdict]]) -> Scores:
        now_right = right(groups[2], shown[2])
        lost = sum(before and not now for before, now in zip(base_right, now_right, strict=True))
        return Scores(
            activation=sum(v.shape == CONCEPT for v in shown[0]) / count,
            generalization=sum(right(groups[1], shown[1])) / count,
            leak=lost / max(1, sum(base_right)),
            plain=sum(now_right) / count,
        )

    return scores(seen[0]), scores(seen[1])
