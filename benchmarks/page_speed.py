"""How fast the sidebar is in a real browser, with the 200 runs of `pages.py`, or with its 10,000 pictures.

    python benchmarks/page_speed.py URL     # of a ComfyUI with this pack whose output/lora_foundry pages.py has filled
    python benchmarks/page_speed.py URL --pictures    # whose input folder it has filled

Milliseconds in headless Chromium: the tab until all rows are there, the longest gap between two frames while the list
and the sample timeline scroll from end to end, opening a run and its timeline; and what is asked of the server in five
seconds in which nothing happens. All of it depends on what else the machine does.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Callable
from typing import Any

from pages import CAPTIONED, DATA_SET, PICTURES
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


OPEN_SET = """async (name) => {
  const start = performance.now(), found = {};
  [...document.querySelectorAll(".lf-set")].find((one) => one.querySelector("strong").textContent === name).click();
  const shown = () => [...document.querySelectorAll("dialog.lf-data .lf-cell:not([hidden])")];
  while (found["set, a full screen"] === undefined) {
    await new Promise(requestAnimationFrame);
    const cells = shown(), drawn = cells.filter((cell) => cell.querySelector("img").naturalWidth).length;
    const passed = performance.now() - start;
    if (cells.some((cell) => cell.querySelector(".lf-cell-text").textContent)) found["set, captions"] ??= passed;
    if (drawn) found["set, first picture"] ??= passed;
    if (drawn >= 18) found["set, a full screen"] = passed;
  }
  return found;
}"""
SCROLL_SET = """async () => {
  const grid = document.querySelector("dialog.lf-data .lf-grid"), start = performance.now();
  let [gap, last] = [0, start];
  while (last - start < 10000) {
    grid.scrollTop += 400;
    await new Promise(requestAnimationFrame);
    const now = performance.now();
    [gap, last] = [Math.max(gap, now - last), now];
  }
  return gap;
}"""
DRAWN = """() => [...document.querySelectorAll("dialog.lf-data .lf-cell:not([hidden]) img")]
  .filter((image) => image.complete && image.naturalWidth).length >= 18"""


def main(url: str, measured: Callable[[Any, list[str]], dict[str, Any]]) -> None:
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
        found = measured(page, asked)
        print(json.dumps({name: round(value) for name, value in found.items()}))
        browser.close()


def runs(page: Any, asked: list[str]) -> dict[str, Any]:
    """The list of runs, one of them, and its timeline."""
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
    return found | _idle(page, asked)


def pictures(page: Any, asked: list[str]) -> dict[str, Any]:
    """The editor of a data set of 10,000 pictures."""
    page.evaluate("() => window.app.extensionManager.sidebarTab.toggleSidebarTab('lora-foundry')")
    page.get_by_role("tab", name="Data sets").click()
    page.locator(".lf-set strong", has_text=DATA_SET).wait_for()
    found: dict[str, Any] = page.evaluate(OPEN_SET, DATA_SET)
    counted = "(text) => document.querySelector('.lf-summary span')?.textContent.includes(text)"
    page.wait_for_function(counted, arg=str(CAPTIONED), timeout=300_000)  # all rows are there
    page.wait_for_timeout(3000)
    found |= _idle(page, asked)
    found["set, longest gap"] = page.evaluate(SCROLL_SET)
    found["set, pictures after a scroll"] = _until(page, DRAWN)
    page.get_by_label("Search captions").fill(f"number {PICTURES // 2},")
    one = "() => document.querySelectorAll('dialog.lf-data .lf-cell:not([hidden])').length === 1"
    found["set, a search"] = _until(page, one)
    return found


def _idle(page: Any, asked: list[str]) -> dict[str, Any]:
    asked.clear()
    page.wait_for_timeout(5000)
    return {"requests in 5 s": len(asked)}


def _until(page: Any, condition: str) -> float:
    begun = page.evaluate("() => performance.now()")
    page.wait_for_function(condition, timeout=60_000)
    return float(page.evaluate("() => performance.now()") - begun)


def _again(page: Any) -> float:
    page.evaluate("() => window.app.extensionManager.sidebarTab.toggleSidebarTab('lora-foundry')")
    page.wait_for_timeout(300)
    return float(page.evaluate(OPEN))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("--pictures", action="store_true", help="a data set, and not runs")
    args = parser.parse_args()
    main(args.url, pictures if args.pictures else runs)
