"""What nodes show in both of the page's renderers: widgets, texts, presets, folders, and how our templates open."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from ..host.server import DEMO_IMAGES, ComfyServer
from .conftest import opened_page, screenshot, until, workflow

WORKFLOWS = ("train_and_test", "train_and_sample_with_stock_nodes", "train_a_checkpoint", "train_any_model")
MOST_WIDGETS = 10
NODE = "(type) => window.app.graph.nodes.find((n) => n.type === type)"
VISIBLE = f"""(type) => {{
  const node = ({NODE})(type);
  if (!window.LiteGraph.vueNodesMode) return node.widgets.filter((w) => node.isWidgetVisible(w)).map((w) => w.name);
  const rows = document.querySelectorAll(`[data-node-id="${{node.id}}"] [data-testid="node-widget"]`).length;
  const seed = node.widgets.filter((w) => w.name === "control_after_generate").length;  // drawn with its seed there
  const shown = node.widgets.filter((w) => !w.options.hidden && (!w.options.advanced || node.showAdvanced));
  if (shown.length - seed !== rows) throw new Error(`${{type}}: ${{rows}} rows for ${{shown.map((w) => w.name)}}`);
  return shown.map((w) => w.name);
}}"""
"""Names of the widgets that the one node of a type shows."""
SET = f"""([type, name, value]) => {{
  const node = ({NODE})(type);
  const widget = node.widgets.find((w) => w.name === name);
  widget.value = value;
  widget.callback?.(value, window.app.canvas, node);
}}"""
"""What an edit in the page does."""
VALUE = f"([type, name]) => ({NODE})(type).widgets.find((w) => w.name === name).value"
SIZE = f"(type) => [...({NODE})(type).size].map(Math.round)"
BOXES = """() => window.app.graph.nodes.map((node) => {
  const drawn = document.querySelector(`[data-node-id="${node.id}"]`)?.getBoundingClientRect();
  if (drawn) return [node.type, drawn.left, drawn.top, drawn.right, drawn.bottom];
  const { scale, offset } = window.app.canvas.ds, [x, y, width, height] = node.boundingRect;
  const left = (x + offset[0]) * scale, top = (y + offset[1]) * scale;
  return [node.type, left, top, left + width * scale, top + height * scale];
})"""
"""Each node's type and where it is on the screen."""


@pytest.fixture(scope="module")
def one_page(browser: Any, server: ComfyServer) -> Iterator[Any]:
    with opened_page(browser, server, width=1920, height=1080) as tab:
        yield tab


@pytest.fixture(scope="module", params=["canvas", "vue"])
def renderer(request: pytest.FixtureRequest, one_page: Any) -> Iterator[str]:
    choose = "(vue) => window.app.extensionManager.setting.set('Comfy.VueNodes.Enabled', vue)"
    one_page.evaluate(choose, request.param == "vue")
    yield request.param
    one_page.evaluate(choose, False)


@pytest.fixture
def page(one_page: Any, renderer: str) -> Any:
    return one_page


def show(page: Any, name: str, change: Any = None) -> dict[str, Any]:
    """Opens a workflow as it is saved; `change` changes it before."""
    graph = workflow(name)
    if change:
        change(graph)
    page.evaluate("async (graph) => { await window.app.loadGraphData(graph) }", graph)
    page.wait_for_function("(count) => window.app.graph.nodes.length === count", arg=len(graph["nodes"]))
    page.wait_for_timeout(500)
    return graph


def add_node(page: Any, kind: str) -> None:
    """An empty graph with one new node."""
    page.evaluate(
        """(type) => {
          window.app.graph.clear();
          window.app.nodeOutputs = {};
          const node = window.LiteGraph.createNode(type);
          node.pos = [300, 200];
          window.app.graph.add(node);
          window.app.canvas.ds.scale = 1;
          window.app.canvas.ds.offset = [0, 0];
        }""",
        kind,
    )
    page.wait_for_timeout(400)


# widgets


