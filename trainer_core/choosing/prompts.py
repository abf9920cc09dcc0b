"""What is drawn to compare checkpoints: the run's own previews, and captions of its data, with the trigger and without.

Prompts without the trigger ask for what the LoRA must leave alone. The job's class word stands in the trigger's place,
where it has one; else captions are read without it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import TYPE_CHECKING

from ..data.captions import (
    PLACEHOLDER,
    contains_word,
    encoder_text,
    prompt_with_trigger,
    with_class,
    without_placeholder,
)
from ..data.clips.timing import timing_of
from ..data.scan import scan
from ..errors import DatasetError
from ..randomness import permutation
from ..sampling.controls import PromptControls, of_items, of_job

if TYPE_CHECKING:
    from ..config import DatasetConfig, JobConfig
    from ..data.scan import Item
    from ..families.base import FamilySpec

NO_CONTROLS = PromptControls()
_PLAIN = (
    "a photo of a person",
    "a landscape",
    "a cat",
    "a street with houses",
    "a bowl of fruit",
    "a drawing of a tree",
)
"""Where neither previews nor captions say anything without the trigger."""
_SEEDS = 1000
"""How far the seeds of other pictures than the previews lie after theirs."""


@dataclass(frozen=True)
class Picture:
    """A picture that every checkpoint draws."""

    prompt: str
    """As the text encoder reads it."""
    seed: int
    triggered: bool
    """Whether it shows what the LoRA is for; else what it must leave alone."""
    controls: PromptControls = NO_CONTROLS


Data = list[tuple["DatasetConfig", list["Item"]]]
"""Data sets with what is in them."""


def read_data(job: JobConfig, spec: FamilySpec) -> tuple[Data, str | None]:
    """A job's data sets, and what is wrong if they cannot be read (any more)."""
    try:
        return [(one, scan(one, timing_of(one, spec))) for one in job.datasets], None
    except DatasetError as error:
        return [], str(error)


def pictures_of(job: JobConfig, spec: FamilySpec, data: Data, count: int, given: Sequence[str] = ()) -> list[Picture]:
    """`count` pictures with the trigger, and as many without; only the first where there is no trigger.

    Previews come first, with their own seeds, as they may be drawn already. Where there are too few prompts, they are
    drawn again with other seeds.

    Args:
        given: prompts in place of the previews', in which `[trigger]` is replaced.

    Raises:
        ConfigError: if the job's control images cannot be used.
        DatasetError: if they are not there any more.
    """
    trigger = job.preview_trigger
    own = _previews(job, spec, data, given)
    found: list[Picture] = []
    for triggered in (True, False) if trigger else (True,):
        mine = [one for one in own if one.triggered == triggered][:count]
        captions = _captions(job, spec, data, triggered) or {one.prompt: one.controls for one in mine}
        if not captions and not triggered:
            captions = dict.fromkeys(_PLAIN, own[0].controls if own else _any_controls(spec, data))
        texts = list(captions.items())
        order = permutation(len(texts), "choosing", int(triggered))
        for k in range(count - len(mine) if texts else 0):
            prompt, controls = texts[order[k % len(texts)]]
            mine.append(Picture(prompt, job.sample.seed + _SEEDS * (2 - triggered) + k, triggered, controls))
        found += mine
    return found


def _previews(job: JobConfig, spec: FamilySpec, data: Data, given: Sequence[str]) -> list[Picture]:
    """The previews of a run, or those of other prompts."""
    sample, trigger = job.sample, job.preview_trigger
    prompts = given or sample.prompts
    if not prompts:
        return []
    controls = [_any_controls(spec, data)] * len(prompts) if given else of_job(job, spec, len(prompts))
    texts = [prompt_with_trigger(prompt, trigger) for prompt in prompts]
    return [
        Picture(text, sample.seed + k * sample.walk_seed, not trigger or contains_word(text, trigger), seen)
        for k, (text, seen) in enumerate(zip(texts, controls, strict=True))
    ]


def _captions(job: JobConfig, spec: FamilySpec, data: Data, triggered: bool) -> dict[str, PromptControls]:
    """What captions ask for, each with its item's control images."""
    classes = cycle(job.regularization.classes or [PLACEHOLDER])
    found: dict[str, PromptControls] = {}
    for dataset, items in data:
        for item in items:
            text = encoder_text(item.captions[0], dataset)
            has = dataset.trigger is not None and contains_word(text, dataset.trigger)
            if not triggered and dataset.trigger and has:
                text = without_placeholder(with_class(text, dataset.trigger, next(classes)))
            elif has != triggered and job.preview_trigger:
                continue
            if text:
                found.setdefault(text, _controls(spec, dataset, item))
    return found


def _controls(spec: FamilySpec, dataset: DatasetConfig, item: Item) -> PromptControls:
    return of_items([item], dataset, 1, spec)[0] if spec.max_given else NO_CONTROLS


def _any_controls(spec: FamilySpec, data: Data) -> PromptControls:
    """For prompts that no control images belong to: the first that there are."""
    every = (_controls(spec, dataset, item) for dataset, items in data for item in items)
    return next((one for one in every if one.files), NO_CONTROLS)
