"""Data sets in the page: found, looked at, captioned by keyboard and mouse, checked, drafted, uploaded."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from ..host.server import ComfyServer
from ..trainer_core.captioning.small_captioners import blip
from ..trainer_core.clips import write_clip
from .conftest import _PATIENCE, _READY, screenshot, until

SCRIPT = "a red <img src=x onerror=alert(1)><b>zorble</b>, studio"
OPEN = """async () => {
  const { show } = await import("/extensions/lora-foundry/js/datasets/index.js");
  document.getElementById("data-test")?.remove();
  const place = document.createElement("div");
  place.id = "data-test";
  place.style.cssText =
    "position:fixed;left:60px;top:60px;width:340px;height:800px;background:var(--comfy-menu-bg);z-index:999";
  document.body.append(place);
  await show(place);
}"""
"""The list, as the sidebar shows it."""
FOCUSED = "() => document.querySelector('.lf-cell.lf-focused:not([hidden])')?.title ?? ''"
PICTURES_SHOWN = """() => [...document.querySelectorAll(".lf-cell:not([hidden]) img")]
  .filter((image) => image.complete && image.naturalWidth).length"""
STATUS = "() => document.querySelector('dialog.lf-data > .lf-status').textContent"


@pytest.fixture(scope="module")
def tab(browser: Any, server: ComfyServer) -> Iterator[Any]:
    """One page for all tests here; an error that a script of it throws fails the last of them."""
    errors: list[str] = []
    tab = browser.new_page(viewport={"width": 1760, "height": 1000})
    tab.set_default_timeout(_PATIENCE)
    tab.on("pageerror", lambda error: errors.append(str(error)))
    tab.on("dialog", lambda dialog: errors.append(f"dialog: {dialog.message}"))
    tab.goto(server.url)
    tab.wait_for_function(_READY)
    tab.wait_for_timeout(1000)
    yield tab
    tab.close()
    assert not errors


@pytest.fixture
def faces(server: ComfyServer) -> Iterator[Path]:
    """A data set of ten pictures, masks and a clip; three of them have no caption."""
    folder = server.base / "input" / "faces"
    (folder / "masks").mkdir(parents=True)
    for number in range(10):
        name = f"face_{number}"
        Image.new("RGB", (96, 64 + 8 * number), (20 * number, 80, 200 - 10 * number)).save(folder / f"{name}.png")
        Image.new("L", (96, 64 + 8 * number), 255).save(folder / "masks" / f"{name}.png")
        if number not in (4, 7):
            text = SCRIPT if number == 0 else f"a [trigger] number {number}, studio, soft light"
            (folder / f"{name}.txt").write_text(text, encoding="utf-8")
    write_clip(folder / "walk.mp4", range(12), 12)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def editor(tab: Any, faces: Path) -> Iterator[Any]:
    """The page with the set's editor open."""
    tab.evaluate(OPEN)
    tab.get_by_role("button", name="faces").click()
    tab.wait_for_function(f"() => ({PICTURES_SHOWN})() === 11")
    yield tab
    tab.evaluate("() => document.querySelector('dialog.lf-data')?.close()")


def caption(folder: Path, number: int) -> str | None:
    file = folder / f"face_{number}.txt"
    return file.read_text(encoding="utf-8") if file.exists() else None


def test_captions_are_edited_in_place_by_keyboard_and_undone(editor: Any, faces: Path) -> None:
    keys = editor.keyboard
    assert editor.evaluate(FOCUSED) == "face_4.png"  # pictures without a caption come first
    assert editor.evaluate("() => document.activeElement.className") == "lf-grid"
    keys.press("ArrowRight")
    assert editor.evaluate(FOCUSED) == "face_7.png"
    keys.press("Enter")
    keys.type("the seventh, with <i>markup</i>")
    screenshot(editor, "data_editing")
    keys.press("Enter")
    until(editor, lambda: caption(faces, 7) == "the seventh, with <i>markup</i>")
    keys.press("Enter")
    keys.type(" which is left")
    keys.press("Escape")  # leaves the caption, not the editor
    assert editor.locator("dialog.lf-data").count() == 1
    keys.press("Control+z")
    until(editor, lambda: caption(faces, 7) is None)  # as it was: without a file
    keys.press("Control+Shift+z")
    until(editor, lambda: caption(faces, 7) == "the seventh, with <i>markup</i>")
    keys.press("End")
    assert editor.evaluate(FOCUSED) == "face_9.png"
    graph = editor.evaluate("() => window.app.graph.nodes.length")
    keys.press("Control+a")
    keys.press("Delete")  # the graph's shortcuts do not hear of it
    assert editor.evaluate("() => window.app.graph.nodes.length") == graph
    keys.press("Escape")  # gives the selection up
    assert editor.locator("dialog.lf-data").count() == 1
    keys.press("Escape")
    editor.wait_for_function("() => !document.querySelector('dialog.lf-data')")


