"""The routes of data sets on a real ComfyUI: hostile requests, what a page asks, and the nodes that caption."""

from __future__ import annotations

import io
import json
import shutil
import sys
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from ..trainer_core.captioning.small_captioners import blip
from ..trainer_core.clips import write_clip
from .conftest import node
from .hostile import ORIGINS, RAW_IDS, TYPES, Hostile, Wire
from .server import ComfyServer

ROUTES = "/lora_foundry/"
SECRET = "a secret outside of all roots"
TEXTS = {"captions": ["a"], "trigger": "zorble", "placement": "start"}
POSTS: dict[str, Any] = {
    "datasets/{}/captions": {"edits": []},
    "datasets/{}/texts": TEXTS,
    "datasets/{}/check": {},
    "datasets/{}/drafts": {"accept": [], "reject": []},
    "datasets/{}/captioning": {"model": "x", "items": []},
}
BODIES = (
    *('{"edits": {}}', '{"edits": [1]}', '{"edits": [{"item": "../../x", "before": "", "caption": "x"}]}'),
    *('{"edits": [{"item": "ITEM", "before": "", "caption": "x", "path": "/etc/passwd"}]}', '{"edits": null}'),
    *('{"edits": [{"item": "ITEM", "before": "a cat", "caption": "\\u0000"}]}', '{"name": "../x"}', '{"name": "CON"}'),
    *('{"edits": [{"item": "ITEM", "before": "a cat", "caption": "\\ud800"}]}', "[]", "null", "{", '{"a":' * 900),
    *('{"edits": [{"item": "ITEM", "before": "not this", "caption": "x"}]}', '{"name": "a/b"}', '{"name": "pics"}'),
    *('{"captions": ["a"], "trigger": "z", "placement": "__class__"}', '{"captions": "a", "trigger": 1}'),
    *('{"captions": ["a"], "trigger": "tok\\u0000en", "placement": "start"}', '{"name": ".hidden"}', '{"name": null}'),
    *('{"accept": [], "reject": ["../x"]}', '{"accept": [{}], "reject": []}', '{"accept": 1, "reject": []}'),
    *('{"model": "../../x", "items": ["ITEM"]}', '{"model": "x", "items": ["../.."]}', '{"model": 1, "items": []}'),
)


@pytest.fixture
def pics(server: ComfyServer, tmp_path: Path) -> Iterator[Path]:
    """Three pictures and a clip below ComfyUI's input folder, among links that lead outside."""
    folder = server.base / "input" / "pics"
    folder.mkdir(parents=True)
    for name in ("a", "b", "c"):
        Image.new("RGB", (80, 64), "green").save(folder / f"{name}.png")
    (folder / "a.txt").write_text("a cat", encoding="utf-8")
    write_clip(folder / "walk.mp4", range(6), 12)
    outside = tmp_path / "outside"
    outside.mkdir()
    Image.new("RGB", (80, 64), "red").save(outside / "secret.png")
    (outside / "secret.txt").write_text(SECRET, encoding="utf-8")
    made = [folder]
    if sys.platform != "win32":
        (folder / "linked.png").symlink_to(outside / "secret.png")
        (folder / "b.txt").symlink_to(outside / "secret.txt")
        (folder / "more").symlink_to(outside, target_is_directory=True)
        (folder.parent / "linked_set").symlink_to(outside, target_is_directory=True)
        made.append(folder.parent / "linked_set")
    yield folder
    for path in made:
        path.unlink() if path.is_symlink() else shutil.rmtree(path)


def data_set(server: ComfyServer, name: str = "pics") -> str:
    return next(one["id"] for one in server.get(ROUTES + "datasets")["datasets"] if one["name"] == name)


def items(server: ComfyServer, data: str) -> dict[str, dict[str, Any]]:
    return {one["file"]: one for one in server.get(f"{ROUTES}datasets/{data}/items?order=missing")["items"]}


def tree(*folders: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for one in folders for path in sorted(one.rglob("*")) if path.is_file()}


