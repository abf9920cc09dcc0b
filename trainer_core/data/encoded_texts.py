"""What the text encoders make of prompts: encoded in batches, once, and kept in the cache."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .cache import RecentEntries, key_of
from .progress import Progress, told
from .text import composed
from .views import View

if TYPE_CHECKING:
    from torch import Tensor

    from ..families.base import Base
    from ..families.conditioning import TextEmbedding

_TEXTS_AT_ONCE = 8


@dataclass(frozen=True)
class Prompt:
    """A text to embed, with the control images that the text encoders look at, where they do."""

    text: str
    views: tuple[View, ...] = ()


class EncodedTexts:
    """Embeddings of prompts."""

    def __init__(self, base: Base, entries: RecentEntries, made_by: str = "", only_by: str = "") -> None:
        """`made_by` is written on new entries; with `only_by` = `made_by`, no others are taken."""
        self._base, self._entries, self._made_by, self._only_by = base, entries, made_by, only_by

    def encode(self, prompts: Iterable[Prompt], progress: Progress) -> None:
        """Embeds prompts; loads the text encoders only if some are missing.

        The last batch is filled up with its last prompt: libraries compute differently for another number of texts,
        and an entry of the cache must not depend on what else was missing.

        Raises:
            BaseModelError: if the encoders cannot be loaded.
            DatasetError: if a control image that they look at is no good.
            SaveError: if the cache cannot be written.
        """
        self._mark = self._base.text_fingerprint() + self._only_by
        wanted = {self._key(prompt): prompt for prompt in prompts}
        ordered = sorted(wanted, key=lambda key: (composed(wanted[key].text), key))
        missing = [wanted[key] for key in told(ordered, progress) if self._entries.get(key) is None]
        if not missing:
            return
        progress("loading the text encoders", 0, len(missing))
        self._base.load_text_encoders()
        for start in range(0, len(missing), _TEXTS_AT_ONCE):
            progress("encoding captions", start, len(missing))
            some = missing[start : start + _TEXTS_AT_ONCE]
            texts, pictures = [composed(one.text) for one in some], [_pixels_of(one) for one in some]
            fill = _TEXTS_AT_ONCE - len(some)
            embeddings = self._base.encode_prompts(texts + texts[-1:] * fill, pictures + pictures[-1:] * fill)
            for prompt, embedding in zip(some, embeddings, strict=False):  # what fills up is left out
                self._entries.put(self._key(prompt), embedding, self._made_by)
        self._base.free_text_encoders()
        progress("encoding captions", len(missing), len(missing))

    def of(self, prompt: Prompt) -> TextEmbedding:
        """The embedding of a prompt that was encoded.

        Raises:
            CacheMiss: if its cache entry is gone or damaged.
        """
        return self._entries.entry(self._key(prompt))

    def keys(self, prompts: Iterable[Prompt]) -> set[str]:
        """The cache's keys for prompts that were encoded."""
        return {self._key(prompt) for prompt in prompts}

    def _key(self, prompt: Prompt) -> str:
        seen = [part for view in prompt.views for part in (*view.parts, *view.background)]
        return key_of("text", self._base.spec.name, self._mark, composed(prompt.text), *seen)


def _pixels_of(prompt: Prompt) -> list[Tensor]:
    """The control images (3, H, W) in [-1, 1] that the text encoders look at."""
    return [view.pixels()[:, 0] if view.excerpt else view.pixels() for view in prompt.views]
