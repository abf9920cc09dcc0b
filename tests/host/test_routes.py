"""The routes of runs on a real ComfyUI: hostile requests, odd folders, pages that are told, runs that go on."""

from __future__ import annotations

import json
import os
import platform
import shutil
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from .hostile import Wire, requests
from .page import Page
from .runs import EXACT, SLOW, begun, finished, run_of, status, weights
from .server import ComfyServer
from .test_pause import command_line

Training = Callable[..., dict[str, Any]]
SECRET = "a secret outside of all roots"
ROUTES = "/lora_foundry/"


@pytest.fixture(scope="module")
def fine(server: ComfyServer, training: Training) -> Path:
    """A finished run with samples."""
    prompt = training("fine", sample_prompts="a red [trigger]", steps=2, save_every=1, sample_every=2)
    assert server.run(prompt).status == "success"
    return run_of(server, prompt)


@pytest.fixture
def odd(server: ComfyServer, fine: Path, tmp_path: Path) -> Iterator[Path]:
    """Runs whose folders lead outside, or are damaged in odd ways; gives the folder outside."""
    root, outside = fine.parent, tmp_path / "outside"
    shutil.copytree(fine, outside / "run")
    for path in (outside / "secret.txt", outside / "run" / "log.txt", outside / "run" / "job.yaml"):
        path.write_text(f"name: {SECRET}\n" * 3, encoding="utf-8")
    before = set(root.iterdir())

    def copy(name: str) -> Path:
        return Path(shutil.copytree(fine, root / name))

    def link(path: Path, target: Path) -> None:
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        path.symlink_to(target, target_is_directory=target.is_dir())

    link(root / "linked", outside / "run")
    link(copy("samples_linked") / "samples", outside / "run" / "samples")
    link(copy("job_linked") / "job.yaml", outside / "secret.txt")
    link(copy("log_linked") / "log.txt", outside / "secret.txt")
    link(copy("checkpoints_linked") / "checkpoints", outside / "run" / "checkpoints")
    for name, file in (("metrics_pipe", "metrics.jsonl"), ("status_pipe", "run.json")):
        path = copy(name) / file
        path.unlink()
        os.mkfifo(path)
    inner = copy("inner_links")
    link(inner / "samples" / "step_00000002" / "01.png", outside / "secret.txt")
    link(inner / "samples" / "step_00000002" / "00.png.gz", outside / "secret.txt")
    link(inner / "samples" / "step_00000007", outside)
    link(inner / "checkpoints" / "step_00000002" / "lora.safetensors", outside / "secret.txt")
    (copy("empty_status") / "run.json").write_bytes(b"")
    (copy("huge_status") / "run.json").write_text('{"state": "running", "step": 1e400, "steps": 3}', encoding="utf-8")
    (copy("bad_job") / "job.yaml").write_bytes(b"&a [*a, " + b"[" * 50_000)
    (copy("bad_metrics") / "metrics.jsonl").write_bytes(
        b'{"step": 1, "loss": NaN}\n{"step": 2, "loss": -Infinity, "lr": 1e999}\n\xff\xfe\n{"step": 3, "loss": [1]}\n'
        + b"[" * 90_000
    )
    script = copy("script")
    with (script / "log.txt").open("a", encoding="utf-8") as file:
        file.write("2026-11-29 12:00:00 warning: <script>alert(1)</script>\n")
    (root / "<img src=x onerror=alert(1)>").mkdir()
    shutil.copy(fine / "run.json", root / "<img src=x onerror=alert(1)>")
    yield outside
    for path in set(root.iterdir()) - before:
        path.unlink() if path.is_symlink() else shutil.rmtree(path)


@pytest.mark.skipif(sys.platform == "win32", reason="its links need rights, and it has no pipes")
def test_hostile_requests_get_nothing_and_change_nothing(server: ComfyServer, fine: Path, odd: Path) -> None:
    server.get(ROUTES + "runs")
    known, before, wire, count = _printed(server), _tree(server.base / "output", odd), Wire(server.port), 0
    for one in requests():
        code, body, ours = wire.send(one)
        assert 400 <= code < 500, (one, code, body[:300])
        assert SECRET.encode() not in body, one
        if ours:  # what ComfyUI finds no route for, or cannot parse, does not reach us
            assert json.loads(body)["error"], one
            count += 1
    assert count >= 1000
    assert _tree(server.base / "output", odd) == before
    assert "Traceback" not in server.log()[known:]
    assert server.get(ROUTES + "runs/fine")["state"] == "finished"


