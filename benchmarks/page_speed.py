"""How fast the sidebar is in a real browser, with the 200 runs of `pages.py`.

    python benchmarks/page_speed.py URL     # of a ComfyUI with this pack whose output/lora_foundry pages.py has filled

Milliseconds in headless Chromium: the tab until all rows are there, the longest gap between two frames while the list
and the sample timeline scroll from end to end, opening a run and its timeline; and what is asked of the server in five
seconds in which nothing happens. All of it depends on what else the machine does.
"""

from __future__ import annotations

import json
import shutil
import sys
from typing import Any

from playwright.sync_api import sync_playwright

READY = "() => window.app?.graph && window.app?.extensionManager?.sidebarTab"
OPEN = """async () => {
  const start = performance.now();
  window.app.extensionManager.sidebarTab.toggleSidebarTab("lora-foundry");
  while (document.querySelectorAll(".lf-run-row").length < 200) await new Promise(requestAnimationFrame);
  await new Promise(requestAnimationFrame);
  return performance.now() - start;
}"""
CLICK = """async ([click, until]) => {
  const start = performance.now();
  document.querySelector(click).click();
  while (!document.querySelector(until)) await new Promise(requestAnimationFrame);
  await new Promise(requestAnimationFrame);
  return performance.now() - start;
}"""
SCROLL = """async ([selector, side]) => {
  const box = document.querySelector(selector);
  const [place, length] = side ? ["scrollLeft", "scrollWidth"] : ["scrollTop", "scrollHeight"];
  let [gap, last] = [0, performance.now()];
  box[place] = 0;
  for (let at = 0; at < box[length]; at += 120) {
    box[place] = at;
    await new Promise(requestAnimationFrame);
    const now = performance.now();
    [gap, last] = [Math.max(gap, now - last), now];
  }
  return gap;
}"""


def main(url: str) -> None:
    """Prints one line of JSON."""
    with sync_playwright() as playwright:
        program = shutil.which("chromium") or shutil.which("google-chrome")
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": 1600, "height": 950})
        page.goto(url)
        page.wait_for_function(READY)
        page.wait_for_timeout(3000)
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        found: dict[str, Any] = {"tab": page.evaluate(OPEN)}
        found["tab again"] = min(_again(page) for _ in range(5))
        found["list, longest gap"] = page.evaluate(SCROLL, [".lf-body", False])
        found["run"] = page.evaluate(CLICK, [".lf-open", ".lf-run .lf-table"])
        page.wait_for_function("() => document.querySelector('.lf-run polyline.lf-train')")
        timeline = [".lf-section-head .lf-button", "dialog .lf-shot img"]
        found["timeline of 1,000 samples"] = page.evaluate(CLICK, timeline)
        found["timeline, longest gap"] = page.evaluate(SCROLL, [".lf-grid-scroll", True])
        page.keyboard.press("Escape")
        page.wait_for_timeout(2000)
        asked.clear()
        page.wait_for_timeout(5000)
        found["requests in 5 s"] = len(asked)
        print(json.dumps({name: round(value) for name, value in found.items()}))
        browser.close()


def _again(page: Any) -> float:
    page.evaluate("() => window.app.extensionManager.sidebarTab.toggleSidebarTab('lora-foundry')")
    page.wait_for_timeout(300)
    return float(page.evaluate(OPEN))


if __name__ == "__main__":
    main(sys.argv[1])
