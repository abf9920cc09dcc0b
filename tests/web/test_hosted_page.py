"""Models that ComfyUI has loaded, trained from the page: what it says of them, in both of its renderers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from ..host.server import ComfyServer
from .conftest import SHOWN_TEXT, open_workflow, screenshot, set_widgets, workflow

TRAIN = {"steps": 40, "save_every": 40, "sample_every": 20, "sample_prompts": "a red [trigger]"}
PICTURES = """() => {
  const node = window.app.graph.nodes.find((n) => n.type === "FoundryTrainLoRA");
  return [...(node.imgs ?? []), ...document.querySelectorAll("img")].map((image) => decodeURIComponent(image.src));
}"""
"""Sources of what Train LoRA shows; the page draws some pictures into its canvas."""
SAMPLES = {"width": 64, "height": 64, "steps": 2, "before_training": False, "frames": 9}


@pytest.fixture(params=["canvas", "vue"])
def renderer(request: pytest.FixtureRequest, page: Any) -> Iterator[str]:
    """Which of the page's renderers draws the nodes."""
    choose = "(vue) => window.app.extensionManager.setting.set('Comfy.VueNodes.Enabled', vue)"
    page.evaluate(choose, request.param == "vue")
    yield request.param
    page.evaluate(choose, False)


@pytest.mark.parametrize(("architecture", "animated"), [("flux1", False), ("wan21_t2v", True)])
def test_any_model_is_trained_and_sampled(
    page: Any, server: ComfyServer, architecture: str, animated: bool, renderer: str
) -> None:
    name = f"{architecture} {renderer}"
    open_workflow(page, _with_test_model(architecture))
    set_widgets(page, "FoundryLoadDataset", {"resolutions": "64"})
    set_widgets(page, "FoundryTrainLoRA", {**TRAIN, "name": name})
    set_widgets(page, "FoundrySampleSettings", SAMPLES)
    set_widgets(page, "EmptyLatentImage", {"width": 64, "height": 64})
    set_widgets(page, "KSampler", {"steps": 2, "cfg": 1.0, "sampler_name": "euler", "scheduler": "simple"})
    page.evaluate("() => window.app.queuePrompt(0)")
    page.wait_for_function(f"() => ({SHOWN_TEXT})('FoundryTrainLoRA').includes('step')")
    screenshot(page, f"{name} trains")
    page.wait_for_function(f"() => ({PICTURES})().some((source) => source.includes('samples/step_'))")
    screenshot(page, f"{name} previews")
    while server.get("/prompt")["exec_info"]["queue_remaining"]:
        page.wait_for_timeout(200)
    page.wait_for_timeout(1500)
    screenshot(page, f"{name} trained")
    (done,) = server.get("/history?max_items=1").values()
    assert done["status"]["status_str"] == "success", done["status"]["messages"]
    assert "layers" in page.evaluate(SHOWN_TEXT, "FoundryQuantizeBase")
    assert f"{name}_40_steps.safetensors" in page.evaluate(SHOWN_TEXT, "FoundryTrainLoRA")
    kind = "webp" if animated else "png"
    assert any(f"00.{kind}" in source and "step_00000040" in source for source in page.evaluate(PICTURES))
    assert "lora key not loaded" not in server.log()


def _with_test_model(architecture: str) -> dict[str, Any]:
    """The workflow for any model; a node of the tests gives what Load Checkpoint gives."""
    graph = workflow("train_any_model")
    (loader,) = (node for node in graph["nodes"] if node["type"] == "CheckpointLoaderSimple")
    loader.update(type="FoundryTestModel", widgets_values=[architecture, 0, "fixed"])
    loader["outputs"].append({"name": "sound_vae", "type": "VAE", "links": None})
    return graph
