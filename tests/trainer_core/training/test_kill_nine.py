"""A few rounds of benchmarks/kill_nine.py, which kills a training at random moments; its full run is in RESULTS.md."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
KILLS = 6


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the killed processes are forks")
def test_a_killed_run_goes_on_as_if_nothing_had_been(tmp_path: Path) -> None:
    """The benchmark checks after each kill and at the end; it fails with what was lost."""
    done = subprocess.run(
        [
            sys.executable,
            str(ROOT / "benchmarks" / "kill_nine.py"),
            "--rounds",
            str(KILLS),
            "--seed",
            "7",
            "--json",
            str(tmp_path / "result.json"),
        ],
        env={**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["kills"] == KILLS
    assert result["processes"] > KILLS
    assert result["runs finished, byte for byte as undisturbed"] >= 1