@pytest.mark.skipif(sys.platform == "win32", reason="its links need rights, and it has no pipes")
def test_odd_folders_are_told_and_links_are_not_followed(server: ComfyServer, odd: Path) -> None:
    runs = {run["name"]: run for run in server.get(ROUTES + "runs")["runs"]}
    assert not {"linked", ".trash", "<img src=x onerror=alert(1)>"} & runs.keys()
    for name in ("samples_linked", "job_linked", "log_linked", "checkpoints_linked"):
        assert "link" in runs[name]["error"]
        assert _code(server, f"runs/{name}") == 404
    for name in ("metrics_pipe", "status_pipe"):
        assert "no file" in runs[name]["error"]
    assert (runs["empty_status"]["state"], runs["empty_status"]["step"]) == ("stopped", 2)
    assert runs["huge_status"]["state"] == "stopped"
    assert runs["bad_job"]["trigger"] is None
    assert runs["bad_metrics"]["loss"] is None
    for name in runs.keys() & {"empty_status", "huge_status", "bad_job", "bad_metrics", "script", "inner_links"}:
        assert SECRET not in json.dumps(server.get(f"{ROUTES}runs/{name}"))
    metrics = server.get(ROUTES + "runs/bad_metrics/metrics")
    assert metrics["series"]["loss"] == [None, None]
    inner = server.get(ROUTES + "runs/inner_links")
    assert [[item["file"] for item in one["items"]] for one in inner["samples"] if one["step"] == 2] == [["00.png"]]
    assert [one["step"] for one in inner["samples"]] == [2]
    assert [one["step"] for one in inner["checkpoints"]] == [1]
    for path in ("samples/2/01.png", "samples/2/00.png.gz", "samples/7/secret.txt", "checkpoints/2/lora.safetensors"):
        assert _code(server, f"runs/inner_links/{path}") == 404
    picture = _got(server, "runs/inner_links/samples/2/00.png", {"Accept-Encoding": "gzip"})
    assert picture.headers["Content-Type"] == "image/png"
    assert SECRET.encode() not in picture.read()
    script = _got(server, "runs/script/log")
    assert script.headers["Content-Type"].startswith("application/json")
    assert script.headers["X-Content-Type-Options"] == "nosniff"
    assert server.get(ROUTES + "runs/script")["messages"] == ["<script>alert(1)</script>"]


def test_a_run_as_a_page_sees_it(server: ComfyServer, fine: Path) -> None:
    run = server.get(ROUTES + "runs/fine")
    assert (run["state"], run["step"], run["steps"], run["trigger"], run["base"]) == (
        "finished",
        2,
        2,
        "zorble",
        "embedded",
    )
    assert (run["owner"], run["here"], run["node"], run["resumable"], run["previews"]) == (
        None,
        False,
        None,
        False,
        True,
    )
    assert run["created"] <= run["updated"] <= time.time()
    assert run["job"] == (fine / "job.yaml").read_text(encoding="utf-8")
    assert ["adapter.rank", "4"] in run["settings"]
    assert [(one["step"], one["files"]) for one in run["checkpoints"]] == [
        (1, ["lora.safetensors"]),
        (2, ["lora.safetensors"]),
    ]
    assert run["checkpoints"][1]["bytes"] > (fine / "checkpoints/step_00000002/lora.safetensors").stat().st_size
    assert [(one["step"], one["items"][0]["prompt"]) for one in run["samples"]] == [(2, "a red zorble")]
    metrics = server.get(ROUTES + "runs/fine/metrics")
    logged = [json.loads(line) for line in (fine / "metrics.jsonl").read_text().splitlines()]
    assert metrics["steps"] == [1, 2]
    assert metrics["series"]["loss"] == [line["loss"] for line in logged if "loss" in line]
    assert server.get(ROUTES + "runs/fine/metrics?after=1")["steps"] == [2]
    log = server.get(ROUTES + "runs/fine/log")
    assert log["text"] == (fine / "log.txt").read_text()
    assert server.get(f"{ROUTES}runs/fine/log?after={log['size']}") == {"text": "", "size": log["size"]}


