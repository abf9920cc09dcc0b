"""How soon the page says what is so once it is back, with the 200 runs of `pages.py` and a run at work beside them.

    python benchmarks/page_back.py COMFYUI DIR            # DIR: base directory of the server that is started here
    python benchmarks/page_back.py COMFYUI DIR --lost 60  # seconds for which the socket is lost

Milliseconds in headless Chromium from the moment at which the socket is open until the panel on Train LoRA and the
opened run show what the run's folder has said meanwhile: after a lost socket, after the server was killed and started
again, after a reload and in a second tab (where the page itself loads at the same time, and the tab is opened).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from pages import make
from playwright.sync_api import sync_playwright

from tests.host.server import ComfyServer
from tests.web.conftest import _OPTIONS, _READY, open_workflow, workflow
from tests.web.runs_on_disk import make_run
from trainer_core.runs.run_lock import RunLock

NAME = "page back"
WHEN_OPEN = """() => {
  const Socket = window.WebSocket;
  window.WebSocket = class extends Socket {
    constructor(...given) {
      super(...given);
      if (this.url.includes("/ws")) this.addEventListener("open", () => (window.backAt = performance.now()));
    }
  };
}"""
OPEN_RUN = """async (name) => {
  const next = () => new Promise(requestAnimationFrame);
  while (!window.app?.extensionManager?.sidebarTab?.sidebarTabs?.some((tab) => tab.id === "lora-foundry")) await next();
  window.app.extensionManager.sidebarTab.toggleSidebarTab("lora-foundry");
  while (!document.querySelector(`.lf-run-row[data-run="${name}"]`)) await next();
  const row = document.querySelector(`.lf-run-row[data-run="${name}"]`).textContent;
  document.querySelector(`.lf-run-row[data-run="${name}"] .lf-open`).click();
  return row;
}"""
UNTIL = """async (text) => {
  const found = {};
  const widgets = () => window.app?.graph?.nodes.flatMap((node) => node.widgets ?? []) ?? [];
  const right = {
    panel: () => widgets().find((one) => one.name === "foundry_text")?.element.textContent,
    run: () => document.querySelector(".lf-run-status")?.textContent,
  };
  while (Object.keys(found).length < 2) {
    for (const [view, shown] of Object.entries(right)) {
      if (!(view in found) && window.backAt && shown()?.includes(text)) found[view] = performance.now() - window.backAt;
    }
    await new Promise(requestAnimationFrame);
  }
  return found;
}"""


def main(comfyui: Path, base: Path, lost: float) -> None:
    """Prints one line of JSON for each case."""
    runs = base / "output" / "lora_foundry"
    make(runs)
    shutil.rmtree(runs / NAME, ignore_errors=True)
    run = make_run(runs, NAME, state="running", steps=1000, lines=100)
    graph = workflow("train_and_test")
    next(one for one in graph["nodes"] if one["type"] == "FoundryTrainLoRA")["widgets_values"][0] = NAME
    step = 500

    def told(case: str, page: Any) -> None:
        found = page.evaluate(UNTIL, f"step {step} /")
        shown = {view: round(value) for view, value in found.items()}
        print(json.dumps({"case": case, **shown, "load": round(os.getloadavg()[0], 1)}), flush=True)

    def on() -> None:
        nonlocal step
        step += 1
        run.write_status("running", step, 1000)

    with ComfyServer(comfyui, base) as server, RunLock(run.path), sync_playwright() as playwright:
        program = shutil.which("chromium") or shutil.which("google-chrome")
        context = playwright.chromium.launch(executable_path=program, args=list(_OPTIONS)).new_context()
        context.add_init_script(f"({WHEN_OPEN})()")
        page = context.new_page()
        page.set_default_timeout(300_000)
        page.goto(server.url)
        page.wait_for_function(_READY)
        page.wait_for_timeout(3000)
        open_workflow(page, graph)
        page.evaluate(OPEN_RUN, NAME)
        page.wait_for_timeout(3000)
        for _ in range(3):
            context.set_offline(True)
            page.evaluate("() => { window.backAt = 0; window.comfyAPI.api.api.socket.close() }")
            page.locator(".lf-note", has_text="does not answer").wait_for()
            page.wait_for_timeout(1000 * lost)
            on()
            context.set_offline(False)
            told(f"socket lost for {lost:g} s", page)
        server.kill()
        page.evaluate("() => (window.backAt = 0)")
        on()
        server.__enter__()
        told("server killed and started", page)
        page.wait_for_timeout(3000)
        on()
        page.reload(wait_until="commit")
        page.evaluate(OPEN_RUN, NAME)
        told("reload", page)
        second = context.new_page()
        second.set_default_timeout(300_000)
        on()
        second.goto(server.url, wait_until="commit")
        second.evaluate(OPEN_RUN, NAME)
        told("second tab", second)
        context.browser.close()
    shutil.rmtree(run.path)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("comfyui", type=Path)
    parser.add_argument("base", type=Path)
    parser.add_argument("--lost", type=float, default=2.0)
    given = parser.parse_args()
    main(given.comfyui, given.base, given.lost)
