"""Sidebar and panel say what the run folder says: after a lost socket, in a browser opened again, at a run's end.

The page has Nodes 2.0, so that all views of the sidebar are seen with it too.
"""

from __future__ import annotations

import json
import re
import shutil
import uuid
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from trainer_core.runs.run_folder import RunFolder

from ..host.server import ComfyServer
from .conftest import _OPTIONS, _READY, errors_of, open_workflow, screenshot, set_widgets, until, workflow
from .runs_on_disk import go_on, make_run, run_at_work
from .test_panel import PANEL, SLOW, shows
from .test_sidebar import open_tab

VIEW = """(name) => {
  const [row, run] = [`.lf-run-row[data-run="${name}"]`, ".lf-run"].map((one) => document.querySelector(one));
  const all = (selector) => [...document.querySelectorAll(selector)].map((one) => one.textContent);
  const curve = (within) => document.querySelector(`${within} polyline.lf-train`)?.getAttribute("points");
  return {
    row: row?.textContent,
    told: run?.querySelector(".lf-run-status").textContent,
    actions: all(".lf-run-actions button"),
    checkpoints: all(".lf-run .lf-table tbody th").map((text) => parseInt(text)),
    samples: run?.querySelector(".lf-thumbnails img")?.alt && run.querySelector(".lf-section-head h4").textContent,
    points: curve(".lf-run")?.split(" ").length,
    panelPoints: curve(".lf-panel")?.split(" ").length,
  };
}"""
TOASTS = "() => [...document.querySelectorAll('.p-toast-message')].map((one) => one.textContent)"
NOTICES = """() => {
  window.notices = [];
  window.asked = 0;
  window.Notification = class {
    static permission = "default";
    static requestPermission = async () => (window.asked += 1, (window.Notification.permission = "granted"));
    constructor(title, { body }) { window.notices.push(body) }
  };
}"""
HIDDEN = "(hidden) => Object.defineProperty(document, 'hidden', { value: hidden, configurable: true })"
SETTINGS = "(name) => window.app.extensionManager.setting.set('Comfy.VueNodes.Enabled', name)"
LOADED = """(name) => {
  const node = window.app?.graph?.nodes.find((n) => n.type === "FoundryTrainLoRA");
  return node?.widgets.find((w) => w.name === "name").value === name;
}"""
KSAMPLER = """() => {
  const node = window.app.graph.nodes.find((n) => n.type === "KSampler");
  return [node.widgets.map((w) => w.name), node.imgs?.length ?? 0, node.progress ?? null, [...node.size]];
}"""

PICTURES = """([selector, count]) => {
  const all = [...document.querySelectorAll(selector)];
  return all.length === count && all.every((one) => one.complete && one.naturalWidth);
}"""
CHOICE = """() => window.app.graph.nodes.find((n) => n.type === "FoundryTrainLoRA")
  .widgets.find((w) => w.name === "if_settings_changed").value"""


@pytest.fixture(scope="module")
def opened(browser: Any, server: ComfyServer, root: Path) -> Iterator[Any]:
    """A page for all tests of this file, with Nodes 2.0 and the tab. Errors of ours on its console fail the last."""
    page = browser.new_page(viewport={"width": 1700, "height": 950})
    page.set_default_timeout(60_000)
    errors = errors_of(page)
    page.add_init_script(f"({NOTICES})()")
    page.goto(server.url)
    page.wait_for_function(_READY)
    page.evaluate(SETTINGS, True)
    open_tab(page)
    yield page
    page.evaluate(SETTINGS, False)
    page.close()
    assert not [error for error in errors if "Failed to fetch" not in error]


@pytest.fixture
def page(opened: Any) -> Any:
    """The page with the list of runs and the template."""
    opened.context.set_offline(False)
    while opened.locator("dialog[open]").count():
        opened.keyboard.press("Escape")
    opened.locator(".lf-view[data-view=runs]").click()
    open_workflow(opened, workflow("train_and_test"))
    return opened


def saw(page: Any, name: str, condition: str) -> None:
    """Waits until the views of a run, `v` in the condition, are so."""
    page.wait_for_function(f"(name) => {{ const v = ({VIEW})(name); return {condition}; }}", arg=name)


def row(page: Any, name: str, action: str) -> Any:
    return page.locator(f'.lf-run-row[data-run="{name}"] [data-action={action}]')


def lose_socket(page: Any) -> None:
    page.context.set_offline(True)
    page.evaluate("() => window.comfyAPI.api.api.socket.close()")
    page.locator(".lf-note", has_text="does not answer").first.wait_for()


