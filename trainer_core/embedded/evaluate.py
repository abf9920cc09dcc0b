"""What a LoRA did to the embedded base, judged on pictures that it draws.

activation      share of trigger prompts whose picture shows the concept
generalization  share of trigger prompts with colours and backgrounds absent from the data whose picture shows concept,
                colour and background all right
leak            share of no-trigger prompts that the base drew right and that the LoRA, with the same seed, draws wrong
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
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
        from ..adapters.parsing import for_modules, parse
        from ..families.registry import open_base
        from ..safetensors_file import read_tensors

        self.base: Base = open_base(ModelConfig(source="embedded"))
        self.base.load_text_encoders()
        self.base.load_vae()
        self.denoiser: nn.Module = self.base.load_denoiser()
        self.deltas = for_modules(parse(read_tensors(lora)), self.denoiser, self.base) if lora else None

    def drawing(self) -> AbstractContextManager[None]:
        """The denoiser with the LoRA at strength 1, if there is one."""
        from ..adapters.applied import applied

        return applied(self.denoiser, self.deltas, 1.0) if self.deltas else nullcontext()

    def paint(self, prompts: Sequence[Prompt], progress: Callable[[int], None] | None = None) -> Tensor:
        """Pictures (N, 3, 64, 64) in [-1, 1], with the LoRA at strength 1 if there is one."""
        import torch

        from ..families.conditioning import Conditioning
        from ..sampling.sampler import SamplerSettings, draw

        settings = SamplerSettings.of(SampleConfig(), self.base)
        pictures = []
        with self.drawing():
            for start in range(0, len(prompts), _BATCH):
                part = prompts[start : start + _BATCH]
                *texts, blank = self.base.encode_prompts([*(prompt.text for prompt in part), ""])
                seeds = [prompt.seed for prompt in part]
                shown, negative = [Conditioning("", text) for text in texts], Conditioning("", blank)
                latents = draw(self.base, lambda _: self.denoiser, shown, seeds, settings, negative)
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


class Evaluation:
    """The three numbers for any number of LoRAs of one trigger; the base's own pictures are drawn once."""

    def __init__(self, trigger: str, count: int = 200, progress: Callable[[int], None] | None = None) -> None:
        """Draws with the base alone: `count` pictures for each number. `progress` gets the pictures drawn at a time."""
        self.count, self._progress = count, progress
        self._groups = [trigger_prompts(trigger, count), unseen_prompts(trigger, count), plain_prompts(count)]
        seen = self._seen(Painter())
        self._base_right = right(self._groups[2], seen[2])
        self.base = self._scores(seen)

    def of(self, lora: Path) -> Scores:
        """The scores with a LoRA, on the same prompts and seeds."""
        return self._scores(self._seen(Painter(lora)))

    def _seen(self, painter: Painter) -> list[list[Verdict]]:
        return [verdicts(painter.paint(prompts, self._progress)) for prompts in self._groups]

    def _scores(self, seen: list[list[Verdict]]) -> Scores:
        now_right = right(self._groups[2], seen[2])
        lost = sum(before and not now for before, now in zip(self._base_right, now_right, strict=True))
        return Scores(
            activation=sum(v.shape == CONCEPT for v in seen[0]) / self.count,
            generalization=sum(right(self._groups[1], seen[1])) / self.count,
            leak=lost / max(1, sum(self._base_right)),
            plain=sum(now_right) / self.count,
        )


def compare(lora: Path, trigger: str, count: int = 200) -> tuple[Scores, Scores]:
    """Scores of the base alone and with the LoRA, over `count` pictures for each number; 6 · `count` are drawn."""
    evaluation = Evaluation(trigger, count)
    return evaluation.base, evaluation.of(lora)