def test_files_come_whole_in_parts_small_and_once(server: ComfyServer, fine: Path, tmp_path: Path) -> None:
    path, lora = fine / "samples/step_00000002/00.png", fine / "checkpoints/step_00000002/lora.safetensors"
    whole = _got(server, "runs/fine/samples/2/00.png")
    assert whole.read() == path.read_bytes()
    part = _got(server, "runs/fine/samples/2/00.png", {"Range": "bytes=5-9"})
    assert (part.status, part.read(), part.headers["Content-Range"]) == (
        206,
        path.read_bytes()[5:10],
        f"bytes 5-9/{path.stat().st_size}",
    )
    (tmp_path / "small").write_bytes(_got(server, "runs/fine/samples/2/00.png?size=96").read())
    with Image.open(tmp_path / "small") as small, Image.open(path) as large:
        assert small.format == "WEBP"
        assert small.size == (min(large.width, 96), min(large.height, 96))
    request = urllib.request.Request(
        f"{server.url}{ROUTES}runs/fine/samples/2/00.png", headers={"If-None-Match": whole.headers["ETag"]}
    )
    with pytest.raises(urllib.error.HTTPError) as unchanged:
        urllib.request.urlopen(request, timeout=60)
    assert unchanged.value.code == 304
    download = _got(server, "runs/fine/checkpoints/2/lora.safetensors")
    assert download.read() == lora.read_bytes()
    assert download.headers["Content-Disposition"] == "attachment; filename*=UTF-8''fine_2_steps.safetensors"


def test_pin_use_rename_delete_restore(server: ComfyServer, fine: Path) -> None:
    name = shutil.copytree(fine, fine.with_name("moved")).name
    assert _post(server, name, "pin", step=1, pinned=True) == (200, {"pinned": [1]})
    assert server.get(f"{ROUTES}runs/{name}")["checkpoints"][0]["pinned"]
    assert _post(server, name, "pin", step=1, pinned=False) == (200, {"pinned": []})
    code, used = _post(server, name, "use", step=1, name="picked")
    assert (code, used["lora_name"]) == (200, "picked.safetensors")
    assert _post(server, name, "use", step=1, name="picked")[1]["lora_name"] == "picked.safetensors"
    assert "picked.safetensors" in json.dumps(server.get("/object_info/LoraLoader"))
    assert _post(server, name, "rename", name="fine")[0] == 409
    assert _post(server, name, "rename", name="renamed run") == (200, {"name": "renamed run"})
    assert "name: renamed run" in server.get(ROUTES + "runs/renamed%20run")["job"]
    code, gone = _post(server, "renamed%20run", "delete")
    assert code == 200
    assert _code(server, "runs/renamed%20run") == 404
    assert gone["trashed"] in [one["id"] for one in server.get(ROUTES + "trash")["trash"]]
    assert _post(server, "renamed%20run", "restore") == (200, {"name": "renamed run"})
    assert server.get(ROUTES + "runs/renamed%20run")["state"] == "finished"
    shutil.rmtree(fine.with_name("renamed run"))


def test_pages_hear_of_a_run_here_and_of_one_of_another_process(server: ComfyServer, training: Training) -> None:
    with Page(server) as page:
        prompt = training("watched", **SLOW, sample_prompts="a red [trigger]")
        prompt_id, run = begun(server, prompt)
        at_work = page.run("watched", lambda one: one["state"] == "running" and one["step"] > 1)
        assert (at_work["here"], at_work["node"], at_work["prompt_id"]) == (True, "train", prompt_id)
        assert at_work["owner"] == f"process {page.server_pid(run)} on {platform.node()}"
        assert at_work["eta_seconds"] > 0
        for path in ("rename", "delete", "resume"):
            assert _post(server, "watched", path, **({"name": "x"} if path == "rename" else {}))[0] == 409
        assert _post(server, "watched", "request", request="sample")[0] == 200
        page.until(lambda: any("samples" in one for one in page.news("watched")))
        assert _post(server, "watched", "request", request="pause")[0] == 200
        assert server.wait(prompt_id).status == "success"
        # its files tell of the pause a moment before this server has let it go
        rest = page.run("watched", lambda one: one["state"] == "paused" and not one["here"])
        assert (rest["owner"], rest["resumable"]) == (None, True)
        points = [step for one in page.news("watched") for step in one.get("steps", ())]
        assert points == sorted({*points})

        with command_line(server, "resume", str(run)) as process:
            other = page.run("watched", lambda one: one["state"] == "running" and one["step"] > rest["step"] + 1)
            assert (other["here"], other["owner"]) == (False, f"process {process.pid} on {platform.node()}")
            assert _post(server, "watched", "request", request="stop")[0] == 200
            page.run("watched", lambda one: one["state"] == "stopped")
        shutil.rmtree(run)
        page.until(lambda: "watched" in page.gone)
        assert page.revisions == list(range(page.revisions[0], page.revisions[0] + len(page.revisions)))