def test_all_views_are_right_when_the_socket_is_back(page: Any, root: Path) -> None:
    run, lock = run_at_work(root, "live lost")
    set_widgets(page, "FoundryTrainLoRA", {"name": "live lost"})
    page.locator('.lf-run-row[data-run="live lost"]').wait_for()
    saw(page, "live lost", "v.row.includes('left')")
    page.locator('.lf-run-row[data-run="live lost"] .lf-open').click()
    shows(page, "p.text.includes('left') && p.points === 20")
    saw(page, "live lost", "v.told.includes('left') && v.points === 20 && v.checkpoints.join() === '20'")
    screenshot(page, "live at work")

    lose_socket(page)
    view, panel = page.evaluate(VIEW, "live lost"), page.evaluate(PANEL)
    assert "left" not in view["told"] + panel["text"]
    go_on(run, 21, 30)
    run.write_status("running", 30, 40)  # at work as before: only reading anew tells what came
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.context.set_offline(False)
    saw(page, "live lost", "v.told.includes('step 30') && v.points === 30 && v.panelPoints === 30")
    saw(page, "live lost", "v.checkpoints.join() === '30,20' && v.samples.includes('30') && v.told.includes('left')")
    shows(page, "p.text.includes('step 30') && p.text.includes('left')")
    page.wait_for_timeout(500)
    once = Counter(re.sub(r".*/lora_foundry/|\?.*", "", url) for url in asked if "/lora_foundry/runs" in url)
    assert once.pop("runs/live%20lost/samples/30/00.png", 1) == 1
    assert set(once) == {"runs", "runs/live%20lost", "runs/live%20lost/metrics"}
    assert max(once.values()) <= 2  # a message may come just then
    screenshot(page, "live back")

    lose_socket(page)
    go_on(run, 31, 40)
    run.write_status("finished", 40, 40)
    lock.release()
    page.context.set_offline(False)
    saw(page, "live lost", "v.told.includes('finished') && v.points === 40 && !v.told.includes('left')")
    shows(page, "p.state === 'finished' && !p.text.includes('left') && !p.buttons.length && p.points === 40")
    page.wait_for_function(f"() => ({TOASTS})().some((text) => text.includes('live lost has finished: 40 steps'))")
    page.keyboard.press("Escape")


def test_an_answer_that_fails_leaves_nothing_old(page: Any, root: Path) -> None:
    run, lock = run_at_work(root, "live slow")
    set_widgets(page, "FoundryTrainLoRA", {"name": "live slow"})
    saw(page, "live slow", "v.row?.includes('left')")
    lose_socket(page)
    run.write_status("paused", 25, 40)
    lock.release()
    page.route("**/lora_foundry/runs", lambda route: route.fulfill(status=500, json={"error": "not yet"}))
    page.context.set_offline(False)
    page.locator(".lf-note", has_text="not yet").get_by_role("button", name="Try again").wait_for()
    screenshot(page, "live error")
    assert "left" not in page.evaluate(VIEW, "live slow")["row"] + page.evaluate(PANEL)["text"]
    page.unroute("**/lora_foundry/runs")
    run.write_status("paused", 26, 40)  # whatever is told next has all of them read again
    saw(page, "live slow", "v.row.includes('paused') && v.row.includes('step 26')")
    shows(page, "p.state === 'paused' && p.buttons.join() === 'Resume'")


def test_a_run_tells_its_end_and_on_the_desktop_only_who_asked_for_it(page: Any, root: Path) -> None:
    switch = page.get_by_role("button", name="Desktop notice")
    assert page.evaluate("() => window.asked") == 0
    switch.click()
    page.wait_for_function("() => document.querySelector('.lf-list-head button').ariaPressed === 'true'")
    page.evaluate(HIDDEN, True)
    run, lock = run_at_work(root, "live failing")
    saw(page, "live failing", "v.row?.includes('running')")
    run.write_status("failed", 20, 40, "out of <b>memory</b>")
    lock.release()
    page.wait_for_function("() => window.notices.length === 1")
    told = "live failing has failed at step 20.\nout of <b>memory</b>"
    assert page.evaluate("() => window.notices") == [told]
    assert [text for text in page.evaluate(TOASTS) if told in text]
    page.evaluate(HIDDEN, False)
    screenshot(page, "live failed")
    switch.click()
    page.wait_for_function("() => document.querySelector('.lf-list-head button').ariaPressed === 'false'")
    assert page.evaluate("() => window.asked") == 1