@pytest.mark.parametrize("name", WORKFLOWS)
def test_no_node_of_a_template_shows_more_than_ten_widgets(page: Any, name: str) -> None:
    """129 at once, and 34 on Training Options, before advanced ones waited and what is off hid others."""
    graph = show(page, name)
    ours = sorted({n["type"] for n in graph["nodes"] if n["type"].startswith("Foundry") and not n["flags"]})
    shown = {kind: page.evaluate(VISIBLE, kind) for kind in ours}
    added = {"foundry_folder", "foundry_fill_in", "foundry_expected", "foundry_panel", "foundry_text"}
    assert {kind: names for kind, names in shown.items() if len(set(names) - added) > MOST_WIDGETS} == {}
    assert sum(map(len, shown.values())) <= 66
    saved = page.evaluate("() => window.app.graph.serialize()")["nodes"]
    values = [{node["id"]: node.get("widgets_values") or [] for node in nodes} for nodes in (saved, graph["nodes"])]
    assert values[0] == values[1]


def test_show_advanced_shows_the_rest_and_the_height_follows(page: Any, renderer: str) -> None:
    add_node(page, "FoundryTrainingOptions")
    few, low = page.evaluate(VISIBLE, "FoundryTrainingOptions"), page.evaluate(SIZE, "FoundryTrainingOptions")
    page.evaluate("() => { window.app.canvas.ds.scale = 0.5; window.app.canvas.setDirty(true, true); }")
    for step in ("show", "hide"):
        if renderer == "canvas":
            page.evaluate(f"() => ({NODE})('FoundryTrainingOptions').toggleAdvanced()")
        else:
            page.get_by_text(f"{step.title()} advanced inputs").click()
        page.wait_for_timeout(400)
        if step == "show":
            screenshot(page, f"advanced {renderer}")
            many, high = page.evaluate(VISIBLE, "FoundryTrainingOptions"), page.evaluate(SIZE, "FoundryTrainingOptions")
    assert len(few) <= MOST_WIDGETS
    assert {"beta1", "optimizer_options"} <= set(many) - set(few)
    assert high[1] > low[1] + 300
    assert page.evaluate(SIZE, "FoundryTrainingOptions") == low


def test_what_is_off_hides_what_depends_on_it_and_its_value_is_sent(page: Any, renderer: str) -> None:
    show(page, "train_and_test")
    kind, governed = "FoundryRegularization", {"output_preservation_class", "output_preservation_weight"}
    assert governed <= set(page.evaluate(VISIBLE, kind))
    before = page.evaluate(SIZE, kind)
    page.evaluate(SET, [kind, "output_preservation", False])
    until(page, lambda: not governed & set(page.evaluate(VISIBLE, kind)))
    assert renderer == "vue" or page.evaluate(SIZE, kind) == before  # the room that the template gave
    sent = page.evaluate("async () => (await window.app.graphToPrompt()).output")
    (inputs,) = (node["inputs"] for node in sent.values() if node["class_type"] == kind)
    assert inputs["output_preservation_class"].startswith("circle")
    page.evaluate(SET, [kind, "output_preservation", True])
    until(page, lambda: governed <= set(page.evaluate(VISIBLE, kind)))


def test_room_that_the_user_gave_stays_and_what_a_node_took_itself_goes(page: Any, renderer: str) -> None:
    if renderer == "vue":
        pytest.skip("with Nodes 2.0 the browser's own layout does this")
    add_node(page, "FoundryRegularization")
    low = page.evaluate(SIZE, "FoundryRegularization")
    heights = []
    for given in (None, 500):
        if given:
            page.evaluate(f"(h) => ({NODE})('FoundryRegularization').setSize([300, h])", given)
        for on in (True, False):
            page.evaluate(SET, ["FoundryRegularization", "output_preservation", on])
            heights.append(page.evaluate(SIZE, "FoundryRegularization")[1])
    assert heights[:2] == [low[1] + 2 * 24, low[1]]
    assert heights[2:] == [500, 500]


def test_linked_model_hides_where_else_the_weights_would_come_from(page: Any) -> None:
    show(page, "train_any_model")
    assert "source" not in page.evaluate(VISIBLE, "FoundryQuantizeBase")
    page.evaluate(f"() => ({NODE})('FoundryQuantizeBase').disconnectInput(0)")
    until(page, lambda: "source" in page.evaluate(VISIBLE, "FoundryQuantizeBase"))


