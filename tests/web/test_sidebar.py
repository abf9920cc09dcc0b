"""The sidebar tab in the real page: all runs as the server knows them, one run, its samples, comparison and files."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from trainer_core.api import new_run
from trainer_core.config import JobConfig, validated

from ..host.server import ROOT, ComfyServer
from .conftest import errors_of, screenshot
from .runs_on_disk import make_run, metrics

MARKUP = "<img src=x onerror=window.hacked=1> <b>bold</b>"
STATES = {"paused": "paused", "stopped": "stopped", "finished": "finished", "failed": "failed"}
CHOSEN = "a red zorble", "a blue zorble", MARKUP
ROWS = "() => [...document.querySelectorAll('.lf-run-row:not([hidden])')].map((row) => row.dataset.run)"
SHOWN = """(name) => {
  const row = document.querySelector(`.lf-run-row[data-run="${name}"]`);
  return row && [row.querySelector(".lf-chip").textContent, row.querySelector(".lf-facts").textContent];
}"""
READY = "() => window.app?.graph && window.app?.extensionManager?.sidebarTab"
FOCUSED = "(one) => one === document.activeElement"
LOADER = "() => window.app.graph.nodes.find((n) => n.type === 'LoraLoaderModelOnly').widgets.map((w) => w.value)"
LOADED = "() => [...document.querySelectorAll('.lf-shot img')].every((one) => one.complete && one.naturalWidth)"
TICKS = "() => [...document.querySelectorAll('.lf-run .lf-tick')].map((tick) => tick.textContent)"
POINTS = "() => document.querySelector('.lf-run polyline.lf-train').getAttribute('points').split(' ').length"


@pytest.fixture(scope="module")
def runs(root: Path) -> Path:
    """Runs that nobody trains."""
    for state in STATES:
        make_run(root, f"side {state}", state=state, prompts=CHOSEN, error=MARKUP if state == "failed" else None)
    return root


@pytest.fixture(scope="module")
def opened(browser: Any, server: ComfyServer, runs: Path) -> Iterator[Any]:
    """A page for all tests of this file, with the tab open. Errors of ours on its console fail the last."""
    page = browser.new_page(viewport={"width": 1600, "height": 950})
    page.set_default_timeout(20_000)
    errors = errors_of(page)
    page.goto(server.url)
    page.wait_for_function(READY)
    open_tab(page)
    yield page
    page.close()
    assert not errors


@pytest.fixture
def tab(opened: Any) -> Any:
    """The page with the list of runs."""
    while opened.locator("dialog[open]").count():
        opened.keyboard.press("Escape")
    opened.locator(".lf-view[data-view=runs]").click()
    opened.wait_for_function(f"() => ({ROWS})().includes('side finished')")
    return opened


def open_tab(page: Any) -> None:
    page.locator(".lora-foundry-tab-button, [aria-label*='LoRA Foundry']").first.click()
    page.locator(".lf-sidebar").wait_for()


def open_run(page: Any, name: str) -> None:
    page.locator(f'.lf-run-row[data-run="{name}"] .lf-open').click()
    page.locator(".lf-run polyline.lf-train").first.wait_for(state="attached")


def requests_of(page: Any, milliseconds: int) -> list[str]:
    """What the page asks of the server meanwhile."""
    asked: list[str] = []

    def listen(request: Any) -> None:
        asked.append(request.url)

    page.on("request", listen)
    page.wait_for_timeout(milliseconds)
    page.remove_listener("request", listen)
    return asked


def test_all_runs_stay_right_in_every_tab(tab: Any, runs: Path, browser: Any, server: ComfyServer) -> None:
    for state, shown in STATES.items():
        assert tab.evaluate(SHOWN, f"side {state}")[0] == shown
    assert "step 40 / 40" in tab.evaluate(SHOWN, "side finished")[1]
    assert MARKUP in tab.evaluate(SHOWN, "side failed")[1]
    assert tab.evaluate("() => window.hacked") is None
    assert tab.locator(".lf-run-row b").filter(has_text="bold").count() == 0
    screenshot(tab, "list")
    assert requests_of(tab, 3000) == []

    second = browser.new_page()
    second.goto(server.url)
    second.wait_for_function(READY)
    open_tab(second)
    second.wait_for_function(f"() => ({ROWS})().includes('side paused')")
    run = make_run(runs, "side late", state="stopped", steps=80, saved=())
    for page in (tab, second):
        page.wait_for_function(f"() => ({SHOWN})('side late')?.[1].includes('step 40 / 80')")
    run.write_status("failed", 41, 80, "out of memory")
    for page in (tab, second):
        page.wait_for_function(f"() => ({SHOWN})('side late')[0] === 'failed'")
    shutil.rmtree(run.path)
    for page in (tab, second):
        page.wait_for_function(f"() => !({ROWS})().includes('side late')")
    second.close()

    tab.locator(".lf-search").fill("side fai")
    assert tab.evaluate(ROWS) == ["side failed"]
    tab.locator(".lf-search").fill("")


def test_what_was_missed_while_the_socket_was_lost_is_there_when_it_is_back(tab: Any, runs: Path) -> None:
    tab.context.set_offline(True)
    tab.evaluate("() => window.comfyAPI.api.api.socket.close()")
    tab.locator(".lf-note", has_text="does not answer").wait_for()
    run = make_run(runs, "side missed", state="stopped", saved=())
    tab.wait_for_timeout(1500)
    assert "side missed" not in tab.evaluate(ROWS)
    tab.context.set_offline(False)
    tab.wait_for_function(f"() => ({ROWS})().includes('side missed')")
    assert tab.locator(".lf-note:visible").count() == 0
    shutil.rmtree(run.path)


def test_a_run_can_be_renamed_and_deleted_with_the_keyboard_alone(tab: Any, runs: Path) -> None:
    make_run(runs, "side to go", state="stopped", saved=())
    row = tab.locator('.lf-run-row[data-run="side to go"]')
    row.wait_for()
    more = row.locator(".pi-ellipsis-v")

    def choose(label: str) -> None:
        more.focus()
        tab.keyboard.press("Enter")
        entry = tab.get_by_role("menuitem", name=label)
        while not entry.evaluate(FOCUSED):
            tab.keyboard.press("ArrowDown")
        screenshot(tab, "menu")
        tab.keyboard.press("Enter")

    choose("Rename")
    tab.keyboard.type("side renamed")
    tab.keyboard.press("Enter")
    row = tab.locator('.lf-run-row[data-run="side renamed"]')
    row.wait_for()
    assert not (runs / "side to go").exists()
    more = row.locator(".pi-ellipsis-v")
    choose("Delete")
    screenshot(tab, "delete")
    tab.keyboard.press("Escape")
    assert (runs / "side renamed").exists()
    choose("Delete")
    tab.keyboard.press("Enter")
    row.wait_for(state="detached")
    assert not (runs / "side renamed").exists()
    assert [path.name for path in (runs / ".trash").iterdir() if path.name.startswith("side renamed")]


def test_a_run_shows_its_curve_checkpoints_and_texts(tab: Any, runs: Path) -> None:
    open_run(tab, "side finished")
    assert tab.evaluate(POINTS) == 40
    ticks = tab.evaluate(TICKS)
    assert {"20", "40", "0.8", "0.9"} <= set(ticks)
    assert tab.locator(".lf-run circle.lf-mark").count() == 2
    assert "step 40: loss 0.4493" in tab.locator(".lf-chart-told").inner_text()
    screenshot(tab, "run")
    line = tab.locator(".lf-run polyline.lf-train")
    tab.get_by_label("Log scale").hover()  # away from the plot, on which the pointer may have come to lie
    before = line.get_attribute("points")
    tab.get_by_label("Log scale").check()
    assert line.get_attribute("points") != before
    tab.get_by_label("Log scale").uncheck()
    assert line.get_attribute("points") == before
    tab.get_by_role("slider", name="Smoothing").fill("0")
    assert line.get_attribute("points") != before

    box = tab.locator(".lf-run .lf-plot").bounding_box()
    tab.mouse.move(box["x"] + box["width"] * 0.6, box["y"] + 50)
    tab.mouse.down()
    tab.mouse.move(box["x"] + box["width"] * 0.8, box["y"] + 60)
    tab.mouse.up()
    assert 5 < tab.evaluate(POINTS) < 15
    tab.locator(".lf-run .lf-plot").focus()
    tab.keyboard.press("0")
    assert tab.evaluate(POINTS) == 40
    tab.keyboard.press("Home")
    assert "step 1: loss 0.9802" in tab.locator(".lf-chart-told").inner_text()

    tab.get_by_role("button", name="Lay other runs over it").click()
    tab.get_by_role("menuitem", name="side stopped").click()
    tab.wait_for_function("() => document.querySelectorAll('.lf-run polyline.lf-train').length === 2")
    assert tab.locator(".lf-legend").inner_text().split("\n") == ["side finished", "side stopped"]

    table = tab.locator(".lf-run .lf-table tbody tr")
    assert [row.split()[:3] for row in table.all_inner_texts()] == [["40", "★", "3.50"], ["20", "3.50", "kB"]]
    pin = tab.locator("[data-key=pin20]")
    pin.click()
    tab.wait_for_function("() => document.querySelector('[data-key=pin20]').ariaPressed === 'true'")
    assert json.loads((runs / "side finished" / "pinned.json").read_text())
    with tab.expect_download() as download:
        tab.locator(".lf-run .pi-download").first.click()
    assert Path(download.value.path()).read_bytes() == b"l" * 3000

    tab.locator(".lf-run summary", has_text="Log").click()
    tab.get_by_text("warning: a <b>bold</b> warning").first.wait_for()
    tab.locator(".lf-run summary", has_text="Settings").click()
    assert "zorble" in tab.locator(".lf-run details", has_text="Settings").inner_text()
    screenshot(tab, "run below")
    with (runs / "side finished" / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(metrics(41)) + "\n")
    tab.keyboard.press("Escape")
    assert tab.locator('.lf-run-row[data-run="side finished"] .lf-open').evaluate(FOCUSED)


def test_samples_lie_on_a_timeline_and_two_of_them_under_a_slider(tab: Any) -> None:
    open_run(tab, "side paused")
    tab.get_by_role("button", name="Timeline").click()
    dialog = tab.locator("dialog.lf-wide")
    dialog.wait_for()
    assert dialog.locator(".lf-shot-prompt").all_inner_texts() == ["", *CHOSEN]
    assert dialog.locator(".lf-shot img").count() == 9
    tab.wait_for_function(LOADED)
    assert tab.evaluate("() => window.hacked") is None
    left, right = dialog.locator(".lf-over"), dialog.locator(".lf-under")
    assert "/samples/0/00.png" in left.get_attribute("src")
    assert "/samples/40/00.png" in right.get_attribute("src")
    dialog.locator("button[data-step='40'][data-index='0']").focus()
    for key in ("ArrowLeft", "ArrowDown", "Enter"):
        tab.keyboard.press(key)
    assert "/samples/20/01.png" in right.get_attribute("src")
    assert "/samples/0/01.png" in left.get_attribute("src")
    dialog.locator(".lf-knob").focus()
    tab.keyboard.press("Home")
    assert dialog.locator(".lf-frame").evaluate("(one) => one.style.getPropertyValue('--cut')") == "0%"
    dialog.locator(".lf-knob").fill("50")
    screenshot(tab, "timeline")
    tab.keyboard.press("Escape")
    dialog.wait_for(state="detached")
    assert tab.locator(".lf-run").is_visible()


@pytest.fixture(scope="module")
def trained(runs: Path) -> str:
    """A run whose checkpoints can be drawn with; gives its name."""
    settings = {
        "name": "side trained",
        "model": {"source": "embedded", "device": "cpu"},
        "adapter": {"rank": 4},
        "datasets": [
            {"folder": str(ROOT / "trainer_core/embedded/demo_dataset"), "resolutions": [64], "trigger": "zorble"}
        ],
        "train": {"steps": 2, "learning_rate": 1e-2, "gradient_checkpointing": False},
        "save": {"every": 1},
        "sample": {"prompts": ["a red [trigger]"], "every": 2, "steps": 1, "before_training": False},
    }
    training = new_run(runs, validated(JobConfig, settings))
    training.run_here(lambda event: None)
    return training.run.name


def test_checkpoints_are_compared_by_comfyui_and_one_is_used(
    tab: Any, trained: str, root: Path, server: ComfyServer
) -> None:
    tab.evaluate("""() => {
      const loader = window.LiteGraph.createNode("LoraLoaderModelOnly");
      window.app.graph.add(loader);
      window.app.canvas.selectItems?.([loader]) ?? window.app.canvas.selectNode(loader);
    }""")
    tab.locator(f'.lf-run-row[data-run="{trained}"] .lf-open').click()
    tab.get_by_role("button", name="Compare", exact=True).click()
    dialog = tab.locator("dialog.lf-wide")
    assert dialog.get_by_label("Prompts, one a line").input_value() == "a red zorble"
    dialog.get_by_label("1", exact=True).uncheck()
    dialog.get_by_label("Strengths").fill("1, 0.5")
    assert dialog.get_by_label("Sampler", exact=True).input_value() == "euler"
    assert dialog.get_by_label("Scheduler").input_value() == "simple"  # what FLUX.1 is drawn with
    dialog.get_by_label("Sampler", exact=True).select_option("dpmpp_2m")
    dialog.get_by_label("Sampling steps").fill("3")
    dialog.get_by_label("Seeds (1 to 4)").fill("2")
    dialog.get_by_role("button", name="Draw").click()
    dialog.locator(".lf-compare-grid img").nth(5).wait_for(timeout=120_000)
    assert tab.request.get(f"{server.url}/api/jobs").ok  # ComfyUI's list of jobs knows ours
    heads = dialog.locator(".lf-compare-grid thead th").all_inner_texts()
    assert [head.removesuffix("Use").strip() for head in heads] == ["base (step 0)", "step 2", "step 2 × 0.5"]
    sources = dialog.locator(".lf-compare-grid img").evaluate_all("(all) => all.map((one) => one.src)")
    assert len({tab.request.get(source).body() for source in sources}) == 6
    dialog.get_by_text("All drawn").wait_for()
    screenshot(tab, "compared")

    dialog.get_by_role("button", name="Use").last.click()
    dialog.get_by_text("Saved as").wait_for()
    (saved,) = (server.base / "models" / "loras").glob("side trained*.safetensors")
    assert tab.evaluate(LOADER) == [saved.name, 0.5]
    checkpoint = root / trained / "checkpoints" / "step_00000002"
    assert saved.read_bytes() == (checkpoint / "lora.safetensors").read_bytes()

    dialog.get_by_role("button", name="Open as workflow").click()
    dialog.wait_for(state="detached")
    tab.wait_for_function("() => window.app.graph.nodes.filter((n) => n.type === 'KSampler').length === 6")
    queued = tab.evaluate("async () => (await window.app.graphToPrompt()).output")
    kinds = sorted(node["class_type"] for node in queued.values())
    assert kinds.count("PreviewImage") == 6
    drawn = [node["inputs"] for node in queued.values() if node["class_type"] == "KSampler"]
    assert {(one["seed"], one["steps"], one["sampler_name"]) for one in drawn} == {(s, 3, "dpmpp_2m") for s in (42, 43)}
    assert kinds.count("FoundryLoadRun") == kinds.count("FoundryLoadBase") == 1
    (loaded,) = (node for node in queued.values() if node["class_type"] == "FoundryLoadRun")
    assert loaded["inputs"] == {"name": trained, "step": 2}
    screenshot(tab, "as workflow")


@pytest.fixture
def answers(tab: Any) -> Iterator[Callable[..., list[Any]]]:
    """Answers a route in the server's place; gives the bodies that were sent."""
    patterns: list[str] = []

    def answer(pattern: str, *given: tuple[int, Any]) -> list[Any]:
        bodies: list[Any] = []

        def handle(route: Any) -> None:
            status, body = given[min(len(bodies), len(given) - 1)]
            bodies.append(route.request.post_data_json)
            route.fulfill(status=status, json=body)

        patterns.append(pattern)
        tab.route(pattern, handle)
        return bodies

    yield answer
    for pattern in patterns:
        tab.unroute(pattern)


