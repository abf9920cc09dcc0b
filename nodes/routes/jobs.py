"""Jobs out of presets and of other trainers' files, and the verdict on a run's checkpoints."""

from __future__ import annotations

from typing import Any

from ...trainer_core.api import import_config
from .. import host
from ..choose_checkpoint import NODE_ID
from ..import_view import widgets_of
from ..preset import fill_in
from .asked import LARGE, Asked, Refused, Route
from .runs import run_of

_MOST_FILES = 20
_LONGEST_NAME = 255


def _preset(asked: Asked) -> Any:
    return fill_in(asked.fields({"settings": dict})["settings"])


def _import(asked: Asked) -> Any:
    wish = asked.fields({"name": str, "text": str}, {"more": list})
    texts: dict[str, str] = {}
    for one in (wish, *(wish.get("more") or ())):
        if not isinstance(one, dict) or not all(isinstance(one.get(name), str) for name in ("name", "text")):
            raise Refused(400, 'more must be a list of {"name": str, "text": str}')
        if len(one["name"]) > _LONGEST_NAME or not one["name"].isprintable() or len(texts) >= _MOST_FILES:
            raise Refused(400, f"send at most {_MOST_FILES} files with plain names")
        texts[one["name"]] = one["text"]
    found = import_config(texts)
    return {"job": found.text, "notes": [str(note) for note in found.lost], "nodes": widgets_of(found.job)}


def _choose(asked: Asked) -> Any:
    asked.fields({})
    run = run_of(asked)
    host.checked_job(run.job())
    if any(inputs.get("run") == run.name for inputs, _ in host.queued_inputs(NODE_ID)):
        raise Refused(409, f"{run.name} is on ComfyUI's queue for this already")
    prompt_id = host.queue_prompt(NODE_ID, {"run": run.name})
    return {"queued": True, "prompt_id": prompt_id}


ROUTES = [
    Route("POST", "preset", _preset),
    Route("POST", "import", _import, LARGE),
    Route("POST", "runs/{run}/choose", _choose),
]