def test_advanced_widget_that_is_linked_is_seen(page: Any) -> None:
    show(page, "train_and_test")
    page.evaluate(f"""() => {{
      const caption = ({NODE})("FoundryCaptionWithTrigger"), load = ({NODE})("FoundryLoadDataset");
      caption.connect(1, load, load.inputs.findIndex((input) => input.name === "mask_folder"));
    }}""")
    seen = f"""() => {{
      const node = ({NODE})("FoundryLoadDataset");
      return node.isWidgetVisible(node.widgets.find((w) => w.name === "mask_folder"));
    }}"""
    until(page, lambda: page.evaluate(seen))
    assert page.evaluate(seen)


# texts


@pytest.mark.parametrize(
    ("kind", "lines"), [("FoundryPreset", 10), ("FoundryCaptionWithTrigger", 7), ("FoundryLoadDataset", 6)]
)
def test_texts_are_whole_and_keep_their_lines(page: Any, renderer: str, kind: str, lines: int) -> None:
    """ComfyUI's own widget showed 2 of 10 lines, and with Nodes 2.0 ran them together."""
    add_node(page, kind)
    text = "\n".join(f"• line {k}: <b>_as_ it is</b> and *long* enough for a node" for k in range(lines))
    page.evaluate(
        f"""([type, text]) => {{
          const api = window.comfyAPI.api.api, node = ({NODE})(type);
          api.dispatchCustomEvent("progress_text", {{ nodeId: String(node.id), text: "1 warning" }});
          node.onExecuted({{ text: [text] }});
        }}""",
        [kind, text],
    )
    page.wait_for_timeout(500)
    screenshot(page, f"text {kind} {renderer}")
    shown = page.evaluate("""() => [...document.querySelectorAll(".foundry-text")].map((box) => ({
      text: box.innerText, hidden: box.scrollHeight - box.clientHeight,
      height: box.firstChild.getBoundingClientRect().height,
    }))""")
    assert [one["text"] for one in shown] == [text]
    assert min(-shown[0]["hidden"], shown[0]["height"] - lines * 15) >= 0
    assert page.get_by_text("1 warning").locator("visible=true").count() == 0
    overlap = f"""(type) => {{
      const node = ({NODE})(type), text = node.widgets.find((w) => w.name === "foundry_text");
      return window.LiteGraph.vueNodesMode ? 0 : text.y + text.computedHeight - node.size[1];
    }}"""
    assert page.evaluate(overlap, kind) <= 0


def test_result_shows_each_picture_once(page: Any, server: ComfyServer) -> None:
    Image.new("RGB", (64, 64), "teal").save(server.base / "input" / "once.png")
    add_node(page, "FoundryPreviewSamples")
    page.evaluate(f"""() => {{
      const node = String(({NODE})("FoundryPreviewSamples").id);
      const output = {{ images: [{{ filename: "once.png", subfolder: "", type: "input" }}] }};
      window.comfyAPI.api.api.dispatchCustomEvent("executed", {{ node, display_node: node, prompt_id: "x", output }});
    }}""")
    drawn = f"""() => {{
      const node = ({NODE})("FoundryPreviewSamples");
      const inside = [...document.querySelectorAll("img")].filter((image) => image.src.includes("once.png")).length;
      return window.LiteGraph.vueNodesMode ? inside : inside + (node.imgs?.length ?? 0);
    }}"""
    page.wait_for_function(f"() => window.app.canvas.setDirty(true, true) || ({drawn})() > 0")
    page.wait_for_timeout(500)
    assert page.evaluate(drawn) == 1


# presets


