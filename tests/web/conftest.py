"""A ComfyUI server and its page in a headless browser. SCREENSHOTS=<folder> keeps pictures of what the tests saw."""

from __future__ import annotations

import json
import os
import shutil
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from ..host.server import ROOT, ComfyServer

MODELS = ROOT / "tests" / "host" / "comfy_models" / "custom_node"
"""Gives the zoo's models to the page."""
_SETTINGS = {"Comfy.TutorialCompleted": True, "Comfy.Minimap.Visible": False}
"""No welcome dialog over the graph."""
_OPTIONS = ("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update")
_OPTIONS += ("--disable-sync", "--no-first-run")
_READY = "() => window.app?.graph && window.app?.extensionManager && window.app?.ui"
SHOWN_TEXT = """(type) => {
  const node = window.app.graph.nodes.find((n) => n.type === type);
  const own = node.widgets.find((w) => w.name === "foundry_text")?.element.textContent ?? "";
  return own + (node.widgets.find((w) => w.name === "foundry_panel")?.foundry.text?.textContent ?? "");
}"""
"""What the one node of a type says of its progress and its result."""
_PATIENCE = 120_000
"""Milliseconds; only bounds how long a broken page is waited for."""


@pytest.fixture(scope="package")
def server(comfyui: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComfyServer]:
    pytest.importorskip("playwright", reason="the browser tests need `pip install playwright`")
    with ComfyServer(comfyui, tmp_path_factory.mktemp("comfyui_web"), [MODELS]) as running:
        request = urllib.request.Request(
            running.url + "/settings",
            json.dumps(_SETTINGS).encode(),
            {"Content-Type": "application/json"},
            method="POST",
        )
        with urllib.request.urlopen(request, timeout=60):
            pass
        yield running


@pytest.fixture(scope="package")
def browser(server: ComfyServer) -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=program, args=list(_OPTIONS))
        yield chromium
        chromium.close()


@contextmanager
def opened_page(browser: Any, server: ComfyServer, **size: int) -> Iterator[Any]:
    """ComfyUI's page, loaded. An error that a script of the page throws fails at the end."""
    errors: list[str] = []
    tab = browser.new_page(viewport=size)
    tab.set_default_timeout(_PATIENCE)
    tab.on("pageerror", lambda error: errors.append(str(error)))
    tab.goto(server.url)
    tab.wait_for_function(_READY)
    tab.wait_for_timeout(2000)
    yield tab
    tab.close()
    assert not errors


@pytest.fixture
def page(browser: Any, server: ComfyServer) -> Iterator[Any]:
    """A page for one test."""
    with opened_page(browser, server, width=1760, height=1000) as tab:
        yield tab


def workflow(name: str) -> dict[str, Any]:
    """A workflow that we ship, in the page's format."""
    return json.loads((ROOT / "example_workflows" / f"{name}.json").read_text(encoding="utf-8"))


def open_workflow(page: Any, graph: dict[str, Any]) -> None:
    """Loads a workflow into the page, all of it in view."""
    page.evaluate("async (graph) => { await window.app.loadGraphData(graph) }", graph)
    page.wait_for_function("(count) => window.app.graph.nodes.length === count", arg=len(graph["nodes"]))
    page.keyboard.press(".")
    page.wait_for_timeout(1000)


def set_widgets(page: Any, kind: str, values: dict[str, Any]) -> None:
    """Sets widgets of the one node of a type."""
    page.evaluate(
        """([type, values]) => {
          const node = window.app.graph.nodes.find((n) => n.type === type);
          for (const widget of node.widgets) if (widget.name in values) widget.value = values[widget.name];
        }""",
        [kind, values],
    )


def until(page: Any, holds: Callable[[], Any]) -> None:
    """Waits for what the page or the server does."""
    end = time.monotonic() + _PATIENCE / 1000
    while not holds():
        assert time.monotonic() < end, "it did not come"
        page.wait_for_timeout(50)


def screenshot(page: Any, name: str) -> None:
    """Keeps a picture, if asked to."""
    if os.environ.get("SCREENSHOTS"):
        page.screenshot(path=Path(os.environ["SCREENSHOTS"]) / f"{name}.png")


@pytest.fixture(scope="module")
def root(server: ComfyServer) -> Iterator[Path]:
    """The folder of runs, which is as it was afterwards."""
    root = server.base / "output" / "lora_foundry"
    before = {path.name for path in root.iterdir()} if root.exists() else set()
    yield root
    for path in root.iterdir():
        if path.name not in before:
            shutil.rmtree(path, ignore_errors=True)


def ours(said: Any) -> bool:
    """Whether what a page's console says is of our code."""
    return "LoRA Foundry" in said.text or "lora-foundry" in said.location.get("url", "")


def errors_of(page: Any) -> list[str]:
    """What goes wrong on a page from now on: whatever nobody caught, and errors of ours on its console."""
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda said: errors.append(said.text) if said.type == "error" and ours(said) else None)
    return errors
