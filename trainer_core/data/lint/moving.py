"""Checks of clips: too short, of a lower rate than is trained at, without motion, black, without sound."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from ...config import DatasetConfig
from ..clips.timing import lengths, resampled, timing_of
from .clips import ClipLook
from .looks import Look
from .report import Finding
from .survey import Circumstances, Survey

if TYPE_CHECKING:
    from ...families.spec import FamilySpec

STILL = 0.5
"""Motion (`ClipLook.motion`) under which nothing moves: less than what compression adds."""
BLACK = 8.0
"""Brightness under which nothing is seen; black is 16 in many files."""
SLOW = 0.75
"""Share of the rate that is trained at under which many frames come twice."""


def lengths_of(look: Look | None, dataset: DatasetConfig, spec: FamilySpec | None) -> list[int]:
    """In how many frames something is trained on; one if it is a picture."""
    timing = timing_of(dataset, spec)
    if timing is None or not isinstance(look, ClipLook):
        return [1]
    return lengths(len(resampled(look.clip, timing.rate)), dataset.frames, timing.step)


def check_clips(survey: Survey, where: Circumstances) -> Iterator[Finding]:
    """All checks of clips; none where they are left out."""
    timing = timing_of(survey.dataset, where.spec)
    clips = [(one.key, one.look) for one in survey.pictures if isinstance(one.look, ClipLook)]
    if timing is None or not clips:
        return
    least, rate = min(survey.dataset.frames), timing.rate
    told: dict[str, dict[str, str]] = {}
    for key, look in clips:
        count = len(resampled(look.clip, rate))
        if count < least:
            told.setdefault("short-clip", {})[key] = f"{count} frames"
        if rate and look.clip.rate and look.clip.rate < SLOW * rate:
            told.setdefault("frame-rate", {})[key] = f"{look.clip.rate:.4g}"
        if look.brightness < BLACK:
            told.setdefault("black-clip", {})[key] = ""
        elif look.motion < STILL:
            told.setdefault("no-motion", {})[key] = ""
        if where.spec and where.spec.sample_rate and not look.clip.sound:
            told.setdefault("no-sound", {})[key] = ""
    silence = "teach silence" if where.spec and where.spec.learns_silence else "teach nothing of sound"
    messages = {
        "short-clip": f"shorter than {least} frames ({{example}}): trained on at their own length",
        "frame-rate": f"fewer frames a second ({{example}}) than are trained at ({float(rate or 0):.4g}), so that many "
        "come twice",
        "black-clip": "black from start to end. Replace or remove",
        "no-motion": "nothing moves in them, which a video model learns too. Replace, or train on them as stills",
        "no-sound": f"have no sound, which the model makes: they {silence}",
    }
    for check, message in messages.items():
        if found := told.get(check):
            text = message.format(example=next(iter(found.values())))
            yield Finding("warning", check, tuple(found), text, survey.folder)
