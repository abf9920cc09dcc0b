"""ComfyUI is stopped while it trains: nothing is lost, and the LoRA is the one that an undisturbed run makes."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from .runs import EXACT, STEPS, begun, finished, run_of, status, steps, weights
from .server import ComfyServer

Training = Callable[..., dict[str, Any]]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no way to send Ctrl-C to another process alone")
def test_ctrl_c_and_sigterm_save_and_the_same_graph_goes_on_exactly(
    comfyui: Path, tmp_path: Path, training: Training, undisturbed: Path
) -> None:
    prompt = training("ended", **EXACT)
    for number, code in ((signal.SIGINT, 0), (signal.SIGTERM, -signal.SIGTERM)):
        with ComfyServer(comfyui, tmp_path) as server:
            before = len(steps(run_of(server, prompt)))
            _, run = begun(server, prompt)
            server.queue(training("next in line"))  # must not begin in an ending process
            assert server.end(number) == code
            was_stopped_after(run, before)
            clean(server.log())
            assert not run.with_name("next in line").exists()
    with ComfyServer(comfyui, tmp_path) as server:
        result = server.run(prompt)
        assert "goes on with ended from step" in result.outputs["train"]["text"][0]
        assert finished(run)
        assert weights(run) == weights(undisturbed)
        assert sorted(path.name for path in run.parent.glob("ended*")) == ["ended"]


def was_stopped_after(run: Path, before: int) -> None:
    """A run says that it is stopped, and the last step that it made is saved."""
    now = status(run)
    assert now["state"] == "stopped"
    assert now["error"] is None
    assert before < now["step"] < STEPS
    assert steps(run) == list(range(1, now["step"] + 1))
    checkpoint = sorted((run / "checkpoints").glob("step_*"))[-1]
    assert json.loads((checkpoint / "manifest.json").read_text())["step"] == now["step"]


def clean(log: str) -> None:
    """Neither an abort nor a traceback, and one line of ours."""
    for sign in ("Traceback", "terminate called", "Fatal", "Exception", "rror:"):
        assert sign not in log, log[-3000:]
    assert log.count("saves and stops before ComfyUI ends") == 1
