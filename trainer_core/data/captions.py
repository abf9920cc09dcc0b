"""What the text encoder reads: the trigger's place, caption dropout, tag shuffling, the class word.

All variants of an image's captions are known before training starts (so that they can be cached), and which one a
draw uses is a function of the seed, the step and the item.

Texts are compared, and handed on, with composed accents (`text.composed`): a trigger is found in a caption however the
two were typed.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache

from ..config import DatasetConfig
from ..randomness import permutation, uniform
from .text import composed

PLACEHOLDER = "[trigger]"
SHUFFLES = 8
"""How many shuffled forms of a caption there are; they are fixed so that their embeddings can be cached."""

_JOINED = "\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003ffff"
"""Kana, ideographs and hangul, which are written without spaces or with particles joined on."""
_LETTER = rf"(?:[^\W{_JOINED}]|[\u0300-\u036f])"
"""A letter, digit or underscore of any other script, or an accent that is a character of its own."""
_PLACEHOLDERS = rf"{re.escape(PLACEHOLDER)}(?:\s*{re.escape(PLACEHOLDER)})*"
_BLANKS = r"(?:(?<!\s)\s+)?"
"""White space in front, tried once for each run of it and not at each of its characters: a megabyte of blanks must not
take hours."""
_EMPTY_TAG = re.compile(rf"^(?:\s*{_PLACEHOLDERS}\s*[,;]\s*)+|{_BLANKS}[,;]\s*{_PLACEHOLDERS}\s*(?=[,;.]|$)")
_GAP = re.compile(rf"({_BLANKS}){_PLACEHOLDERS}(\s*)")


def contains_word(text: str, word: str) -> bool:
    """Whether a word or phrase stands in a text on word boundaries ("car" is not in "cartoon"), in any case."""
    return _word(composed(word)).search(composed(text)) is not None


def with_class(text: str, trigger: str, class_word: str) -> str:
    """The text with the class word wherever the trigger stands as a word, in any case; parts of words stay."""
    text = composed(text)
    return composed(_word(composed(trigger)).sub(lambda _: class_word, text)) if trigger.strip() else text


def with_trigger(caption: str, trigger: str | None, placement: str) -> str:
    """The caption with the trigger in it, once if it was absent.

    `[trigger]` is replaced wherever it stands. Otherwise, a caption that holds the trigger as a word stays as it is,
    and the trigger goes to the `start` or `end` of any other; with `only_placeholder` it goes nowhere. Without a
    trigger, `[trigger]` is taken out, with the white space or comma that would be left over.
    """
    if not trigger:
        return without_placeholder(caption)
    caption, trigger = composed(caption), composed(trigger)
    if PLACEHOLDER in caption:
        return composed(caption.replace(PLACEHOLDER, trigger)).strip()
    if placement == "only_placeholder" or contains_word(caption, trigger):
        return caption
    parts = (trigger, caption) if placement == "start" else (caption, trigger)
    return " ".join(part for part in parts if part)


def prompt_with_trigger(prompt: str, trigger: str | None) -> str:
    """A prompt for drawing: the trigger stands only where `[trigger]` does, which is taken out without one."""
    return with_trigger(prompt, trigger, "only_placeholder")


def without_placeholder(caption: str) -> str:
    """The caption without `[trigger]`; everything else stays as it was written."""
    if PLACEHOLDER in caption:
        caption = _GAP.sub(_closed, _EMPTY_TAG.sub("", caption)).strip()
    return composed(caption)


def shuffled_tags(caption: str, keep: int, *place: int | str) -> str:
    """The caption with its comma-separated parts in another order, the first `keep` excepted; empty parts go."""
    tags = [tag.strip() for tag in caption.split(",") if tag.strip()]
    fixed, free = tags[:keep], tags[keep:]
    return ", ".join([*fixed, *(free[k] for k in permutation(len(free), "tags", *place))])


def encoder_text(caption: str, dataset: DatasetConfig) -> str:
    """What the text encoder reads for a caption that is neither shuffled nor dropped."""
    return with_trigger(caption, dataset.trigger, dataset.trigger_placement)


def variants(captions: Sequence[str], dataset: DatasetConfig, seed: int, key: str) -> list[str]:
    """All texts that an item with these captions may be trained with; `choose` knows what stands where.

    Every caption gives as many as every other: itself, or `SHUFFLES` shuffles of its tags. Where captions can be
    dropped, what is left of them then comes last.
    """
    forms = list(captions)
    if dataset.shuffle_tags:
        # before the shuffle, because an empty tag could no longer be told from one that the caption's author wrote
        whole = captions if dataset.trigger else [without_placeholder(caption) for caption in captions]
        forms = [
            shuffled_tags(caption, dataset.keep_tags, seed, key, number, k)
            for number, caption in enumerate(whole)
            for k in range(SHUFFLES)
        ]
    texts = [encoder_text(form, dataset) for form in forms]
    if dataset.caption_dropout > 0:
        texts.append(composed(dataset.trigger or "") if dataset.dropped_caption == "trigger" else "")
    return texts


def choose(texts: Sequence[str], dataset: DatasetConfig, *place: int | str) -> str:
    """The one of an item's `variants` that a draw uses."""
    if dataset.caption_dropout > 0:
        if uniform("dropout", *place) < dataset.caption_dropout:
            return texts[-1]
        texts = texts[:-1]
    return texts[int(uniform("variant", *place) * len(texts))]


@lru_cache(maxsize=256)
def _word(word: str) -> re.Pattern[str]:
    """Matches a word or phrase that is no part of a longer word; between its words may stand any white space.

    "zorble" is a word of its own in "一个zorble形状", where its neighbours are letters, but of another script.
    """
    inner = r"\s+".join(re.escape(part) for part in word.split()) or re.escape(word)
    joined = re.compile(f"[{_JOINED}]")
    before = joined.pattern if joined.match(word.strip()) else _LETTER
    after = joined.pattern if joined.match(word.strip()[-1:]) else _LETTER
    return re.compile(f"(?<!{before}){inner}(?!{after})", re.IGNORECASE)


def _closed(gap: re.Match[str]) -> str:
    """What stays of the white space around a placeholder: a line's end if there was one, nothing beside brackets."""
    left, right = gap.string[max(gap.start() - 1, 0) : gap.start()], gap.string[gap.end() : gap.end() + 1]
    if left in tuple("([") or right in tuple(",.;:!?)]"):
        return ""
    return max(gap[1], gap[2], key=lambda white: ("\n" in white, len(white) > 0))
