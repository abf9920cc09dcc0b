"""What ships beside the nodes: help pages, workflows and their pictures."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]
WORKFLOWS = sorted((ROOT / "example_workflows").glob("*.json"))
NODE_IDS = sorted(
    match[1]
    for path in (ROOT / "nodes").glob("*.py")
    for match in re.finditer(r'node_id="(\w+)"', path.read_text(encoding="utf-8"))
)


def test_pack_can_be_imported_where_there_is_no_comfyui(pack: Callable[[str], ModuleType]) -> None:
    assert callable(pack("").comfy_entrypoint)


def test_there_are_sixteen_nodes_with_our_prefix() -> None:
    assert len(NODE_IDS) == 16
    assert all(name.startswith("Foundry") for name in NODE_IDS)


def test_every_node_has_a_help_page() -> None:
    assert sorted(path.stem for path in (ROOT / "web" / "docs").glob("*.md")) == NODE_IDS


@pytest.mark.parametrize("name", NODE_IDS)
def test_help_page_tells_of_every_input_and_output(name: str) -> None:
    """By the snapshot that tests/host compares with the real nodes."""
    known = json.loads((ROOT / "tests" / "host" / "node_info.json").read_text(encoding="utf-8"))
    page = (ROOT / "web" / "docs" / f"{name}.md").read_text(encoding="utf-8")
    shown = {options.get("display_name", key) for key, (_, _, options) in known[name]["inputs"].items()}
    tables = re.findall(r"^\| Input \|.*\n\|[-|]+\n((?:\|.*\n)+)", page, flags=re.MULTILINE)
    cells = [line.split("|")[1] for table in tables for line in table.splitlines()]
    assert {one.strip() for cell in cells for one in re.split(r",| \*or\* ", cell)} == shown
    assert {one for one, _ in known[name]["outputs"] if not re.search(rf"\b{one}\b", page)} == set()


def test_train_and_test_ships() -> None:
    assert "train_and_test" in [path.stem for path in WORKFLOWS]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflow_is_whole_and_has_a_picture(path: Path) -> None:
    graph: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    assert graph["version"] == 0.4
    nodes = {node["id"]: node for node in graph["nodes"]}
    for number, source, slot, target, target_slot, kind in graph["links"]:
        assert number in nodes[source]["outputs"][slot]["links"]
        assert nodes[target]["inputs"][target_slot]["link"] == number
        assert kind in (nodes[source]["outputs"][slot]["type"], nodes[target]["inputs"][target_slot]["type"])
    assert {node["type"] for node in graph["nodes"] if node["type"].startswith("Foundry")} <= set(NODE_IDS)
    with Image.open(path.with_suffix(".jpg")) as picture:
        assert picture.format == "JPEG"


def test_stock_samplers_are_set_as_the_embedded_base_recommends() -> None:
    profile = json.loads((ROOT / "trainer_core" / "embedded" / "base" / "foundry.json").read_text(encoding="utf-8"))
    graph = json.loads((ROOT / "example_workflows" / "train_and_sample_with_stock_nodes.json").read_text("utf-8"))
    for node in graph["nodes"]:
        if node["type"] == "KSampler":
            _, _, steps, cfg, sampler, scheduler, _ = node["widgets_values"]
            assert (steps, cfg) == (profile["sampling"]["steps"], profile["sampling"]["guidance"])
            assert (sampler, scheduler) == ("euler", "simple")


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflow_holds_nothing_of_the_machine_it_was_made_on(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert "/tmp" not in text
    assert "/home" not in text
    assert "/root" not in text
