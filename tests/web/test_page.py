"""The real page in a real browser: it opens our workflows, shows a training as it runs, and learns of new LoRAs."""

from __future__ import annotations

from typing import Any

import pytest
from PIL import Image

from ..host.server import DEMO_IMAGES, ComfyServer, api_prompt
from .conftest import SHOWN_TEXT, open_workflow, screenshot, set_widgets, workflow
from .runs_on_disk import make_run

WORKFLOWS = ("train_and_test", "train_and_sample_with_stock_nodes", "train_a_checkpoint", "train_any_model")
SHORT = {"steps": 6, "save_every": 3, "sample_every": 3, "batch_size": 2, "name": "in the page"}
MISSING = (
    "() => window.app.graph.nodes.filter((n) => !window.LiteGraph.registered_node_types[n.type]).map((n) => n.type)"
)
CURVE = """() => {
  const node = window.app.graph.nodes.find((n) => n.type === "FoundryTrainLoRA");
  const panel = node.widgets.find((w) => w.name === "foundry_panel");
  return panel?.element.querySelector("polyline.lf-train")?.getAttribute("points") ?? "";
}"""

BUTTONS = """() => {
  const node = window.app.graph.nodes.find((n) => n.type === "FoundryTrainLoRA");
  const row = node.widgets.find((w) => w.name === "foundry_panel")?.element.querySelector(".lf-panel-row");
  return [...(row?.children ?? [])].filter((b) => b.offsetParent !== null).map((b) => b.textContent);
}"""

STATE = """() => {
  const node = window.app.graph.nodes.find((n) => n.type === "FoundryTrainLoRA");
  return node.widgets.find((w) => w.name === "foundry_panel")?.element.querySelector(".lf-chip")?.textContent;
}"""


@pytest.mark.parametrize("name", WORKFLOWS)
def test_workflow_opens_and_queues_as_the_host_tests_run_it(page: Any, server: ComfyServer, name: str) -> None:
    graph = workflow(name)
    open_workflow(page, graph)
    screenshot(page, f"{name}_opened")
    assert page.evaluate(MISSING) == []
    queued = page.evaluate("async () => (await window.app.graphToPrompt()).output")
    expected = api_prompt(graph, server.get("/object_info"))
    assert {key: node["inputs"] for key, node in queued.items()} == {
        key: node["inputs"] for key, node in expected.items()
    }


def test_workflow_saved_before_nodes_had_their_last_widgets_opens(page: Any) -> None:
    """As before November 2026: values are kept by position, and there are none for widgets that came later."""
    old = {"FoundryQuantizeBase": 9, "FoundrySampleSettings": 10, "FoundryLoadDataset": 22}
    graph = workflow("train_and_test")
    for node in graph["nodes"]:
        node["widgets_values"] = node["widgets_values"][: old.get(node["type"])]
    open_workflow(page, graph)
    queued = page.evaluate("async () => (await window.app.graphToPrompt()).output")
    open_workflow(page, workflow("train_and_test"))
    assert queued == page.evaluate("async () => (await window.app.graphToPrompt()).output")


def test_training_shows_on_the_node_and_loaders_list_the_file(page: Any, server: ComfyServer) -> None:
    open_workflow(page, workflow("train_and_test"))
    set_widgets(page, "FoundryTrainLoRA", SHORT)
    set_widgets(page, "FoundrySampleSettings", {"steps": 2})
    set_widgets(page, "FoundryTrainingOptions", {"validation_every": 3, "validation_share": 0.25})
    set_widgets(page, "FoundrySaveCheckpoint", {"name": "from the page"})
    set_widgets(page, "FoundryPreviewSamples", {"steps": 2})
    page.evaluate("""() => {
      const loader = window.LiteGraph.createNode("LoraLoaderModelOnly");
      loader.pos = [0, 1400];
      loader.mode = 2;  // never runs: it only lists
      window.app.graph.add(loader);
    }""")
    page.evaluate("() => window.app.queuePrompt(0)")
    page.wait_for_function(f"() => ({CURVE})().split(' ').length >= 2")
    screenshot(page, "training")
    page.wait_for_function("""() => {
      const loader = window.app.graph.nodes.find((n) => n.type === "LoraLoaderModelOnly");
      const list = loader.widgets[0].options.values;
      const names = typeof list === "function" ? list() : list;
      return names.includes("from the page.safetensors") && !names.some((name) => name.includes("in the page"));
    }""")
    while server.get("/prompt")["exec_info"]["queue_remaining"]:
        page.wait_for_timeout(200)
    page.wait_for_timeout(1500)
    screenshot(page, "trained")
    text = page.evaluate(SHOWN_TEXT, "FoundryTrainLoRA")
    assert "step 6 / 6" in text
    assert "loss" in text
    assert "s/step" in text
    assert "validation loss" in text
    assert "saved as from the page.safetensors" in text  # one LoRA, one name
    assert len(page.evaluate(CURVE).split(" ")) == 6
    assert f"{DEMO_IMAGES} images" in page.evaluate(SHOWN_TEXT, "FoundryLoadDataset")
    assert "zorble" in page.evaluate(SHOWN_TEXT, "FoundryCaptionWithTrigger")
    assert "from the page.safetensors" in page.evaluate(SHOWN_TEXT, "FoundrySaveCheckpoint")


