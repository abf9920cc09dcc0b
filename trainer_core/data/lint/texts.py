"""Checks of captions: missing, short, the same for several images, too long, naming the style, with a wrong trigger."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator

from ..captions import PLACEHOLDER, contains_word, encoder_text, with_class, without_placeholder
from .report import Finding, Severity
from .survey import Circumstances, Picture, Survey
from .tokens import too_long

SHORT_WORDS = 2
"""A caption with fewer words beside the trigger says next to nothing about its image."""


def check_captions(survey: Survey, where: Circumstances) -> Iterator[Finding]:
    """All checks of captions."""
    for check in (_missing, _short, _duplicates, _long, _style, _trigger):
        yield from check(survey, where)


def _missing(survey: Survey, _: Circumstances) -> Iterator[Finding]:
    dataset = survey.dataset
    silent = [picture for picture in survey.pictures if not picture.own]
    wordless = [picture for picture in silent if not picture.captions]
    if wordless:
        how = f"have no caption. Write one into a `.{dataset.caption_extension.lstrip('.')}` file of the same name, or "
        yield _finding("error", "missing-caption", survey, wordless, f"{how}set default_caption")
    fallbacks: dict[str, list[Picture]] = {}
    for picture in silent:
        for caption in picture.captions:
            fallbacks.setdefault(caption, []).append(picture)
    for caption, pictures in fallbacks.items():
        message = f"have no caption of their own and all get {caption!r}"
        yield _finding("note", "missing-caption", survey, pictures, message)


def _short(survey: Survey, _: Circumstances) -> Iterator[Finding]:
    trigger = survey.dataset.trigger
    short = [picture for picture, text in survey.texts() if len(_words(_without(text, trigger))) < SHORT_WORDS]
    if short:
        message = "captions that say next to nothing beside the trigger: what they leave out, the trigger absorbs"
        yield _finding("note", "short-caption", survey, short, message)


def _duplicates(survey: Survey, _: Circumstances) -> Iterator[Finding]:
    images: dict[str, list[Picture]] = {}
    for picture, text in survey.texts():
        images.setdefault(" ".join(text.split()).casefold(), []).append(picture)
    for text, pictures in images.items():
        if len({picture.key for picture in pictures}) > 1:
            shown = text if len(text) <= 60 else f"{text[:56]} ..."
            message = f"the same caption for several images ({shown!r}): say what differs between them"
            yield _finding("note", "duplicate-captions", survey, pictures, message)


def _long(survey: Survey, where: Circumstances) -> Iterator[Finding]:
    texts: dict[str, list[Picture]] = {}
    for picture in survey.pictures:
        for caption in picture.captions:
            texts.setdefault(encoder_text(caption, survey.dataset), []).append(picture)
    given = list(texts)
    cut, partly = too_long(given, where.tokenizers)
    if cut:
        longest, limit = max(tokens for _, tokens, _ in cut), cut[0][2]
        pictures = [picture for k, _, _ in cut for picture in texts[given[k]]]
        message = f"captions longer than the {limit} tokens that the encoder reads (up to {longest}): their end is lost"
        yield _finding("warning", "long-caption", survey, pictures, message)
    if partly:
        limits = sorted({one.limit for one in where.tokenizers if one.limit})
        pictures = [picture for k in partly for picture in texts[given[k]]]
        message = (
            f"captions longer than the {limits[0]} tokens of one of the encoders; the other reads them whole "
            f"({limits[-1]})"
        )
        yield _finding("note", "long-caption", survey, pictures, message)


def _style(survey: Survey, where: Circumstances) -> Iterator[Finding]:
    for word in where.style:
        named = [p for p, text in survey.texts() if contains_word(_without(text, survey.dataset.trigger), word)]
        if named:
            message = f"captions name the style ({word!r}): it is learned for that word then, and less for the trigger"
            yield _finding("warning", "style-in-caption", survey, named, f"{message}. Describe only what is shown")


def _trigger(survey: Survey, where: Circumstances) -> Iterator[Finding]:
    dataset = survey.dataset
    if dataset.role == "regularization":
        held = [p for p in survey.pictures for c in p.captions if where.trigger and contains_word(c, where.trigger)]
        if held:
            message = f"captions of a regularization set hold the trigger {where.trigger!r}, which they untrain"
            yield _finding("warning", "trigger-in-regularization", survey, held, message)
        return
    own = [(picture, caption) for picture in survey.pictures if picture.own for caption in picture.captions]
    trigger = dataset.trigger
    if trigger is None:
        if held := [picture for picture, caption in own if PLACEHOLDER in caption]:
            message = f"captions hold {PLACEHOLDER}, but no trigger is set: it is taken out. Set the trigger"
            yield _finding("warning", "missing-trigger", survey, held, message)
        return
    absent = [p for p, caption in own if PLACEHOLDER not in caption and not contains_word(caption, trigger)]
    if absent and dataset.trigger_placement == "only_placeholder":
        message = f"captions without the trigger {trigger!r} or {PLACEHOLDER}: these images are not learned for it"
        yield _finding("warning", "missing-trigger", survey, absent, message)
    elif absent:
        message = f"captions without the trigger {trigger!r}; it is added at their {dataset.trigger_placement}"
        yield _finding("note", "missing-trigger", survey, absent, message)
    doubled = [picture for picture, text in survey.texts() if _occurrences(text, trigger) > 1]
    if doubled:
        message = f"captions hold the trigger {trigger!r} more than once (each {PLACEHOLDER} counts). Keep one"
        yield _finding("warning", "doubled-trigger", survey, doubled, message)


def _occurrences(text: str, word: str) -> int:
    """How often a word stands in a text on word boundaries."""
    return with_class(text, word, "\0").count("\0")


def _without(text: str, trigger: str | None) -> str:
    """A text without trigger and placeholder."""
    return without_placeholder(with_class(text, trigger, " ") if trigger else text)


def _words(text: str) -> list[str]:
    """What counts as words; in scripts without spaces each character does."""
    return re.findall(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|\w+", text)


def _finding(severity: Severity, check: str, survey: Survey, pictures: list[Picture], message: str) -> Finding:
    files = tuple(dict.fromkeys(picture.key for picture in pictures))
    count = Counter(picture.key for picture in pictures)
    return Finding(severity, check, files, f"{len(count)} of {len(survey.pictures)}: {message}", survey.folder)