def requests(data: str, item: str) -> Iterator[Hostile]:
    json_type = {"Content-Type": "application/json"}
    for raw in RAW_IDS:
        for part in ("datasets/{}", "datasets/{}/items", "datasets/{}/drafts", "datasets/{}/cover"):
            yield Hostile("GET", part.format(raw))
        for part in ("picture", "clip"):
            yield Hostile("GET", f"datasets/{raw}/items/{item}/{part}")
            yield Hostile("GET", f"datasets/{data}/items/{raw}/{part}")
        yield Hostile("GET", f"datasets/{data}/items/{item}/picture?what={raw}")
        yield Hostile("GET", f"datasets/{data}/items/{item}/picture?size={raw}")
        yield Hostile("GET", f"datasets/{data}/items?after={raw}")
        for part, body in POSTS.items():
            yield Hostile("POST", part.format(raw), json.dumps(body).encode(), json_type)
    for part in ("datasets", *(one.format(data) for one in POSTS)):
        for text in BODIES:
            yield Hostile("POST", part, text.replace("ITEM", item).encode(), json_type)
        for kind in TYPES:
            yield Hostile("POST", part, b"{}", {"Content-Type": kind})
        yield Hostile("POST", part, b"{}", {**json_type, "Content-Length": "99999999999"})
    for headers in ORIGINS:
        for part in ("datasets", f"datasets/{data}", f"datasets/{data}/items", f"datasets/{data}/items/{item}/picture"):
            yield Hostile("GET", part, None, headers)
        for part, body in POSTS.items():
            yield Hostile("POST", part.format(data), json.dumps(body).encode(), {**json_type, **headers})


def test_hostile_requests_get_nothing_and_change_nothing(server: ComfyServer, pics: Path, tmp_path: Path) -> None:
    data = data_set(server)
    item = items(server, data)["a.png"]["item"]
    folders, wire, count = (pics.parent, tmp_path / "outside"), Wire(server.port), 0
    before, known = tree(*folders), len(server.log())
    for one in requests(data, item):
        code, body, ours = wire.send(one)
        assert 400 <= code < 500, (one, code, body[:300])
        assert SECRET.encode() not in body, one
        if ours:
            assert json.loads(body)["error"], one
            count += 1
    assert count >= 1000
    assert tree(*folders) == before
    assert "Traceback" not in server.log()[known:]


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")
def test_links_show_and_write_nothing_of_what_lies_outside(server: ComfyServer, pics: Path, tmp_path: Path) -> None:
    sets = server.get(ROUTES + "datasets")["datasets"]
    assert "linked_set" not in {one["name"] for one in sets}
    data = data_set(server)
    found = items(server, data)
    assert found.keys() == {"a.png", "b.png", "c.png", "linked.png", "walk.mp4"}
    assert SECRET not in json.dumps(found)
    assert not found["b.png"]["editable"]
    place = f"{ROUTES}datasets/{data}"
    assert code(server, f"{place}/items/{found['linked.png']['item']}/picture") == 404
    edit = {"item": found["b.png"]["item"], "before": SECRET, "caption": "x"}
    assert server.posted(f"{place}/captions", json.dumps({"edits": [edit]}).encode())[0] == 400
    assert (tmp_path / "outside" / "secret.txt").read_text() == SECRET


def test_what_a_page_asks_of_a_set(server: ComfyServer, pics: Path) -> None:
    place = f"{ROUTES}datasets/{data_set(server)}"
    summary = server.get(place)
    assert (summary["name"], summary["folder"], summary["clips"]) == ("pics", "pics", 1)
    found = items(server, data_set(server))
    a, walk = found["a.png"], found["walk.mp4"]
    assert (a["caption"], a["width"], a["height"], a["own"]) == ("a cat", 80, 64, True)
    assert [*found].index("a.png") == len(found) - 1  # those without a caption come first
    assert (walk["clip"]["frames"], walk["clip"]["plays"]) == (6, True)
    picture = Image.open(io.BytesIO(fetched(server, f"{place}/items/{a['item']}/picture?size=64")[0]))
    assert (picture.format, max(picture.size) <= 96) == ("WEBP", True)
    clip, kind = fetched(server, f"{place}/items/{walk['item']}/clip")
    assert (clip, kind) == ((pics / "walk.mp4").read_bytes(), "video/mp4")
    moving = Image.open(io.BytesIO(fetched(server, f"{place}/items/{walk['item']}/picture?moving=1")[0]))
    assert moving.n_frames == 6
    edit = {"item": a["item"], "before": "a cat", "caption": "a <script>cat</script>"}
    assert server.post(f"{place}/captions", {"edits": [edit]}) == {"written": 1}
    assert (pics / "a.txt").read_text() == "a <script>cat</script>"
    status, told = server.posted(f"{place}/captions", json.dumps({"edits": [edit]}).encode())
    assert (status, told["files"]) == (409, ["a.png"])
    assert server.get(f"{place}/items/{a['item']}")["caption"] == "a <script>cat</script>"
    texts = {"captions": ["a cat", "a [trigger]"], "trigger": "zorble", "placement": "end"}
    assert server.post(f"{place}/texts", texts)["texts"] == ["a cat zorble", "a zorble"]


