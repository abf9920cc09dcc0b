"""A job as values of the nodes' widgets. Nothing here is of ComfyUI."""

from __future__ import annotations

from typing import Any

from ..trainer_core.config import DatasetConfig, JobConfig
from .setting import PARTS
from .settings import BY_NODE

_OF_DATA = "dataset"


def widgets_of(job: JobConfig) -> list[dict[str, Any]]:
    """What the widgets would show, as `node` (its type), `widget` and `value`.

    What names files and folders of another machine is left out, and so is what differs between several data sets.
    """
    datasets = [one for one in job.datasets if one.role == "train"]
    found = [
        {"node": "FoundryTrainLoRA", "widget": "name", "value": job.name},
        {"node": "FoundryTrainLoRA", "widget": "sample_prompts", "value": "\n".join(job.sample.prompts)},
    ]
    for node, table in BY_NODE.items():
        for one in table:
            part = PARTS[one.section]
            sections = datasets if part == _OF_DATA else [getattr(job, part)]
            values = [one.shown(getattr(section, one.field)) for section in sections]
            if one.field not in _PLACES and all(value == values[0] for value in values):
                found.append({"node": node, "widget": one.widget, "value": values[0]})
    return found


_PLACES = {name for name in DatasetConfig.model_fields if name.endswith(("folder", "folders"))} - {"kohya_folders"}
_PLACES |= {"controls"}
