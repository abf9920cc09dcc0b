"""The panel on Train LoRA: a view of the server's runs in every tab, after reloads and restarts, on no other node."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from ..host.server import ComfyServer
from .conftest import _READY, errors_of, open_workflow, screenshot, set_widgets, workflow
from .test_sidebar import open_tab, requests_of

SLOW = {"steps": 4000, "save_every": 4000, "sample_every": 4000, "batch_size": 2}
PANEL = """() => {
  const node = window.app.graph.nodes.find((n) => n.type === "FoundryTrainLoRA");
  const panel = node?.widgets.find((w) => w.name === "foundry_panel")?.element;
  const text = node?.widgets.find((w) => w.name === "foundry_text")?.element.textContent;
  if (!panel) return null;
  const seen = (one) => one.offsetParent !== null;
  return {
    state: panel.querySelector(".lf-chip")?.textContent ?? null,
    buttons: [...panel.querySelectorAll(".lf-panel-row button")].filter(seen).map((button) => button.textContent),
    text,
    points: panel.querySelector("polyline.lf-train")?.getAttribute("points").split(" ").length ?? 0,
    ticks: panel.querySelectorAll(".lf-tick").length,
  };
}"""
WITH_PANEL = """() => window.app.graph.nodes
  .filter((node) => node.widgets?.some((widget) => widget.name === "foundry_panel")).map((node) => node.type)"""

PROGRESS = "() => window.app.graph.nodes.filter((node) => typeof node.progress === 'number').map((node) => node.type)"


def new_page(browser: Any, server: ComfyServer, graph: dict[str, Any], vue: bool = False) -> Any:
    page = browser.new_page(viewport={"width": 1600, "height": 1000})
    page.set_default_timeout(60_000)
    page.failures = errors_of(page)
    page.goto(server.url)
    page.wait_for_function(_READY)
    page.wait_for_timeout(1000)
    page.evaluate("(vue) => window.app.extensionManager.setting.set('Comfy.VueNodes.Enabled', vue)", vue)
    open_workflow(page, graph)
    return page


def shows(page: Any, condition: str, timeout: int = 60_000) -> None:
    """Waits until the panel, `p` in the condition, is so."""
    page.wait_for_function(f"() => {{ const p = ({PANEL})(); return p && {condition}; }}", timeout=timeout)


@pytest.fixture
def pages(browser: Any, server: ComfyServer) -> Iterator[Any]:
    """Opens pages, and closes them; errors of ours fail the test."""
    opened: list[Any] = []

    def open_one(graph: dict[str, Any], vue: bool = False) -> Any:
        opened.append(new_page(browser, server, graph, vue))
        return opened[-1]

    yield open_one
    for page in opened:
        page.evaluate("() => window.app.extensionManager.setting.set('Comfy.VueNodes.Enabled', false)")
        page.close()
    server.post("/interrupt", {})
    assert not [failure for page in opened for failure in page.failures]


def test_the_panel_is_right_in_every_tab_and_after_everything(pages: Any, server: ComfyServer) -> None:
    """One training, looked at in both renderers, paused, gone on with, reloaded, and its server killed."""
    graph = workflow("train_and_test")
    page = pages(graph)
    set_widgets(page, "FoundryTrainLoRA", {**SLOW, "name": "every tab"})
    set_widgets(page, "FoundrySampleSettings", {"before_training": False})
    page.evaluate("() => window.app.queuePrompt(0)")
    shows(page, "p.points >= 3 && p.state === 'running' && p.ticks > 2")
    assert page.evaluate(PANEL)["buttons"] == ["Pause", "Save now", "Sample now"]
    screenshot(page, "panel")

    # its widgets still have the template's name: the server tells which node trains
    second = pages(graph, vue=True)
    shows(second, "p.points >= 3 && p.state === 'running' && p.text.includes('left')")
    assert second.evaluate(PANEL)["buttons"] == ["Pause", "Save now", "Sample now"]
    screenshot(second, "panel vue")
    foreign = workflow("train_and_sample_with_stock_nodes")
    ids = [one["id"] for one in (*graph["nodes"], *foreign["nodes"]) if one["type"] == "FoundryTrainLoRA"]
    assert ids[0] == ids[1]  # the same id in another workflow
    open_workflow(second, foreign)
    set_widgets(second, "FoundryTrainLoRA", {"name": "no run"})
    second.wait_for_timeout(1000)
    assert second.evaluate(WITH_PANEL) == []

    open_tab(second)
    row = second.locator('.lf-run-row[data-run="every tab"]')
    row.locator("[data-action=pause]").click()
    shows(page, "p.buttons.join() === 'Resume' && p.state === 'paused' && p.text.includes('paused')")
    assert "left" not in page.evaluate(PANEL)["text"]
    row.locator("[data-action=resume]").click()
    shows(page, "p.state === 'running' && p.text.includes('left')")

    assert second.evaluate(PROGRESS) == []  # that prompt is none of the open workflow's

    page.reload()
    page.wait_for_function(_READY)
    values = next(one for one in graph["nodes"] if one["type"] == "FoundryTrainLoRA")["widgets_values"]
    values[0] = "every tab"
    page.evaluate("async (graph) => { await window.app.loadGraphData(graph) }", graph)
    shows(page, "p.points >= 3 && p.buttons.includes('Pause') && p.text.includes('left')")

    row.locator(".lf-open").click()
    status, actions = (second.locator(f".lf-run-{part}") for part in ("status", "actions"))
    second.wait_for_function("() => document.querySelector('.lf-run-status').textContent.includes('left')")
    assert not [url for url in requests_of(second, 2000) if "/metrics" in url or "every%20tab" in url]  # it is told
    server.kill()
    shows(page, "!p.text.includes('left')")
    second.locator(".lf-note", has_text="does not answer").wait_for()
    assert "left" not in status.inner_text()
    server.__enter__()
    for one in (page, second):
        one.wait_for_function("() => window.comfyAPI.api.api.socket?.readyState === 1")
    shows(page, "p.state === 'crashed' && p.buttons.join() === 'Resume' && !p.text.includes('left')")
    status.locator(".lf-chip", has_text="crashed").wait_for()
    assert actions.inner_text() == "Resume"
    assert "left" not in status.inner_text()
    screenshot(second, "killed")
    second.keyboard.press("Escape")
    row.locator(".lf-chip", has_text="crashed").wait_for()
