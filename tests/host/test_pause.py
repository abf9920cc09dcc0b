"""Pause, crash, wait in ComfyUI: nothing is lost, and the LoRA is the one that an undisturbed run makes."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from trainer_core.runs.requests import PAUSE, ask

from .conftest import node
from .runs import EXACT, SLOW, STEPS, begun, finished, run_of, status, steps, weights
from .server import ROOT, ComfyServer

Training = Callable[..., dict[str, Any]]
ROUTE = "/lora_foundry/tell"


def test_paused_run_frees_the_device_and_goes_on_exactly(
    server: ComfyServer, training: Training, undisturbed: Path
) -> None:
    prompt = training("paused", **EXACT)
    prompt["behind"] = node("SaveCheckpoint", run=["train", 0], which="latest", step=0, name="")
    prompt_id, run = begun(server, prompt)
    assert server.post(ROUTE, {"run": "paused", "request": "pause"}) == {"run": "paused", "request": "pause"}
    result = server.wait(prompt_id)
    assert result.status == "success", result.messages  # what was asked for was done: no red job
    assert "paused: queue the workflow again to go on" in result.outputs["train"]["text"][0]
    assert "behind" not in result.outputs  # nothing to save yet
    now = status(run)
    assert now["state"] == "paused"
    assert 2 <= now["step"] < STEPS
    assert steps(run) == list(range(1, now["step"] + 1))

    assert server.run(training("meanwhile", steps=2)).status == "success"
    assert status(run) == now

    result = server.run(prompt)
    assert result.status == "success"
    assert f"goes on with paused from step {now['step']}" in result.outputs["train"]["text"][0]
    assert "behind" in result.outputs
    assert finished(run)
    assert weights(run) == weights(undisturbed)
    assert [path.name for path in run.parent.glob("paused*")] == ["paused"]


def test_killed_comfyui_goes_on_exactly(
    comfyui: Path, tmp_path: Path, training: Training, server: ComfyServer, undisturbed: Path
) -> None:
    prompt = training("killed", **{**EXACT, "save_every": 2})
    with ComfyServer(comfyui, tmp_path) as first:
        _, run = begun(first, prompt, count=5)
        first.kill()
    saved = sorted((run / "checkpoints").glob("step_*"))
    assert saved
    assert status(run)["state"] == "running"  # nobody could write down that it is not
    with ComfyServer(comfyui, tmp_path) as second:
        (told,) = second.get("/lora_foundry/runs")["runs"]
        assert (told["state"], told["crashed"], told["owner"], told["resumable"]) == ("stopped", True, None, True)
        result = second.run(prompt)
    assert result.status == "success"
    assert "goes on with killed from step" in result.outputs["train"]["text"][0]
    assert finished(run)
    assert weights(run) == weights(undisturbed)


def test_finished_run_is_trained_further_as_if_it_had_never_ended(server: ComfyServer, training: Training) -> None:
    further, at_once = training("further", options={"deterministic": True}), training("at once", steps=6)
    at_once["options"] = further["options"]
    assert server.run(further).status == "success"
    further["train"]["inputs"]["steps"] = 6
    result = server.run(further)
    assert "goes on with further from step 4" in result.outputs["train"]["text"][0]
    assert server.run(at_once).status == "success"
    assert finished(run_of(server, further), 6)
    assert weights(run_of(server, further)) == weights(run_of(server, at_once))
    assert not run_of(server, further).with_name("further_2").exists()


def test_save_and_sample_now_and_pause_from_outside(server: ComfyServer, training: Training) -> None:
    prompt = training("now", **SLOW, sample_prompts="a red [trigger]")
    prompt_id, run = begun(server, prompt)
    for request in ("save", "sample"):
        server.post(ROUTE, {"run": "now", "request": request})
    while not (list(run.glob("checkpoints/step_*")) and list(run.glob("samples/*/*.png"))):
        assert prompt_id not in server.get(f"/history/{prompt_id}"), "it ended without them"
        time.sleep(0.05)
    (saved,) = run.glob("checkpoints/step_*")
    assert int(saved.name.removeprefix("step_")) < STEPS
    ask(run, PAUSE)  # as `lora-foundry tell` does: a prompt that waits for its end would keep other graphs from running
    assert server.wait(prompt_id).status == "success"
    assert status(run)["state"] == "paused"
    assert "save as asked, at step" in log(run)
    assert "sample as asked, at step" in log(run)


def test_run_of_another_process_is_left_to_it_and_the_device_is_waited_for(
    server: ComfyServer, training: Training
) -> None:
    held = training("held", **{**SLOW, "steps": 5000})
    prompt_id, run = begun(server, held)
    server.post(ROUTE, {"run": "held", "request": "pause"})
    server.wait(prompt_id)
    with command_line(server, "resume", str(run)) as process:
        while status(run)["state"] != "running":
            assert process.poll() is None
            time.sleep(0.05)
        refused = server.run(held)
        assert f"process {process.pid}" in refused.error
        assert "'held'" in refused.error

        waiting = training("waiting", **SLOW)
        prompt_id = server.queue(waiting)
        while not run_of(server, waiting).exists() or "waiting for the device" not in log(run_of(server, waiting)):
            assert prompt_id not in server.get(f"/history/{prompt_id}"), server.log()[-3000:]
            time.sleep(0.05)
        assert status(run_of(server, waiting))["state"] == "queued"
        server.post("/interrupt", {"prompt_id": prompt_id})
        assert server.wait(prompt_id).interrupted  # while the other process goes on, as is seen below
        assert status(run_of(server, waiting))["state"] == "stopped"
        assert process.poll() is None
    assert server.run(waiting).status == "success"
    assert finished(run_of(server, waiting))


@pytest.mark.parametrize(
    ("body", "content_type", "expected"),
    [
        (b'{"run": "any", "request": "pause"}', "text/plain", 415),
        (b'{"run": "any", "request": "pause"}', "application/x-www-form-urlencoded", 415),
        (b"[" * 4000, "application/json", 400),
        (b'{"run": "any"', "application/json", 400),
        (b"\xff", "application/json", 400),
        (b'{"run": "any", "request": "pause", "x": "' + b"x" * 5000 + b'"}', "application/json", 413),
        (b'{"run": "../../any", "request": "pause"}', "application/json", 404),
        (b'{"run": "any", "request": "stop"}', "application/json", 400),
    ],
)
def test_route_refuses_what_it_does_not_know(
    server: ComfyServer, body: bytes, content_type: str, expected: int
) -> None:
    code, answer = server.posted(ROUTE, body, content_type)
    assert code == expected
    assert answer["error"]


@contextmanager
def command_line(server: ComfyServer, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """Our command line in the queue of a server's trainings, stopped at the end."""
    command = [sys.executable, "-m", "trainer_core", *arguments]
    environment = {**os.environ, **server.environment}
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL) as process:
        try:
            yield process
        finally:
            process.terminate()
            process.wait(60)


def log(run: Path) -> str:
    file = run / "log.txt"
    return file.read_text(encoding="utf-8") if file.exists() else ""