def test_pages_of_a_listing_stay_in_order_while_captions_are_written(server: ComfyServer, pics: Path) -> None:
    (pics / "b.txt").unlink(missing_ok=True)
    place = f"{ROUTES}datasets/{data_set(server)}"
    first = server.get(f"{place}/items?order=missing&count=1")
    rest = f"{place}/items?order=missing&after=1&listing={first['listing']}"
    before = [one["file"] for one in server.get(rest)["items"]]
    (one,) = first["items"]
    edit = {"item": one["item"], "before": "", "caption": "written meanwhile"}
    assert server.post(f"{place}/captions", {"edits": [edit]}) == {"written": 1}
    (pics / "walk.mp4").unlink()
    after = server.get(rest)["items"]
    assert [row["file"] for row in after] == [name if name != "walk.mp4" else "" for name in before]
    assert [row["problem"] for row in after if not row["file"]] == ["it is not there any more"]
    again = server.get(f"{place}/items?order=missing")
    assert again["listing"] != first["listing"]
    assert one["file"] not in [row["file"] for row in again["items"][:1]]


def test_new_sets_are_filled_by_comfyuis_own_upload(server: ComfyServer) -> None:
    made = server.post(ROUTES + "datasets", {"name": "by upload"})
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64)).save(buffer, "PNG")
    parts = {"subfolder": made["upload"].encode(), "type": b"input"}
    body = b"".join(
        b'--x\r\nContent-Disposition: form-data; name="%s"\r\n\r\n%s\r\n' % (name.encode(), value)
        for name, value in parts.items()
    )
    body += b'--x\r\nContent-Disposition: form-data; name="image"; filename="n.png"\r\n\r\n' + buffer.getvalue()
    assert server.posted("/upload/image", body + b"\r\n--x--\r\n", "multipart/form-data; boundary=x")[0] == 200
    assert [*items(server, made["id"])] == ["n.png"]
    shutil.rmtree(server.base / "input" / "by upload")


def test_nodes_write_drafts_that_are_accepted(server: ComfyServer, pics: Path) -> None:
    """By any captioner between two of our nodes, and by a model on this machine."""
    for link in ("b.txt", "linked.png", "more"):
        (pics / link).unlink(missing_ok=True)
    blip(server.base / "models" / "LLM" / "small blip", says="circle")
    load = node("LoadDataset", folder="pics", default_caption="x")
    graph = {
        "data": load,
        "images": node("DatasetImages", dataset=["data", 0], which="those without a caption", count=1, first=1),
        "text": {
            "class_type": "StringReplace",
            "inputs": {"string": ["images", 1], "find": ".png", "replace": " seen"},
        },
        "drafts": node("CaptionDrafts", dataset=["data", 0], captions=["text", 0], names=["images", 1]),
    }
    done = server.run(graph)
    assert done.status == "success", done.messages
    data = data_set(server)
    found = items(server, data)
    drafts = server.get(f"{ROUTES}datasets/{data}/drafts")["drafts"]
    assert [(one["item"], one["caption"]) for one in drafts] == [(found["c.png"]["item"], "c seen")]
    (model,) = server.get(ROUTES + "captioners")["models"]
    chosen = [found[name]["item"] for name in ("b.png", "walk.mp4")]
    asked = server.post(f"{ROUTES}datasets/{data}/captioning", {"model": model["id"], "items": chosen})
    assert server.wait(asked["prompt_id"]).status == "success"
    texts = {one["item"]: one["caption"] for one in server.get(f"{ROUTES}datasets/{data}/drafts")["drafts"]}
    assert texts == {found["c.png"]["item"]: "c seen", **dict.fromkeys(chosen, "circle")}
    assert not (pics / "b.txt").exists()
    accept = [{"item": chosen[0], "before": "", "caption": "a circle"}]
    review = {"accept": accept, "reject": [found["c.png"]["item"]]}
    assert server.post(f"{ROUTES}datasets/{data}/drafts", review) == {"written": 1}
    assert (pics / "b.txt").read_text() == "a circle"
    assert [one["item"] for one in server.get(f"{ROUTES}datasets/{data}/drafts")["drafts"]] == chosen[1:]


def code(server: ComfyServer, path: str) -> int:
    try:
        return fetched(server, path) and 200
    except urllib.error.HTTPError as error:
        return error.code


def fetched(server: ComfyServer, path: str) -> tuple[bytes, str]:
    with urllib.request.urlopen(server.url + path, timeout=60) as answer:
        return answer.read(), answer.headers["Content-Type"]
