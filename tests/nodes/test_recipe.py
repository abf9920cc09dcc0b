"""The example workflows train the demo's recipe. UPDATE_SNAPSHOTS=1 writes a changed recipe into them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

Pack = Callable[[str], ModuleType]

ROOT = Path(__file__).parents[2]
WORKFLOWS = ("train_and_test", "train_and_sample_with_stock_nodes")
PARTS = {"adapter", "dataset", "train", "regularization", "validation", "save"}
"""Not the samples: the demo judges its LoRA otherwise."""
_WIDGETS = {"INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"}


@pytest.mark.parametrize("name", WORKFLOWS)
def test_workflow_trains_the_demos_recipe(pack: Pack, name: str) -> None:
    settings, job = pack("nodes.settings"), pack("trainer_core.demo").demo_job()
    parts = pack("nodes.setting").PARTS
    path = ROOT / "example_workflows" / f"{name}.json"
    graph = json.loads(path.read_text(encoding="utf-8"))
    set_parts, wrong = set(), {}
    for node in graph["nodes"]:
        for one in settings.BY_NODE.get(node["type"], ()):
            part = parts[one.section]
            if part not in PARTS:
                continue
            set_parts.add(part)
            wanted = getattr(job.datasets[0] if part == "dataset" else getattr(job, part), one.field)
            place = _widgets(node["type"]).index(one.widget)
            if _read(one, node["widgets_values"][place], part) != wanted:
                wrong[f"{node['type']}.{one.widget}"] = node["widgets_values"][place] = one.shown(wanted)
    assert set_parts == PARTS
    if wrong and os.environ.get("UPDATE_SNAPSHOTS"):
        path.write_text(json.dumps(graph, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        wrong = {}
    assert wrong == {}, "the demo says otherwise"


def _widgets(kind: str) -> list[str]:
    """Names of a node's widgets, in the order of saved values."""
    known: dict[str, Any] = json.loads((ROOT / "tests" / "host" / "node_info.json").read_text(encoding="utf-8"))
    inputs = known[kind]["inputs"].items()
    return [name for name, (_, kind, options) in inputs if kind in _WIDGETS and not options.get("forceInput")]


def _read(setting: Any, shown: Any, part: str) -> Any:
    """The field's value in a section that is made from the widget's."""
    required = {"folder": "x"} if part == "dataset" else {}
    needed = {"output_preservation_class": "shape"} if setting.field == "output_preservation" else {}
    return getattr(setting.section(**{**required, **needed, setting.field: setting.value(shown)}), setting.field)