def test_preset_fills_in_what_is_ticked_and_undo_takes_it_back(page: Any, renderer: str) -> None:
    kinds = ("FoundryTrainLoRA", "FoundryConfigureLoRA", "FoundryLoadDataset", "FoundryTrainingOptions")

    def values() -> list[Any]:
        return [
            page.evaluate(VALUE, pair)
            for pair in zip(kinds, ("gradient_accumulation", "rank", "flip_x", "timestep_type"), strict=True)
        ]

    show(page, "train_and_test", lambda graph: graph["extra"].clear())
    before = values()
    _press_fill_in(page, renderer)
    dialog = page.get_by_role("dialog")
    dialog.get_by_label("What is learned").select_option("style")
    rank = dialog.locator('tr[data-widget="rank"]')
    rank.wait_for()
    page.wait_for_timeout(300)
    screenshot(page, f"preset {renderer}")
    ticked = {
        row.get_attribute("data-widget"): row.locator("input").is_checked()
        for row in dialog.locator("tbody tr").all()
        if row.locator("input").count()
    }
    assert not ticked["rank"]  # 32, and not the widget's own 16: somebody wanted it
    assert not ticked["steps"]
    assert "32" in rank.inner_text()
    assert len(rank.locator("td").last.inner_text()) > 10  # why
    assert ticked["caption_dropout"]
    page.keyboard.press("Escape")
    dialog.wait_for(state="detached")
    assert values() == before
    _press_fill_in(page, renderer)
    dialog.get_by_label("What is learned").select_option("style")
    rank.locator("input").check()
    dialog.get_by_role("button", name="Fill in what is ticked").click()
    dialog.wait_for(state="detached")
    assert page.evaluate(VALUE, ["FoundryConfigureLoRA", "rank"]) != 32
    assert page.evaluate(VALUE, ["FoundryTrainLoRA", "steps"]) == 300
    assert not page.evaluate("() => window.app.graph.nodes.some((n) => n.widgets?.some((w) => w.disabled))")
    page.mouse.click(960, 1040)
    page.keyboard.press("Control+z")
    page.wait_for_function(f"([pair, value]) => ({VALUE})(pair) === value", arg=[["FoundryConfigureLoRA", "rank"], 32])
    assert values() == before


def _press_fill_in(page: Any, renderer: str) -> None:
    if renderer == "vue":
        page.get_by_role("button", name="Fill in from a preset").click()
        return
    place = f"""() => {{
      const node = ({NODE})("FoundryTrainLoRA"), {{ scale, offset }} = window.app.canvas.ds;
      const button = node.widgets.find((w) => w.name === "foundry_fill_in");
      return [(node.pos[0] + 100 + offset[0]) * scale, (node.pos[1] + button.y + 10 + offset[1]) * scale];
    }}"""
    page.mouse.click(*page.evaluate(place))


# folders


def test_folder_is_picked_and_all_its_pictures_are_seen(page: Any, server: ComfyServer, renderer: str) -> None:
    folder = server.base / "input" / "pets"
    folder.mkdir(exist_ok=True)
    for number in range(30):
        Image.new("RGB", (64, 48), (8 * number, 99, 120)).save(folder / f"{number:02}.png")
        (folder / f"{number:02}.txt").write_text(f"<i>pet</i> {number}", encoding="utf-8")
    show(page, "train_and_test")
    cells = page.locator(".foundry-folder .lf-cell:visible")
    page.wait_for_function("() => document.querySelectorAll('.foundry-folder .lf-cell img[src]').length > 3")
    menu = page.locator(".foundry-folder select")
    assert f"demo ({DEMO_IMAGES})" in menu.inner_text()
    menu.focus()
    page.wait_for_function(
        "() => [...document.querySelectorAll('.foundry-folder option')].some((o) => o.value === 'pets')"
    )
    menu.select_option("pets")
    page.wait_for_function("() => document.querySelector('.foundry-folder .lf-cell')?.innerText.includes('pet')")
    assert page.evaluate(VALUE, ["FoundryLoadDataset", "folder"]) == "pets"
    page.wait_for_timeout(500)
    screenshot(page, f"folder {renderer}")
    assert "<i>pet</i> 0" in cells.first.inner_text()
    page.locator(".foundry-folder .lf-grid").evaluate("(grid) => grid.scrollTo(0, grid.scrollHeight)")
    page.wait_for_function(
        "() => [...document.querySelectorAll('.foundry-folder .lf-cell')].some((c) => c.innerText.includes('i> 29'))"
    )
    page.evaluate(SET, ["FoundryLoadDataset", "folder", "demo"])  # typed
    page.wait_for_function("() => document.querySelector('.foundry-folder select').value === 'demo'")