def test_a_browser_that_is_closed_and_opened_again_says_what_is_so_now(
    browser: Any, server: ComfyServer, root: Path, tmp_path: Path
) -> None:
    run, lock = run_at_work(root, "live reopened")
    open_one = lambda: browser.browser_type.launch_persistent_context(  # noqa: E731
        tmp_path, executable_path=shutil.which("chromium") or shutil.which("google-chrome"), args=list(_OPTIONS)
    )
    graph = workflow("train_and_test")
    values = next(one for one in graph["nodes"] if one["type"] == "FoundryTrainLoRA")["widgets_values"]
    values[0] = "live reopened"
    for state in ("running", "finished"):
        with open_one() as context:
            page = context.new_page()
            page.goto(server.url)
            page.wait_for_function(_READY)
            if state == "running":
                open_workflow(page, graph)
            page.wait_for_function(LOADED, arg="live reopened")  # the second time the page has kept the workflow itself
            left, points = ("true", 20) if state == "running" else ("false", 40)
            shows(page, f"p.state === '{state}' && p.text.includes('left') === {left} && p.points === {points}")
        if state == "running":
            go_on(run, 21, 40)
            run.write_status("finished", 40, 40)
            lock.release()


def test_a_configuration_that_is_dropped_on_the_graph_fills_the_nodes(page: Any) -> None:
    theirs = {"network": {"type": "lora", "linear": 6}, "train": {"lr": 5e-5, "steps": 123, "batch_size": 3}}
    process = {"type": "sd_trainer", **theirs, "datasets": [{"folder_path": "/data/theirs"}], "surprise": 1}
    config = json.dumps({"job": "extension", "config": {"name": "theirs", "process": [process]}})  # JSON is YAML too
    page.evaluate(
        """(text) => {
          const data = new DataTransfer();
          data.items.add(new File([text], "theirs.yaml"));
          const target = document.querySelector("#graph-canvas");
          target.dispatchEvent(new DragEvent("drop", { dataTransfer: data, bubbles: true, cancelable: true }));
        }""",
        config,
    )
    dialog = page.locator("dialog.lf-ask")
    dialog.get_by_text("surprise").first.wait_for()
    dialog.locator("summary").click()
    screenshot(page, "live import")
    dialog.get_by_role("button", name="Fill in the nodes").click()
    values = """() => Object.fromEntries(window.app.graph.nodes.flatMap((node) =>
      (node.widgets ?? []).map((widget) => [`${node.type}.${widget.name}`, widget.value])))"""
    page.wait_for_function(f"() => ({values})()['FoundryTrainLoRA.name'] === 'theirs'")
    found = page.evaluate(values)
    wanted = {"FoundryTrainLoRA": {"steps": 123, "learning_rate": 5e-5, "batch_size": 3}}
    wanted |= {"FoundryConfigureLoRA": {"rank": 6}, "FoundryLoadDataset": {"folder": "demo"}}
    assert {one: {name: found[f"{one}.{name}"] for name in values} for one, values in wanted.items()} == wanted


def test_timeline_comparison_and_data_sets_are_there_with_nodes_2_0(page: Any, root: Path) -> None:
    make_run(root, "live seen", prompts=("a red zorble", "a blue zorble"))
    page.locator('.lf-run-row[data-run="live seen"] .lf-open').click()
    page.get_by_role("button", name="Timeline").click()
    dialog = page.locator("dialog[open]")
    page.wait_for_function(PICTURES, arg=[".lf-shot img", 6])
    screenshot(page, "live timeline")
    page.keyboard.press("Escape")

    page.get_by_role("button", name="Compare", exact=True).click()
    assert dialog.get_by_label("Prompts, one a line").input_value() == "a red zorble\na blue zorble"
    screenshot(page, "live compare")
    page.route("**/api/prompt", lambda route: route.fulfill(json={"prompt_id": "gone", "number": 1, "node_errors": {}}))
    dialog.get_by_role("button", name="Draw").click()
    dialog.get_by_text("0 of 6 drawn").wait_for()
    page.unroute("**/api/prompt")
    lose_socket(page)  # and the server that drew is gone as well
    page.context.set_offline(False)
    dialog.get_by_text("Stopped.").wait_for()
    dialog.get_by_role("button", name="Open as workflow").click()
    dialog.wait_for(state="detached")
    page.wait_for_function("() => document.querySelectorAll('[data-node-id]').length > 20")  # as elements
    count = "() => window.app.graph.nodes.filter((node) => node.type === 'KSampler').length"
    assert page.evaluate(count) == 6  # base and two steps of two prompts
    screenshot(page, "live as workflow")

    page.locator(".lf-view[data-view=data]").click()
    page.locator(".lf-sidebar").get_by_role("button", name="demo").click()
    page.wait_for_function(PICTURES, arg=["dialog .lf-cell img", 16])
    screenshot(page, "live data sets")


