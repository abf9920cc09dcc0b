"""Data sets for the page: which there are, their pictures and captions, edits, drafts and checks."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...trainer_core.api import CaptionModel, Library, OpenSet, encoder_text, read_edits, write_captions
from ...trainer_core.errors import CaptionChanged, NotListed
from .asked import LARGE, Asked, Refused, Route
from .sending import File, Picture

_MOST_ITEMS = 2000
"""Of one answer."""
_MOST_LISTINGS = 32
_LONGEST_EDGE = 1536
_LONGEST_QUESTION = 4000
_LONGEST_VIEW = 40
_MOST_TEXTS = 200
_PLACEMENTS = ("start", "end", "only_placeholder")


@dataclass(frozen=True)
class Captioners:
    """Models that caption, and the queue that they work in."""

    find: Callable[[], list[CaptionModel]]
    places: tuple[str, ...]
    """Where they are looked for, in a user's words."""
    queue: Callable[[str, str, list[str], str], str]
    """Puts work on the queue: a model's name, a data set's id, items and a question; gives the prompt's id."""


class DatasetRoutes:
    """The routes, over a library of data sets."""

    def __init__(
        self,
        library: Library,
        thumbnail: Callable[[Path, int, bool], Picture],
        allowed: Callable[[Path], bool],
        tell: Callable[[dict[str, Any]], None],
        captioners: Captioners,
    ) -> None:
        """`allowed` says whether a linked file's target may be shown; `tell` sends news of a data set to all pages."""
        self._captioners = captioners
        self._listings: dict[int, tuple[str, list[str]]] = {}
        """Orders that pages are being loaded in: while one is, captions are written, and other pictures lack one."""
        self._numbers = itertools.count(int(time.time()))
        self._library, self._thumbnail, self._allowed, self._tell = library, thumbnail, allowed, tell

    def routes(self) -> list[Route]:
        """All of them."""
        item = "datasets/{id}/items/{item}"
        return [
            Route("GET", "datasets", lambda _: {"datasets": self._library.datasets()}),
            Route("POST", "datasets", self._create),
            Route("GET", "datasets/{id}", self._of_set(self._summary)),
            Route("GET", "datasets/{id}/cover", self._of_set(self._cover)),
            Route("GET", "datasets/{id}/items", self._of_set(self._items)),
            Route("GET", item, self._of_set(lambda opened, asked: opened.row(_item(opened, asked)))),
            Route("GET", f"{item}/picture", self._of_set(self._picture)),
            Route("GET", f"{item}/clip", self._of_set(self._clip)),
            Route("POST", "datasets/{id}/captions", self._of_set(self._edit), LARGE),
            Route("POST", "datasets/{id}/texts", self._of_set(self._texts), LARGE),
            Route("POST", "datasets/{id}/check", self._of_set(self._check)),
            Route("GET", "datasets/{id}/drafts", self._of_set(self._drafts)),
            Route("POST", "datasets/{id}/drafts", self._of_set(self._review), LARGE),
            Route("GET", "captioners", lambda _: {"models": self._models(), "places": list(self._captioners.places)}),
            Route("POST", "datasets/{id}/captioning", self._of_set(self._caption), LARGE),
        ]

    def _of_set(self, answer: Callable[[OpenSet, Asked], Any]) -> Callable[[Asked], Any]:
        """An answer about one data set; what was not listed is not there."""

        def answered(asked: Asked) -> Any:
            try:
                return answer(self._library.open(asked.parts["id"]), asked)
            except NotListed as error:
                raise Refused(404, str(error)) from None
            except CaptionChanged as error:
                raise Refused(409, str(error), files=list(error.keys)) from None

        return answered

    def _create(self, asked: Asked) -> dict[str, Any]:
        return self._library.create(asked.fields({"name": str})["name"])

    def _summary(self, opened: OpenSet, _: Asked) -> dict[str, Any]:
        folder = self._library.folder(opened.id)
        checks = self._library.checks.of(opened.id)
        return {"id": opened.id, "name": opened.name, "folder": folder, **opened.summary(), **checks}

    def _items(self, opened: OpenSet, asked: Asked) -> dict[str, Any]:
        after, count = asked.number("after", 0), asked.number("count", 200, _MOST_ITEMS)
        listing = asked.number("listing", 0)
        kept = self._listings.get(listing)
        if kept is None or kept[0] != opened.id:
            listing = next(self._numbers)
            kept = opened.id, opened.ordered(missing_first=asked.query.get("order") == "missing")
            self._listings[listing] = kept
            while len(self._listings) > _MOST_LISTINGS:
                self._listings.pop(next(iter(self._listings)), None)
        rows = [opened.row(item) if item in opened.keys else _gone(item) for item in kept[1][after : after + count]]
        return {"listing": listing, "total": len(kept[1]), "items": rows}

    def _picture(self, opened: OpenSet, asked: Asked) -> Picture:
        path = self._file(opened, asked, asked.query.get("what", "picture"))
        size = asked.number("size", 256, _LONGEST_EDGE)
        return self._thumbnail(path, size, asked.query.get("moving") == "1")

    def _cover(self, opened: OpenSet, asked: Asked) -> Picture:
        """The first picture."""
        path = next(iter(opened.index.images.values()), None)
        if path is None or not self._allowed(path):
            raise Refused(404, "there is no picture yet")
        return self._thumbnail(path, asked.number("size", 96, _LONGEST_EDGE), False)

    def _clip(self, opened: OpenSet, asked: Asked) -> File:
        path = self._file(opened, asked, "picture")
        row = opened.row(_item(opened, asked))
        if not row["clip"] or not row["clip"]["plays"]:
            raise Refused(404, "this is no clip that a browser plays")
        return File(path.resolve())

    def _file(self, opened: OpenSet, asked: Asked, what: str) -> Path:
        path = opened.path(_item(opened, asked), what)
        # where it is a link, what it leads to is what counts
        if path is None or not self._allowed(path):
            raise Refused(404, "there is no such picture")
        return path

    def _edit(self, opened: OpenSet, asked: Asked) -> dict[str, Any]:
        body = asked.fields({"edits": list}, {"by": str})
        return self._write(opened, body["edits"], _view(body))

    def _write(self, opened: OpenSet, given: list[Any], by: str) -> dict[str, Any]:
        """Writes captions, and tells the pages which; the view that calls itself `by` shows them already."""
        edits = read_edits(opened, given)
        write_captions(opened, edits)
        if edits:
            self._tell({"id": opened.id, "items": [one["item"] for one in given], "by": by})
        return {"written": len(edits)}

    def _texts(self, opened: OpenSet, asked: Asked) -> dict[str, Any]:
        """Captions as the text encoder will read them with a trigger."""
        body = asked.fields({"captions": list, "trigger": str, "placement": str})
        captions = body["captions"]
        if len(captions) > _MOST_TEXTS or not all(isinstance(text, str) for text in captions):
            raise Refused(400, f"captions: send at most {_MOST_TEXTS} texts")
        if body["placement"] not in _PLACEMENTS:
            raise Refused(400, f"placement: one of {', '.join(_PLACEMENTS)}")
        dataset = opened.config.but(role="train", trigger=body["trigger"], trigger_placement=body["placement"])
        return {"texts": [encoder_text(caption, dataset) for caption in captions]}

    def _check(self, opened: OpenSet, asked: Asked) -> dict[str, Any]:
        asked.fields({})
        self._library.checks.start(opened, self._tell)
        return self._library.checks.of(opened.id)

    def _drafts(self, opened: OpenSet, _: Asked) -> dict[str, Any]:
        drafts = self._library.drafts.of(opened.id)
        by_item = ((item, drafts.get(key)) for item, key in opened.keys.items())
        return {"drafts": [{"item": item, **draft} for item, draft in by_item if draft]}

    def _review(self, opened: OpenSet, asked: Asked) -> dict[str, Any]:
        """Accepted drafts become captions, as the reviewer has edited them; both they and rejected ones are gone."""
        body = asked.fields({"accept": list, "reject": list}, {"by": str})
        rejected = [opened.key(item) for item in body["reject"]]
        written = self._write(opened, body["accept"], _view(body))
        accepted = [opened.key(one["item"]) for one in body["accept"]]
        self._library.drafts.drop(opened.id, [*accepted, *rejected])
        if accepted or rejected:
            self._tell({"id": opened.id, "drafts": True, "by": _view(body)})
        return written

    def _models(self) -> list[dict[str, Any]]:
        return [
            {"id": one.id, "name": one.name, "kind": one.kind, "problem": one.problem}
            for one in self._captioners.find()
        ]

    def _caption(self, opened: OpenSet, asked: Asked) -> dict[str, Any]:
        """Has a model write drafts, when its turn on the queue comes."""
        body = asked.fields({"model": str, "items": list}, {"instruction": str})
        model = next((one for one in self._captioners.find() if one.id == body["model"]), None)
        if model is None or model.problem:
            raise Refused(404, "this captioning model is not installed" if model is None else str(model.problem))
        question = body.get("instruction") or ""
        if len(question) > _LONGEST_QUESTION:
            raise Refused(400, f"instruction: at most {_LONGEST_QUESTION} characters")
        items = [item for item in body["items"] if opened.key(item)]
        if not items:
            raise Refused(400, "items: name at least one picture")
        return {"queued": True, "prompt_id": self._captioners.queue(model.name, opened.id, items, question)}


def _gone(item: str) -> dict[str, Any]:
    """What stands in the place of a picture that was removed while its page was loaded."""
    row = dict.fromkeys(("fallback", "clip"), None) | dict.fromkeys(("controls", "width", "height"), 0)
    texts = {"file": "", "caption": "", "version": "0", "problem": "it is not there any more"}
    return {"item": item, **texts, **row, "own": True, "editable": False, "mask": False}


def _view(body: dict[str, Any]) -> str:
    """What the view that asks calls itself; it shows already what the others are told of."""
    return (body.get("by") or "")[:_LONGEST_VIEW]


def _item(opened: OpenSet, asked: Asked) -> str:
    item = asked.parts["item"]
    opened.key(item)
    return item
