"""What counts as text in captions and names, when two texts are the same one, and many names in few words."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

_MOST_ACCENTS = 100
"""On one letter, for `composed`; Unicode's own limit (UAX 15, Stream-Safe Text) is 30."""
NO_TEXT = "holds a zero byte or half of a character, which is no text"


def is_text(value: str) -> bool:
    """Whether there is nothing in it that no file name, no tokenizer and no UTF-8 can hold."""
    return not any(letter == "\0" or "\ud800" <= letter <= "\udfff" for letter in value)


def composed(value: str) -> str:
    """A text in Unicode's normal form C, in which an accent is one character with its letter.

    macOS writes file names with accents as characters of their own (form D), keyboards write form C; they look alike
    and must be alike wherever texts are compared or encoded. ASCII stays as it is, and so does what heaps up accents:
    Python takes time by the square of their number to sort them.
    """
    if value.isascii():
        return value
    accents = 0
    for letter in value:
        accents = accents + 1 if unicodedata.combining(letter) else 0
        if accents > _MOST_ACCENTS:
            return value
    return unicodedata.normalize("NFC", value)


def some(names: Sequence[str], limit: int = 5) -> str:
    """The first few of many names."""
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")
