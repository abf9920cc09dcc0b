"""Renews the workflows' pictures, as the page shows them after a run: `python -m tests.web.pictures` (minutes).

A name runs that workflow alone. Run it when a workflow, the demo's recipe or a node's widgets have changed. Of the
first workflow, what Preview Samples draws becomes what the page shows there before a run (`web/pictures`).
"""

from __future__ import annotations

import io
import json
import shutil
import sys
import tempfile
import urllib.request
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import sync_playwright

from ..conftest import find_comfyui
from ..host.server import ROOT, ComfyServer
from .conftest import _OPTIONS, _READY, _SETTINGS, open_workflow, workflow

_VIEW = {"width": 2600, "height": 1500}
"""Large enough that all of a workflow is drawn with its texts."""
_EDGE = 1600
"""Of a picture in pixels, at most."""
_MARGIN = 40
_GAP = 8
_EXPECTED = {"train_and_test": ROOT / "web" / "pictures" / "zorbles.jpg"}
"""Where the result of Preview Samples is kept."""
_NOT_RUN = {"train_a_checkpoint", "train_any_model"}
"""Workflows whose checkpoint is the user's own."""
_GRAPH_BOX = """() => {
  const scale = window.app.canvas.ds.scale, [x, y] = window.app.canvas.ds.offset;
  const box = ([x, y, width, height]) => [x, y, x + width, y + height];
  const boxes = window.app.graph.nodes.map((node) => box(node.boundingRect));
  const of = (k, f) => f(...boxes.map((box) => box[k]));
  const place = (v, o) => (v + o) * scale;
  const rect = window.app.canvas.canvas.getBoundingClientRect();
  return [place(of(0, Math.min), x) + rect.left, place(of(1, Math.min), y) + rect.top,
          place(of(2, Math.max), x) + rect.left, place(of(3, Math.max), y) + rect.top];
}"""


def main(names: list[str]) -> None:
    """Runs workflows in the page and keeps what it shows."""
    comfyui, program = find_comfyui(), shutil.which("chromium") or shutil.which("google-chrome")
    assert comfyui, "no ComfyUI found; COMFYUI_DIR says where it is"
    with tempfile.TemporaryDirectory() as folder, ComfyServer(comfyui, Path(folder)) as server:
        _named_checkpoints(server.base / "models" / "checkpoints")
        settings = json.dumps(_SETTINGS).encode()
        headers = {"Content-Type": "application/json"}
        with urllib.request.urlopen(urllib.request.Request(f"{server.url}/settings", settings, headers), timeout=60):
            pass
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=program, args=list(_OPTIONS))
            page = browser.new_page(viewport=_VIEW)
            page.goto(server.url)
            page.wait_for_function(_READY)
            page.wait_for_timeout(2000)
            for name in names:
                _picture(page, server, name).save(ROOT / "example_workflows" / f"{name}.jpg", quality=85)
                if name in _EXPECTED:
                    _drawn(server).save(_EXPECTED[name], quality=85)
            browser.close()


def _named_checkpoints(folder: Path) -> None:
    """Puts empty files where workflows name checkpoints: the page marks those that are not there."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in _NOT_RUN:
        for node in workflow(name)["nodes"]:
            for value in node.get("widgets_values", []):
                if str(value).endswith(".safetensors"):
                    (folder / Path(value).name).touch()


def _picture(page: Any, server: ComfyServer, name: str) -> Image.Image:
    open_workflow(page, workflow(name))
    if name not in _NOT_RUN:
        page.evaluate("() => window.app.queuePrompt(0)")
        page.wait_for_timeout(2000)
    while server.get("/prompt")["exec_info"]["queue_remaining"]:
        page.wait_for_timeout(1000)
    page.wait_for_timeout(3000)
    left, top, right, bottom = page.evaluate(_GRAPH_BOX)
    seen = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    box = (left - _MARGIN, top - _MARGIN, right + _MARGIN, bottom + _MARGIN)
    picture = seen.crop(
        (max(0, int(box[0])), max(0, int(box[1])), min(seen.width, int(box[2])), min(seen.height, int(box[3])))
    )
    picture.thumbnail((_EDGE, _EDGE))
    return picture


def _drawn(server: ComfyServer) -> Image.Image:
    """The pairs of pictures that the last prompt's Preview Samples has drawn, two in a row, twice as large."""
    (done,) = server.get("/history?max_items=1").values()
    (key,) = (key for key, node in done["prompt"][2].items() if node["class_type"] == "FoundryPreviewSamples")
    pairs = [Image.open(io.BytesIO(server.file(shown))) for shown in done["outputs"][key]["images"]]
    width, height = (2 * edge for edge in pairs[0].size)
    whole = Image.new("RGB", (2 * width + _GAP, -(-len(pairs) // 2) * (height + _GAP) - _GAP), "white")
    for place, pair in enumerate(pairs):
        row, column = divmod(place, 2)
        whole.paste(pair.convert("RGB").resize((width, height)), (column * (width + _GAP), row * (height + _GAP)))
    return whole


if __name__ == "__main__":
    main(sys.argv[1:] or sorted(path.stem for path in (ROOT / "example_workflows").glob("*.json")))
