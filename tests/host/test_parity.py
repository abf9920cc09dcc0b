"""A LoRA means the same in ComfyUI as in training: the denoiser's output is equal in fp32, alpha ≠ rank included."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from .server import ROOT

TOLERANCE = 1e-5


def test_output_with_the_lora_is_equal_in_trainer_and_comfyui(comfyui: Path, tmp_path: Path) -> None:
    script = Path(__file__).with_name("parity.py")
    ran = subprocess.run(
        [sys.executable, str(script), str(comfyui), str(ROOT), str(tmp_path)],
        cwd=comfyui,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout.splitlines()[-1])
    assert "lora key not loaded" not in ran.stderr
    assert found.pop("base") <= TOLERANCE
    for targets in ("attention", "all"):
        for strength in (1.0, 0.5):
            assert found[f"effect of {targets} {strength}"] > 0.01
            assert found[f"{targets} {strength}"] <= TOLERANCE