def test_dropped_folder_becomes_a_data_set_and_a_refusal_is_told(
    page: Any, server: ComfyServer, renderer: str, tmp_path: Path
) -> None:
    name = f"dropped {renderer}"
    (tmp_path / name).mkdir()
    for number in range(3):
        Image.new("RGB", (32, 32), "navy").save(tmp_path / name / f"{number}.png")
    (tmp_path / name / "0.txt").write_text("a navy square", encoding="utf-8")
    add_node(page, "FoundryLoadDataset")
    page.locator(".foundry-folder input[webkitdirectory]").set_input_files(tmp_path / name)
    page.wait_for_function(
        "() => document.querySelector('.foundry-folder .lf-status').innerText.includes('came: 3; captions: 1')"
    )
    assert page.evaluate(VALUE, ["FoundryLoadDataset", "folder"]) == name
    assert (server.base / "input" / name / "0.txt").read_text(encoding="utf-8") == "a navy square"
    page.route("**/upload/image", lambda route: route.fulfill(status=413))
    page.evaluate("""async () => {
      const blob = await new Promise((made) => document.createElement("canvas").toBlob(made));
      const dataTransfer = new DataTransfer();
      dataTransfer.items.add(new File([blob], "more.png", { type: "image/png" }));
      const drop = new DragEvent("drop", { dataTransfer, bubbles: true, cancelable: true });
      document.querySelector(".foundry-folder").dispatchEvent(drop);
    }""")
    page.wait_for_function(
        "() => document.querySelector('.foundry-folder .lf-status.lf-wrong')?.innerText.includes('more.png')"
    )
    page.unroute("**/upload/image")
    screenshot(page, f"dropped {renderer}")
    assert page.evaluate("() => window.app.graph.nodes.length") == 1  # ComfyUI did not open the file


# templates


@pytest.mark.parametrize("name", WORKFLOWS)
def test_template_opens_readable_and_nothing_overlaps(page: Any, renderer: str, name: str) -> None:
    show(page, name)
    page.wait_for_timeout(600)
    screenshot(page, f"{name} {renderer}")
    assert page.evaluate("() => window.app.canvas.ds.scale") == 1
    boxes = page.evaluate(BOXES)
    first = min(boxes, key=lambda box: box[1] + box[2])
    assert first[0] == "MarkdownNote"  # reading starts there
    assert min(first[1] - 60, first[2] - 100) > 0
    overlapping = [
        (one[0], other[0])
        for place, one in enumerate(boxes)
        for other in boxes[:place]
        if min(one[3], other[3]) - max(one[1], other[1]) > 1 and min(one[4], other[4]) - max(one[2], other[2]) > 1
    ]
    assert overlapping == []
    trainer = next(box for box in boxes if box[0] == "FoundryTrainLoRA")
    assert max(trainer[3] - 1920, trainer[4] - 1080) < 0


def test_three_clicks_from_the_template_browser_to_a_run(page: Any, server: ComfyServer, renderer: str) -> None:
    page.evaluate("() => window.app.graph.clear()")
    page.route("**/templates/*.webp", lambda route: route.abort())  # dozens of animated pictures, drawn without a GPU
    page.get_by_role("button", name="Templates").first.click()
    page.get_by_role("dialog").get_by_text("lora-foundry").click()
    page.get_by_test_id("template-workflow-train_and_test").click()
    page.wait_for_function("() => window.app.graph.nodes.some((n) => n.type === 'FoundryTrainLoRA')")
    page.unroute("**/templates/*.webp")
    page.wait_for_timeout(1500)
    screenshot(page, f"template {renderer}")
    assert page.evaluate("() => window.app.canvas.ds.scale") == 1
    page.get_by_role("button", name="Run").first.click()
    page.wait_for_function("async () => (await (await fetch('/prompt')).json()).exec_info.queue_remaining > 0")
    page.evaluate("() => window.comfyAPI.api.api.interrupt()")
    while server.get("/prompt")["exec_info"]["queue_remaining"]:
        page.wait_for_timeout(200)