@pytest.mark.parametrize("vue", [False, True])
def test_previews_are_labelled_below_the_pictures(page: Any, server: ComfyServer, vue: bool) -> None:
    Image.new("RGB", (64, 64), "red").save(server.base / "input" / "preview.png")
    page.evaluate("(vue) => window.app.extensionManager.setting.set('Comfy.VueNodes.Enabled', vue)", vue)
    open_workflow(page, workflow("train_and_test"))
    labels = [
        {"prompt": "a <b>red</b> zorble", "step": 0, "drawn_by": "base"},
        {"prompt": "a <img src=x onerror=alert(1)>", "step": 250, "drawn_by": "LoRA"},
    ]
    page.evaluate(
        """(labels) => {
          const { id } = window.app.graph.nodes.find((n) => n.type === "FoundryTrainLoRA");
          const images = labels.map(() => ({ filename: "preview.png", subfolder: "", type: "input" }));
          const output = { images, labels, text: ["done"] };
          const told = { node: String(id), display_node: String(id), prompt_id: "none", output };
          window.comfyAPI.api.api.dispatchCustomEvent("executed", told);
        }""",
        labels,
    )
    page.wait_for_timeout(1500)
    for tab in ("Unsaved Workflow", "Unsaved Workflow (2)"):  # another is looked at meanwhile
        page.get_by_text(tab, exact=True).first.click()
        page.wait_for_timeout(1500)
    shown = page.locator(".lf-labels")
    (text,) = shown.all_inner_texts()
    assert text == "base (step 0) a <b>red</b> zorble\nLoRA, step 250 a <img src=x onerror=alert(1)>"
    assert shown.locator("img").count() == 0
    screenshot(page, f"labels vue {vue}")
    if vue:
        pictures = page.locator(".image-preview").bounding_box()
        assert pictures["y"] + pictures["height"] <= shown.bounding_box()["y"] + 1
    else:
        last = "() => window.app.graph.nodes.find((n) => n.type === 'FoundryTrainLoRA').widgets.slice(-2)"
        names = page.evaluate(f"() => ({last})().map((widget) => widget.name)")
        assert names == ["$$canvas-image-preview", "foundry_labels"]
    page.evaluate("() => window.app.extensionManager.setting.set('Comfy.VueNodes.Enabled', false)")


def test_saved_workflow_does_not_change_by_running(page: Any, server: ComfyServer) -> None:
    """What we add to nodes is display only: values are kept by position, and must be the widgets' own."""
    graph = workflow("train_and_test")
    open_workflow(page, graph)
    page.evaluate("""() => {
      const api = window.comfyAPI.api.api;
      const node = window.app.graph.nodes.find((n) => n.type === "FoundryTrainLoRA");
      api.dispatchCustomEvent("lora_foundry.progress", { node: String(node.id), run: "a run", text: "step 1" });
      node.onExecuted({ text: ["done"], labels: [{ prompt: "a zorble", step: 3, drawn_by: "LoRA" }] });
    }""")
    saved = page.evaluate("() => window.app.graph.serialize()")
    values = {node["id"]: node.get("widgets_values") for node in saved["nodes"]}
    assert values == {node["id"]: node["widgets_values"] for node in graph["nodes"]}


