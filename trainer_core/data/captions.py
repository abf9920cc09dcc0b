"""What the text encoder reads: the trigger's place, caption dropout, tag shuffling.

All variants of a caption are known before training starts (so that they can be cached), and which one a draw uses is
a function of the seed, the step and the item.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from ..config import DatasetConfig
from ..randomness import permutation, uniform

PLACEHOLDER = "[trigger]"
SHUFFLES = 8
"""How many shuffled forms of a caption there are; they are fixed so that their embeddings can be cached."""


def contains_word(text: str, word: str) -> bool:
    """Whether a word or phrase stands in a text on word boundaries ("car" is not in "cartoon"), in any case."""
    return re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text, re.IGNORECASE) is not None


def with_trigger(caption: str, trigger: str | None, placement: str) -> str:
    """The caption with the trigger in it, once if it was absent.

    `[trigger]` is replaced wherever it stands. Otherwise, a caption that holds the trigger as a word stays as it is,
    and the trigger goes to the `start` or `end` of any other; with `only_placeholder` it goes nowhere.
    """
    if PLACEHOLDER in caption:
        return caption.replace(PLACEHOLDER, trigger or "").strip()
    if not trigger or placement == "only_placeholder" or contains_word(caption, trigger):
        return caption
    parts = (trigger, caption) if placement == "start" else (caption, trigger)
    return " ".join(part for part in parts if part)


def shuffled_tags(caption: str, keep: int, *place: int | str) -> str:
    """The caption with its comma-separated parts in another order, the first `keep` excepted."""
    tags = [tag.strip() for tag in caption.split(",")]
    fixed, free = tags[:keep], tags[keep:]
    return ", ".join([*fixed, *(free[k] for k in permutation(len(free), "tags", *place))])


def variants(caption: str, dataset: DatasetConfig, seed: int, key: str) -> list[str]:
    """All texts that an item may be trained with; the last one is the dropped caption if there is dropout."""
    forms = [caption]
    if dataset.shuffle_tags:
        forms = [shuffled_tags(caption, dataset.keep_tags, seed, key, k) for k in range(SHUFFLES)]
    texts = [with_trigger(form, dataset.trigger, dataset.trigger_placement) for form in forms]
    return [*texts, dataset.trigger or ""] if dataset.caption_dropout > 0 else texts


def choose(texts: Sequence[str], dataset: DatasetConfig, *place: int | str) -> str:
    """The variant that a draw uses."""
    if dataset.caption_dropout > 0:
        if uniform("dropout", *place) < dataset.caption_dropout:
            return texts[-1]
        texts = texts[:-1]
    return texts[int(uniform("variant", *place) * len(texts))]