def test_paused_run_goes_on_by_its_name_exactly(server: ComfyServer, training: Training, undisturbed: Path) -> None:
    prompt = training("by name", **EXACT)
    prompt_id, run = begun(server, prompt)
    # nothing waits: the prompt that comes next is let by, and then the run goes on by itself
    assert _post(server, "by%20name", "request", request="pause", go_on=True)[0] == 200
    assert server.wait(prompt_id).status == "success"
    paused = status(run)
    assert server.get(ROUTES + "runs/by%20name")["goes_on"]
    assert paused["state"] == "paused"
    meanwhile = training("let by", steps=2)
    assert server.run(meanwhile).status == "success"
    _until(lambda: server.get(ROUTES + "runs/by%20name")["state"] == "finished")
    _until(lambda: server.get(ROUTES + "runs/by%20name")["owner"] is None)
    assert status(run_of(server, meanwhile))["updated"] < status(run)["updated"]
    assert finished(run)
    assert weights(run) == weights(undisturbed)
    assert "finished" in _post(server, "by%20name", "resume")[1]["error"]


def test_resume_asks_when_something_has_changed(server: ComfyServer, training: Training, tmp_path: Path) -> None:
    folder = server.base / "input" / "changing"
    shutil.copytree(Path(__file__).parents[2] / "trainer_core/embedded/demo_dataset", folder)
    prompt = training("asked", **SLOW, folder="changing")
    prompt_id, run = begun(server, prompt)
    assert _post(server, "asked", "request", request="pause")[0] == 200
    server.wait(prompt_id)
    next(folder.glob("*.txt")).write_text("another caption", encoding="utf-8")
    code, answer = _post(server, "asked", "resume")
    assert (code, answer["new_name"]) == (409, "asked_2")
    (change,) = answer["changed"]
    assert (change["name"], change["acceptable"]) == ("data", True)
    assert "captions" in change["now"]
    job = run / "job.yaml"
    text = job.read_text(encoding="utf-8")
    job.write_text(
        text.replace("learning_rate: 0.01", "learning_rate: 0.005").replace("rank: 4", "rank: 8"), encoding="utf-8"
    )
    changed = {one["name"]: one for one in _post(server, "asked", "resume")[1]["changed"]}
    assert changed["train.learning_rate"] == {
        "name": "train.learning_rate",
        "before": "0.01",
        "now": "0.005",
        "acceptable": True,
    }
    assert not changed["adapter.rank"]["acceptable"]
    assert _post(server, "asked", "resume", accept=True)[0] == 409
    job.write_text(text, encoding="utf-8")
    code, answer = _post(server, "asked", "resume", accept=True)
    assert code == 200
    assert server.wait(answer["prompt_id"]).status == "success"
    assert finished(run)
    assert not run.with_name("asked_2").exists()


def test_open_is_for_browsers_on_the_same_machine(server: ComfyServer, fine: Path) -> None:
    for headers in ({"X-Forwarded-For": "10.0.0.7"}, {"Host": "studio.example"}):
        request = urllib.request.Request(
            f"{server.url}{ROUTES}runs/fine/open", b"{}", {"Content-Type": "application/json", **headers}
        )
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(request, timeout=60)
        assert refused.value.code == 403


def _post(server: ComfyServer, run: str, what: str, **body: Any) -> tuple[int, Any]:
    return server.posted(f"{ROUTES}runs/{run}/{what}", json.dumps(body).encode())


def _got(server: ComfyServer, path: str, headers: dict[str, str] | None = None) -> Any:
    request = urllib.request.Request(f"{server.url}{ROUTES}{path}", headers=headers or {})
    return urllib.request.urlopen(request, timeout=60)


def _code(server: ComfyServer, path: str) -> int:
    try:
        with _got(server, path) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code if json.loads(error.read())["error"] else 0


def _until(done: Callable[[], bool], seconds: float = 300) -> None:
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end
        time.sleep(0.05)


def _printed(server: ComfyServer) -> int:
    return len(server.log())


def _tree(*folders: Path) -> dict[str, tuple[int, int]]:
    """All files with size and time, but for locks, which whoever looks takes for a moment."""
    found = {}
    for folder in folders:
        for path in folder.rglob("*"):
            if path.name != ".lock" and ".thumbnails" not in path.parts and not path.is_dir():
                stat = path.lstat()
                found[str(path)] = (stat.st_size, stat.st_mtime_ns)
    return found