def test_many_captions_are_changed_at_once(editor: Any, faces: Path) -> None:
    before = {number: caption(faces, number) for number in range(10)}
    editor.get_by_label("Search captions").fill("STUDIO")
    editor.get_by_label("Replace by").fill("atelier")
    editor.wait_for_function("() => document.querySelector('.lf-chosen').textContent.includes('8')")
    editor.get_by_role("button", name="Replace all").click()
    until(editor, lambda: caption(faces, 9) == "a [trigger] number 9, atelier, soft light")
    assert caption(faces, 0) == SCRIPT.replace("studio", "atelier")
    editor.wait_for_function(f"() => ({STATUS})() === '8 captions changed'")
    editor.get_by_label("Search captions").fill("number")
    editor.wait_for_function("() => document.querySelector('.lf-chosen').textContent.includes('7')")
    grid = editor.locator(".lf-grid")
    grid.focus()
    editor.keyboard.press("Home")
    editor.keyboard.press("Shift+ArrowRight")
    tags = editor.get_by_label("Tags, separated")
    tags.fill("soft light, crisp")
    editor.get_by_role("button", name="Add", exact=True).click()
    until(editor, lambda: caption(faces, 2) == "a [trigger] number 2, atelier, soft light, crisp")
    editor.get_by_label("Where tags go").select_option("start")
    editor.get_by_role("button", name="Move", exact=True).click()
    until(editor, lambda: caption(faces, 2) == "soft light, crisp, a [trigger] number 2, atelier")
    tags.fill("Crisp")
    editor.get_by_role("button", name="Remove", exact=True).click()
    until(editor, lambda: caption(faces, 2) == "soft light, a [trigger] number 2, atelier")
    assert caption(faces, 3) == "a [trigger] number 3, atelier, soft light"
    grid.focus()
    for _ in range(4):
        editor.keyboard.press("Control+z")
    until(editor, lambda: {number: caption(faces, number) for number in range(10)} == before)


def test_a_caption_that_was_changed_elsewhere_is_not_overwritten(editor: Any, faces: Path) -> None:
    (faces / "face_4.txt").write_text("of another program", encoding="utf-8")
    editor.keyboard.press("Enter")
    editor.keyboard.type("mine")
    editor.keyboard.press("Enter")
    editor.wait_for_function(f"() => ({STATUS})().includes('changed elsewhere')")
    assert caption(faces, 4) == "of another program"
    editor.wait_for_function("() => document.querySelector('.lf-focused .lf-cell-text').textContent.startsWith('of a')")


def test_another_tab_shows_what_is_written_but_where_somebody_types(
    editor: Any, browser: Any, server: ComfyServer, faces: Path
) -> None:
    text = "(name) => document.querySelector(`.lf-cell[title='${name}'] .lf-cell-text`).textContent"
    large = "() => document.querySelector('.lf-caption').value"
    other = browser.new_page(viewport={"width": 1760, "height": 1000})
    other.set_default_timeout(_PATIENCE)
    other.goto(server.url)
    other.wait_for_function(_READY)
    other.evaluate(OPEN)
    other.get_by_role("button", name="faces").click()
    other.wait_for_function(f"() => ({PICTURES_SHOWN})() === 11")
    other.locator(".lf-cell[title='face_1.png']").click()
    editor.locator(".lf-cell[title='face_1.png']").click()
    editor.keyboard.press("Enter")
    editor.keyboard.press("Control+a")
    editor.keyboard.type("of the first tab")
    editor.keyboard.press("Enter")
    other.wait_for_function(f"() => ({text})('face_1.png') === 'of the first tab'")
    assert other.evaluate(large) == "of the first tab"
    other.locator(".lf-caption").focus()  # looked at, not changed: it follows
    editor.keyboard.press("Control+z")
    other.wait_for_function(f"() => ({large})().startsWith('a [trigger] number 1')")
    other.keyboard.press("End")
    other.keyboard.type(", mine")
    editor.keyboard.press("Control+Shift+z")
    until(editor, lambda: caption(faces, 1) == "of the first tab")
    other.wait_for_timeout(500)
    assert other.evaluate(large).endswith(", mine")
    screenshot(other, "data_two_tabs")
    other.keyboard.press("Control+Enter")  # over another text than was seen
    other.wait_for_function(f"() => ({STATUS})().includes('changed elsewhere')")
    other.wait_for_function(f"() => ({large})() === 'of the first tab'")
    assert caption(faces, 1) == "of the first tab"
    editor.keyboard.press("Control+a")
    editor.get_by_label("Tags, separated").fill("many at once")
    editor.get_by_role("button", name="Add", exact=True).click()
    other.wait_for_function(f"() => ({text})('face_9.png').endsWith('many at once')")
    other.close()


