"""The panel on Train LoRA: a view of the server's runs in every tab, after reloads and restarts, on no other node."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from ..host.server import ComfyServer
from .conftest import _READY, open_workflow, screenshot, set_widgets, workflow
from .test_sidebar import open_tab, ours

SLOW = {"steps": 4000, "save_every": 4000, "sample_every": 4000, "batch_size": 2}
PANEL = """() => {
  const node = window.app.graph.nodes.find((n) => n.type === "FoundryTrainLoRA");
  const panel = node?.widgets.find((w) => w.name === "foundry_panel")?.element;
  if (!panel) return null;
  const seen = (one) => one.offsetParent !== null;
  return {
    state: panel.querySelector(".lf-chip")?.textContent ?? null,
    buttons: [...panel.querySelectorAll(".lf-panel-row button")].filter(seen).map((button) => button.textContent),
    text: panel.querySelector(".lf-panel-text").textContent,
    points: panel.querySelector("polyline.lf-train")?.getAttribute("points").split(" ").length ?? 0,
    ticks: panel.querySelectorAll(".lf-tick").length,
  };
}"""
WITH_PANEL = """() => window.app.graph.nodes
  .filter((node) => node.widgets?.some((widget) => widget.name === "foundry_panel")).map((node) => node.type)"""
BACK = 2500
"""Milliseconds within which a page is right when it, or the server, is back; a little more than asked for."""


@pytest.fixture(params=["canvas", "vue"])
def renderer(request: pytest.FixtureRequest) -> str:
    return request.param


def new_page(browser: Any, server: ComfyServer, graph: dict[str, Any], vue: bool = False) -> Any:
    page = browser.new_page(viewport={"width": 1600, "height": 1000})
    page.set_default_timeout(60_000)
    page.failures = []
    page.on("pageerror", lambda error: page.failures.append(str(error)))
    page.on("console", lambda said: page.failures.append(said.text) if said.type == "error" and ours(said) else None)
    page.goto(server.url)
    page.wait_for_function(_READY)
    page.wait_for_timeout(1000)
    page.evaluate("(vue) => window.app.extensionManager.setting.set('Comfy.VueNodes.Enabled', vue)", vue)
    open_workflow(page, graph)
    return page


def shows(page: Any, condition: str, timeout: int = BACK) -> None:
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


def test_a_training_shows_in_every_tab_and_on_no_other_node(pages: Any, server: ComfyServer, renderer: str) -> None:
    vue = renderer == "vue"
    graph = workflow("train_and_test")
    page = pages(graph, vue)
    set_widgets(page, "FoundryTrainLoRA", {**SLOW, "name": f"every tab {renderer}"})
    set_widgets(page, "FoundrySampleSettings", {"before_training": False})
    page.evaluate("() => window.app.queuePrompt(0)")
    shows(page, "p.points >= 3 && p.state === 'running' && p.ticks > 2", 60_000)
    assert page.evaluate(PANEL)["buttons"] == ["Pause", "Save now", "Sample now"]
    screenshot(page, f"panel {renderer}")

    second = pages(graph, vue)  # its widgets still have the template's name: the server tells which node trains
    shows(second, "p.points >= 3 && p.state === 'running' && p.text.includes('left')")
    foreign = workflow("train_and_sample_with_stock_nodes")
    node = next(one["id"] for one in graph["nodes"] if one["type"] == "FoundryTrainLoRA")
    (train,) = (one for one in foreign["nodes"] if one["type"] == "FoundryTrainLoRA")
    (sampler, *_) = (one for one in foreign["nodes"] if one["type"] == "KSampler")
    assert train["id"] == node  # the same id in another workflow
    set_widgets(second, "FoundryTrainLoRA", {"name": "nobody's name"})
    open_workflow(second, foreign)
    second.wait_for_timeout(1500)
    assert second.evaluate(WITH_PANEL) == []
    assert sampler["id"] != node

    open_tab(second)
    row = second.locator(f'.lf-run-row[data-run="every tab {renderer}"]')
    row.locator("[data-action=pause]").click()
    for one in (page,):
        shows(one, "p.buttons.join() === 'Resume' && p.state === 'paused' && p.text.includes('paused')", 30_000)
        assert "left" not in one.evaluate(PANEL)["text"]
    row.locator("[data-action=resume]").wait_for()


def test_the_panel_is_right_after_a_reload_and_after_the_server_was_killed(pages: Any, server: ComfyServer) -> None:
    graph = workflow("train_and_test")
    (train,) = (one for one in graph["nodes"] if one["type"] == "FoundryTrainLoRA")
    values = train["widgets_values"]
    values[0], values[1] = "killed", 4000
    page = pages(graph)
    set_widgets(page, "FoundrySampleSettings", {"before_training": False})
    page.evaluate("() => window.app.queuePrompt(0)")
    shows(page, "p.points >= 3 && p.text.includes('left')", 60_000)

    page.reload()
    page.wait_for_function(_READY)
    page.evaluate("async (graph) => { await window.app.loadGraphData(graph) }", graph)
    shows(page, "p.points >= 3 && p.buttons.includes('Pause') && p.text.includes('left')")

    open_tab(page)
    server.kill()
    page.wait_for_function("() => document.querySelector('.lf-note')?.textContent.includes('does not answer')")
    assert "left" not in page.evaluate(PANEL)["text"]
    server.__enter__()
    page.wait_for_function("() => window.comfyAPI.api.api.socket?.readyState === 1")
    shows(page, "p.state === 'crashed' && p.buttons.join() === 'Resume' && !p.text.includes('left')")
    screenshot(page, "killed")
    page.wait_for_function(
        "() => document.querySelector('.lf-run-row[data-run=killed] .lf-chip').textContent === 'crashed'"
    )