def test_a_refusal_is_said_once_on_the_widget_at_fault(page: Any) -> None:
    open_workflow(page, workflow("train_and_test"))
    set_widgets(page, "FoundryLoadDataset", {"folder": "nowhere", "resolutions": "big"})
    set_widgets(page, "FoundryQuantizeBase", {"family": "sd15"})
    set_widgets(page, "FoundryTrainLoRA", {"name": "a/b"})
    told = page.evaluate("""async () => {
      const api = window.comfyAPI.api.api, { queuePrompt } = api;
      let told = null;
      api.queuePrompt = (...given) => queuePrompt.apply(api, given).catch((error) => {
        told = error.response.node_errors;
        throw error;
      });
      await window.app.queuePrompt(0);
      api.queuePrompt = queuePrompt;
      const inputs = (errors) => errors.map((error) => error.extra_info.input_name);
      return Object.values(told).map(({ class_type, errors }) => [class_type, inputs(errors)]);
    }""")
    screenshot(page, "refused_inputs")
    found = {kind: errors for kind, errors in told if errors}
    assert found == {"FoundryLoadDataset": ["folder"], "FoundryQuantizeBase": ["family"], "FoundryTrainLoRA": ["name"]}


def test_buttons_pause_save_and_resume(page: Any, server: ComfyServer) -> None:
    open_workflow(page, workflow("train_and_test"))
    slow = {"steps": 4000, "save_every": 4000, "sample_every": 4000, "batch_size": 4, "name": "with buttons"}
    set_widgets(page, "FoundryTrainLoRA", slow)
    set_widgets(page, "FoundrySampleSettings", {"steps": 2, "before_training": False})
    assert page.evaluate(BUTTONS) == []
    page.evaluate("() => window.app.queuePrompt(0)")
    page.wait_for_function(f"() => ({CURVE})().split(' ').length >= 3")
    assert page.evaluate(BUTTONS) == ["Pause", "Save now", "Sample now"]
    screenshot(page, "buttons")
    checkpoints = server.base / "output" / "lora_foundry" / "with buttons" / "checkpoints"
    page.get_by_role("button", name="Save now").click()
    page.wait_for_function(f"() => /^Saved at step \\d+$/.test(({BUTTONS})()[1])")
    assert "as you asked" in page.evaluate(SHOWN_TEXT, "FoundryTrainLoRA")
    assert len(list(checkpoints.iterdir())) == 1
    page.get_by_role("button", name="Pause").click()
    page.wait_for_function(f"() => ({BUTTONS})().join() === 'Resume'")
    page.wait_for_timeout(1000)
    screenshot(page, "paused")
    assert "paused" in page.evaluate(SHOWN_TEXT, "FoundryTrainLoRA")
    assert page.evaluate(CURVE)
    page.get_by_role("button", name="Resume").click()
    page.wait_for_function(f"() => ({BUTTONS})().includes('Pause')")
    page.wait_for_function(f"() => ({SHOWN_TEXT})('FoundryTrainLoRA').includes('goes on with with buttons from step')")
    screenshot(page, "resumed")
    page.evaluate("() => window.comfyAPI.api.api.interrupt()")
    page.wait_for_function(f"() => ({BUTTONS})().length === 0")


def test_button_of_a_run_that_has_ended_says_so_and_goes(page: Any, server: ComfyServer) -> None:
    make_run(server.base / "output" / "lora_foundry", "gone", state="finished", prompts=())
    open_workflow(page, workflow("train_and_test"))
    assert page.evaluate(STATE) != "finished"
    page.evaluate("""() => {
      const node = window.app.graph.nodes.find((n) => n.type === "FoundryTrainLoRA");
      const widget = node.widgets.find((w) => w.name === "name");
      widget.value = "gone";
      widget.callback("gone");
    }""")
    page.wait_for_function(f"() => ({STATE})() === 'finished'")
    page.evaluate("""async () => {
      const { revision, runs } = await (await fetch("/lora_foundry/runs")).json();
      const run = { ...runs.find((one) => one.name === "gone"), state: "running", owner: "a process" };
      const told = { revision: revision + 1, runs: [run], gone: [] };
      window.comfyAPI.api.api.dispatchCustomEvent("lora_foundry.runs", told);
    }""")
    page.wait_for_function(f"() => ({BUTTONS})().join() === 'Pause,Save now'")  # there are no prompts to draw
    page.get_by_role("button", name="Save now").click()
    page.wait_for_function(f"() => ({BUTTONS})().length === 0")
    page.get_by_text("Save now: nobody works on gone").wait_for()
    screenshot(page, "refused")
