"""Presets, other trainers' files and verdicts on checkpoints, over the routes of a real ComfyUI."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .page import Page
from .server import ComfyServer

Training = Callable[..., dict[str, Any]]
ROUTES = "/lora_foundry/"
CONFIGS = Path(__file__).parents[1] / "trainer_core" / "importing" / "configs" / "ai_toolkit"


def test_a_file_of_another_trainer_becomes_a_job_and_values_of_widgets(server: ComfyServer) -> None:
    text = (CONFIGS / "flux_character.yaml").read_text(encoding="utf-8")
    told = server.post(ROUTES + "import", {"name": "flux_character.yaml", "text": text})
    known = server.get("/object_info")
    shown = {(one["node"], one["widget"]): one["value"] for one in told["nodes"]}
    assert len(shown) == len(told["nodes"])
    for node, widget in shown:
        assert widget in {**known[node]["input"]["required"], **known[node]["input"].get("optional", {})}
    assert "steps: 1800" in told["job"]
    assert shown["FoundryTrainLoRA", "steps"] == 1800
    assert shown["FoundryTrainLoRA", "learning_rate"] == 2e-4
    assert shown["FoundryConfigureLoRA", "rank"] == 24
    assert shown["FoundryLoadDataset", "resolutions"] == "512, 768"
    assert not {widget for _, widget in shown} & {"folder", "mask_folder", "control_folders", "controls"}
    assert all(isinstance(note, str) for note in told["notes"])


def test_a_preset_over_the_route(server: ComfyServer) -> None:
    base = {"family": "auto", "source": "embedded", "folder_or_repo": ""}
    told = server.post(ROUTES + "preset", {"settings": {"subject": "style", "vram": "24 GB", "base": base}})
    assert all(one.keys() == {"node", "widget", "value", "why"} for one in told)
    assert {one["node"] for one in told} >= {"FoundryTrainLoRA", "FoundryConfigureLoRA"}


def test_the_page_has_checkpoints_measured_and_hears_of_it(server: ComfyServer, training: Training) -> None:
    prompt = training("measured", steps=2, save_every=1, options={"validation_every": 1, "validation_share": 0.2})
    assert server.run(prompt).status == "success"
    assert server.get(ROUTES + "runs/measured")["choice"] is None
    with Page(server) as page:
        code, told = server.posted(ROUTES + "runs/measured/choose", b"{}")
        assert code == 200
        assert server.wait(told["prompt_id"]).status == "success"
        page.until(lambda: any(one.get("choice") for one in page.news("measured")))
    choice = server.get(ROUTES + "runs/measured")["choice"]
    assert [one["step"] for one in choice["checkpoints"]] == [1, 2]
    assert choice["reasons"]
    assert json.dumps(choice)