def test_resuming_a_run_that_has_changed_asks_what_to_do(tab: Any, answers: Callable[..., list[Any]]) -> None:
    changed = [
        {"name": "train.learning_rate", "before": "0.001", "now": "0.0005"},
        {"name": "data", "before": "", "now": MARKUP},
    ]
    refused = (409, {"error": "its settings have changed", "changed": changed, "new_name": "side paused_2"})
    bodies = answers("**/runs/side%20paused/resume", refused, (200, {"queued": True, "prompt_id": "a"}))
    resume = tab.locator('.lf-run-row[data-run="side paused"] [data-action=resume]')
    resume.click()
    dialog = tab.locator("dialog.lf-ask")
    assert "train.learning_rate\t0.001 → 0.0005" in dialog.inner_text()
    assert tab.evaluate("() => window.hacked") is None
    screenshot(tab, "changed")
    dialog.get_by_role("button", name="Cancel").click()
    assert bodies == [{}]
    with tab.expect_response("**/resume"):
        resume.click()
    assert bodies == [{}, {}]
    assert dialog.count() == 0


def test_a_configuration_that_is_dropped_is_read(tab: Any, answers: Callable[..., list[Any]]) -> None:
    told = {"job": "name: theirs\n", "notes": [f"network.conv: {MARKUP}"], "nodes": None}
    bodies = answers("**/lora_foundry/import", (200, told))
    tab.evaluate("""() => {
      const data = new DataTransfer();
      data.items.add(new File(["job: extension"], "theirs.yaml"));
      const event = (name) => new DragEvent(name, { dataTransfer: data, bubbles: true, cancelable: true });
      document.querySelector(".lf-sidebar").dispatchEvent(event("dragover"));
      document.querySelector(".lf-sidebar").dispatchEvent(event("drop"));
    }""")
    dialog = tab.locator("dialog.lf-ask")
    dialog.get_by_text("network.conv").wait_for()
    assert bodies == [{"name": "theirs.yaml", "text": "job: extension", "more": []}]
    assert "name: theirs" in dialog.inner_text()
    assert tab.evaluate("() => window.hacked") is None
    screenshot(tab, "import")
    tab.keyboard.press("Escape")