def test_the_focused_picture_with_its_mask_clip_and_what_the_encoder_reads(editor: Any) -> None:
    encoder = "() => document.querySelector('.lf-encoder').textContent"
    editor.get_by_label("Trigger", exact=True).fill("zorble")
    editor.keyboard.press("Tab")
    editor.locator(".lf-cell[title='face_1.png']").click()
    editor.wait_for_function(f"() => ({encoder})() === 'a zorble number 1, studio, soft light'")
    editor.get_by_role("button", name="Mask").click()
    editor.wait_for_function("() => document.querySelector('.lf-media img').src.includes('what=mask')")
    screenshot(editor, "data_editor")
    editor.locator(".lf-cell[title='face_0.png']").click()
    editor.wait_for_function(f"(text) => ({encoder})() === text", arg=SCRIPT)
    assert editor.locator(".lf-grid img[src='x'], .lf-encoder b, .lf-cell b").count() == 0
    editor.locator(".lf-cell[title='walk.mp4']").click()
    editor.wait_for_function("() => document.querySelector('.lf-media video')?.videoWidth === 64")


def check_now(editor: Any) -> None:
    with editor.expect_response(lambda answer: answer.url.endswith("/check")) as answered:
        editor.get_by_role("button", name="Check now").click()
    answered.value.finished()
    editor.wait_for_function("() => !document.querySelector('.lf-checks .lf-row button').disabled")


def test_findings_jump_to_their_pictures(editor: Any) -> None:
    editor.get_by_role("tab", name="Checks").click()
    check_now(editor)  # the findings that are there are those of an earlier test's captions
    finding = editor.locator(".lf-finding.lf-error").filter(has_text="no caption")
    finding.locator(".lf-jump").click()
    assert editor.evaluate(FOCUSED) == "face_4.png"
    check_now(editor)
    finding.locator(".lf-jump").click()  # the same was found again: it goes on where it was
    assert editor.evaluate(FOCUSED) == "face_7.png"
    screenshot(editor, "data_checks")
    finding.locator(".lf-link").click()
    editor.wait_for_function("() => document.querySelectorAll('.lf-cell:not([hidden])').length <= 3")
    editor.get_by_role("button", name="Show all").click()
    editor.wait_for_function("() => document.querySelectorAll('.lf-cell:not([hidden])').length === 11")


@pytest.fixture
def drafts(tab: Any, server: ComfyServer, faces: Path) -> Iterator[Any]:
    """A model's drafts of face_4, face_7 and the clip, which have no captions; the editor is closed afterwards."""
    blip(server.base / "models" / "LLM" / "small blip", says="circle")
    tab.evaluate(OPEN)
    tab.get_by_role("button", name="faces").click()
    tab.get_by_role("tab", name="Drafts").click()
    tab.wait_for_function("() => document.querySelector('.lf-captioning select').value")
    tab.get_by_role("button", name="Write drafts").click()
    drafts = tab.locator(".lf-draft")
    drafts.nth(2).wait_for()
    yield drafts
    tab.evaluate("() => document.querySelector('dialog.lf-data').close()")


def of(drafts: Any, file: str) -> Any:
    return drafts.filter(has_text=file)


def reviews(tab: Any, what: Callable[[Any], Any]) -> None:
    """Does something else with the requests by which drafts are accepted and rejected."""
    tab.route("**/drafts", lambda route: what(route) if route.request.method == "POST" else route.continue_())


