"""Captions written from a page: only beside pictures that a data set lists, and only over what the editor saw."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ...errors import CaptionChanged, DatasetError
from ...files import remove, write_atomically
from ...roots import is_below
from ..folder import caption_text
from ..text import NO_TEXT, is_text, some
from .opened import OpenSet, as_shown

LONGEST = 50_000
"""Characters of a caption: encoders read 2,000 at most."""
MOST = 2_000
"""Edits of one request."""


@dataclass(frozen=True)
class Edit:
    """A caption's change."""

    key: str
    before: str
    """What the editor saw."""
    caption: str


def read_edits(opened: OpenSet, given: Any) -> list[Edit]:
    """Edits as a request has them, `[{"item", "before", "caption"}]`.

    Raises:
        DatasetError: for anything else, an unknown picture, and texts that no caption file can hold.
    """
    if not isinstance(given, list) or len(given) > MOST:
        raise DatasetError(f"edits: send a list of at most {MOST}")
    edits = []
    for one in given:
        if not isinstance(one, dict) or one.keys() != {"item", "before", "caption"}:
            raise DatasetError('edits: each is {"item", "before", "caption"}')
        key = opened.key(one["item"])
        for text in (one["before"], one["caption"]):
            if not isinstance(text, str) or len(text) > LONGEST:
                raise DatasetError(f"{key}: a caption is a text of at most {LONGEST} characters")
            if not is_text(text):
                raise DatasetError(f"{key}: the caption {NO_TEXT}")
        edits.append(Edit(key, as_shown(one["before"]), as_shown(one["caption"])))
    return edits


def write_captions(opened: OpenSet, edits: Sequence[Edit]) -> None:
    """Writes captions, each in one step; none of them if one is not what the editor saw. An empty one has no file.

    Raises:
        CaptionChanged: if somebody else has changed one; the message names it.
        DatasetError: if one cannot be edited here.
        SaveError: if one cannot be written; those before it are.
    """
    found = [opened.written(edit.key) for edit in edits]
    for edit, written in zip(edits, found, strict=True):
        # by then a folder may have been swapped for a link
        if not written.editable or not is_below(written.file.parent, opened.index.path):
            raise DatasetError(f"{edit.key}: its caption is not edited here: {written.problem or 'it lies elsewhere'}")
    changed = [edit.key for edit, written in zip(edits, found, strict=True) if written.text != edit.before]
    if changed:
        raise CaptionChanged(f"{some(changed)}: the caption has been changed elsewhere in the meantime", changed)
    for edit, written in zip(edits, found, strict=True):
        if edit.caption == edit.before:
            continue
        text = caption_text(written.file)
        if edit.caption:
            as_before = text or opened.removed.pop(edit.key, "")
            write_atomically(written.file, _as_written(edit.caption, as_before).encode())
        else:
            opened.removed[edit.key] = text
            remove(written.file)


def _as_written(caption: str, before: str) -> str:
    """A caption with the line ends of the file that it replaces."""
    ends = "\r\n" if "\r\n" in before else "\n"
    return caption.replace("\n", ends) + (ends if before.endswith(("\n", "\r")) else "")
