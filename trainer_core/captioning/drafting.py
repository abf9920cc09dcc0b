"""A data set's pictures, one after the other, to drafts of captions."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ..data.clips.decode import first_picture
from ..data.library.drafts import Drafts
from ..data.library.opened import OpenSet
from ..errors import DatasetError
from .models import CaptionModel
from .writer import CaptionWriter

_AT_ONCE = 10
"""Drafts that are kept at a time: what was written before an interruption stays."""


def draft_captions(
    opened: OpenSet,
    items: Sequence[str],
    model: CaptionModel,
    device: str,
    drafts: Drafts,
    question: str = "",
    progress: Callable[[int, int], None] = lambda *_: None,
) -> tuple[int, list[str]]:
    """Has a model write drafts; of a clip it sees the first frame.

    Args:
        items: ids of pictures; what cannot be read is passed over.
        progress: hears, before each picture, how many of how many are done; ends the work by raising.

    Returns:
        How many drafts were written, and what could not be read.

    Raises:
        BaseModelError: if the model cannot be used.
        SaveError: if drafts cannot be kept.
    """
    writer = CaptionWriter(model, device)
    written: dict[str, str] = {}
    unreadable: list[str] = []
    count = 0

    def keep() -> None:
        nonlocal count
        if written:
            drafts.add(opened.id, written, model.name)
            count += len(written)
            written.clear()

    try:
        for done, item in enumerate(items):
            progress(done, len(items))
            key = opened.key(item)
            try:
                picture = first_picture(opened.index.images[key])
            except DatasetError as error:
                unreadable.append(str(error))
                continue
            written[key] = writer.write(picture, question)
            if len(written) >= _AT_ONCE:
                keep()
    finally:
        keep()
    progress(len(items), len(items))
    return count, unreadable