def test_a_model_writes_drafts_which_are_reviewed(tab: Any, faces: Path, drafts: Any) -> None:
    assert caption(faces, 4) is None
    screenshot(tab, "data_drafts")
    text = drafts.first.get_by_label("Draft")
    assert "circle" in text.input_value()
    text.fill("an edited draft")
    held: list[Any] = []
    reviews(tab, lambda route: route.continue_() if held else held.append(route))
    drafts.first.get_by_role("button", name="Accept").click()
    until(tab, lambda: held)
    drafts.first.get_by_role("button", name="Reject").click()  # it is the next one's, however slow the server
    held[0].continue_()
    until(tab, lambda: caption(faces, 4) == "an edited draft")
    tab.wait_for_function("() => document.querySelectorAll('.lf-draft').length === 1")
    assert caption(faces, 7) is None
    tab.get_by_role("button", name="Accept all").click()
    until(tab, lambda: "circle" in (faces / "walk.txt").read_text() if (faces / "walk.txt").exists() else False)
    tab.wait_for_function("() => !document.querySelector('.lf-draft')")
    tab.unroute("**/drafts")


def test_a_review_that_fails_comes_back_and_news_leave_a_typist_alone(tab: Any, faces: Path, drafts: Any) -> None:
    of(drafts, "face_4").get_by_label("Draft").fill("an edited draft")
    reviews(tab, lambda route: route.fulfill(status=500))
    of(drafts, "face_4").get_by_role("button", name="Accept").click()
    until(tab, lambda: drafts.count() == 3 and tab.evaluate(STATUS))
    assert of(drafts, "face_4").get_by_label("Draft").input_value() == "an edited draft"
    tab.unroute("**/drafts")
    typed = of(drafts, "face_7").get_by_label("Draft")
    typed.fill("")
    typed.press_sequentially("a hat")
    typed.press("ArrowLeft")
    tab.evaluate(  # what a second tab does
        """async () => {
          const { get, post } = await import("/extensions/lora-foundry/js/server.js");
          const set = (await get(["datasets"])).datasets.find(({ name }) => name === "faces");
          const { drafts } = await get(["datasets", set.id, "drafts"]);
          await post(["datasets", set.id, "drafts"], { accept: [], reject: [drafts[0].item] });
        }"""
    )
    until(tab, lambda: drafts.count() == 2)
    tab.keyboard.type("ha")
    assert typed.input_value() == "a hahat"
    typed.press("Control+Enter")
    until(tab, lambda: caption(faces, 7) == "a hahat")
    assert tab.evaluate("() => document.activeElement.closest('.lf-draft').textContent").startswith("walk.mp4")


def test_folders_and_files_are_dropped(tab: Any, server: ComfyServer, tmp_path: Path) -> None:
    Image.new("RGB", (64, 64), "teal").save(tmp_path / "a.png")
    picture = json.dumps([*(tmp_path / "a.png").read_bytes()])
    drop = f"""([selector, folder]) => {{
      const transfer = new DataTransfer();
      transfer.items.add(new File([new Uint8Array({picture})], "a.png", {{ type: "image/png" }}));
      transfer.items.add(new File(["a teal square"], "a.txt", {{ type: "text/plain" }}));
      const target = document.querySelector(selector);
      for (const kind of ["dragenter", "dragover", "drop"])
        target.dispatchEvent(new DragEvent(kind, {{ dataTransfer: transfer, bubbles: true, cancelable: true }}));
    }}"""
    tab.evaluate(OPEN)
    graph = tab.evaluate("() => window.app.graph.nodes.length")
    tab.get_by_label("Name of a new data set").fill("dropped")
    tab.evaluate(drop, ["#data-test .lf-data-list", None])
    folder = server.base / "input" / "dropped"
    until(tab, lambda: (folder / "a.txt").exists() and (folder / "a.txt").read_text() == "a teal square")
    tab.wait_for_function(f"() => ({PICTURES_SHOWN})() === 1")
    assert (folder / "a.png").read_bytes() == (tmp_path / "a.png").read_bytes()
    assert tab.evaluate("() => window.app.graph.nodes.length") == graph
    screenshot(tab, "data_dropped")
    tab.evaluate("() => document.querySelector('dialog.lf-data').close()")
    tab.wait_for_function(
        "() => [...document.querySelectorAll('.lf-set strong')].some((n) => n.textContent === 'dropped')"
    )
    screenshot(tab, "data_list")