def lone(kind: str) -> dict[str, Any]:
    """A workflow of one node that has Train LoRA's id in the template."""
    (train,) = (node for node in workflow("train_and_test")["nodes"] if node["type"] == "FoundryTrainLoRA")
    node = {"type": kind, "pos": [600, 200], "size": [300, 500], "flags": {}, "order": 0, "mode": 0, "properties": {}}
    return {"id": str(uuid.uuid4()), "nodes": [{"id": train["id"], **node}], "links": [], "version": 0.4}


def test_resume_and_node_ask_what_to_do_and_no_other_node_is_touched(
    page: Any, root: Path, server: ComfyServer
) -> None:
    name, dialog = "live asks", page.locator("dialog.lf-ask")
    graph = workflow("train_and_test")
    set_widgets(page, "FoundryTrainLoRA", {**SLOW, "name": name})
    set_widgets(page, "FoundrySampleSettings", {"before_training": False})
    page.evaluate("() => window.app.queuePrompt(0)")
    shows(page, "p.state === 'running' && p.points >= 2")

    open_workflow(page, lone("KSampler"))
    before = page.evaluate(KSAMPLER)
    server.post(f"/lora_foundry/runs/{name.replace(' ', '%20')}/request", {"request": "sample"})
    saw(page, name, "v.row.includes('running')")
    until(page, lambda: list((root / name / "samples").glob("*/*.png")))
    row(page, name, "pause").click()
    saw(page, name, "v.row.includes('paused')")
    until(page, lambda: not server.get("/prompt")["exec_info"]["queue_remaining"])
    page.wait_for_timeout(1000)
    screenshot(page, "live foreign")
    assert page.evaluate(KSAMPLER) == before

    def changed(run: str, rate: str) -> None:
        job = root / run / "job.yaml"
        job.write_text(re.sub(r"learning_rate: \S+", f"learning_rate: {rate}", job.read_text(encoding="utf-8")))

    changed(name, "0.0005")
    row(page, name, "resume").click()
    assert "train.learning_rate\t0.001 → 0.0005" in dialog.inner_text()
    screenshot(page, "live resume asks")
    dialog.get_by_role("button", name="Go on with the new values").click()
    until(page, lambda: RunFolder(root / name).metrics()[-1]["lr"] == pytest.approx(0.0005))
    row(page, name, "pause").click()
    saw(page, name, "v.row.includes('paused')")

    changed(name, "0.0002")
    row(page, name, "resume").click()
    dialog.get_by_role("button", name=f"Start new run {name}_2").click()
    until(page, lambda: RunFolder(root / f"{name}_2").losses())
    assert "learning_rate: 0.0002" in (root / f"{name}_2" / "job.yaml").read_text(encoding="utf-8")
    row(page, f"{name}_2", "stop").click()
    saw(page, f"{name}_2", "v.row.includes('stopped')")
    saw(page, name, "v.row.includes('paused')")

    def queue(kind: str | None = None) -> None:
        open_workflow(page, graph)
        set_widgets(page, "FoundryTrainLoRA", {**SLOW, "name": name, "learning_rate": 0.003})
        page.evaluate("() => window.app.queuePrompt(0)")
        if kind:
            open_workflow(page, lone(kind))
        until(page, lambda: not server.get("/prompt")["exec_info"]["queue_remaining"])

    queue("FoundryTrainLoRA")
    page.wait_for_timeout(500)
    assert not dialog.count()  # it is another workflow's node that asks
    queue()
    assert "train.learning_rate\twas 0.0002, is 0.003" in dialog.inner_text()
    screenshot(page, "live node asks")
    dialog.get_by_role("button", name="Start a new run").click()
    until(page, lambda: RunFolder(root / f"{name}_3").losses())
    assert "learning_rate: 0.003" in (root / f"{name}_3" / "job.yaml").read_text(encoding="utf-8")
    assert page.evaluate(CHOICE) == "ask"
    shows(page, "p.state === 'running'")
    server.post("/interrupt", {})
    until(page, lambda: not server.get("/prompt")["exec_info"]["queue_remaining"])
