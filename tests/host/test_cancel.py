"""Cancel in ComfyUI: the prompt ends, nothing is lost, and the run goes on by command line or by queueing again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .runs import SLOW, STEPS, begun, finished, status, steps
from .server import ROOT, ComfyServer

CANCEL_SECONDS = 15
"""A requirement of the project, and the only time that a test asserts: 5, of which a busy machine makes thrice."""


def test_cancelled_run_is_finished_by_the_command_line(
    server: ComfyServer, training: Callable[..., dict[str, Any]]
) -> None:
    run = cancelled(server, training("cancelled", **SLOW))
    resumed = subprocess.run(
        [sys.executable, "-m", "trainer_core", "resume", str(run)],
        cwd=ROOT,
        env={**os.environ, **server.environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    assert finished(run)


def test_queueing_again_goes_on_with_the_cancelled_run(
    server: ComfyServer, training: Callable[..., dict[str, Any]]
) -> None:
    prompt = training("queued again", **SLOW)
    run = cancelled(server, prompt)
    assert server.run(prompt).status == "success"
    assert finished(run)
    assert [path.name for path in run.parent.glob("queued again*")] == ["queued again"]


def test_other_settings_are_asked_about(server: ComfyServer, training: Callable[..., dict[str, Any]]) -> None:
    run = cancelled(server, training("changed", **SLOW))
    now = status(run)
    other = training("changed", **{**SLOW, "learning_rate": 0.005})
    refused = server.run(other)
    assert "learning_rate: was 0.01, is 0.005" in refused.error
    assert "train.learning_rate" not in refused.error
    assert status(run) == now
    assert not run.with_name("changed_2").exists()
    other["train"]["inputs"]["if_settings_changed"] = "go on with the new values"
    assert server.run(other).status == "success"
    assert finished(run)
    short = training("changed", steps=2)
    assert "new run changed_2: changed (finished) has other settings" in server.run(short).outputs["train"]["text"][0]
    assert status(run.with_name("changed_2"))["state"] == "finished"


def test_cancelled_inside_a_preview(server: ComfyServer, training: Callable[..., dict[str, Any]]) -> None:
    """A thousand steps of the sampler take far longer than a cancel may."""
    prompt = training("in a preview", **{**SLOW, "sample_every": 2}, samples={"steps": 1000}, sample_prompts="a\nb")
    run = cancelled(server, prompt, until="drawing sample (1 of 2)")
    assert not list(run.glob("samples/*/*.png"))
    prompt["samples"]["inputs"]["steps"] = 2
    result = server.run(prompt)
    assert result.status == "success"
    assert finished(run)
    assert len(list(run.glob("samples/step_00000002/*.png"))) == 2  # those that were due are made up for


def cancelled(server: ComfyServer, prompt: dict[str, Any], until: str = "") -> Path:
    """Queues a prompt, cancels it after a few steps, and checks what it left. Gives the run's folder.

    Args:
        until: a line of its log that is waited for.
    """
    prompt_id, run = begun(server, prompt)
    while until not in (run / "log.txt").read_text(encoding="utf-8"):
        time.sleep(0.05)
    asked = time.monotonic()
    server.post("/interrupt", {"prompt_id": prompt_id})
    result = server.wait(prompt_id)
    took = time.monotonic() - asked
    assert result.interrupted, result.messages
    assert took < CANCEL_SECONDS
    now = status(run)
    assert now["state"] == "stopped"
    assert 2 <= now["step"] < STEPS
    assert steps(run) == list(range(1, now["step"] + 1))
    checkpoint = sorted((run / "checkpoints").iterdir())[-1]
    assert json.loads((checkpoint / "manifest.json").read_text())["step"] == now["step"]
    return run
