"""A LoRA means the same in ComfyUI as in training: outputs are equal in fp32, for every source and kind of adapter."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from trainer_core.families.flux1.single_file import FLUX1

from ..trainer_core.families.checkpoints import write_parts
from ..trainer_core.families.small_models import small_flux
from . import small_checkpoints
from .server import ROOT

TOLERANCE = 1e-5
FILES = ("sd15", "sdxl", "flux1")
DRAWN = ("lora 1.0", "lora 0.7", "conv 1.0", "conv 0.7", "dora 1.0", "lokr 1.0", "loha 1.0")


def run(script: str, comfyui: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A script of this folder in ComfyUI's."""
    path = Path(__file__).with_name(script)
    command = [sys.executable, str(path), str(comfyui), str(ROOT), *arguments]
    ran = subprocess.run(command, cwd=comfyui, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    return ran


def test_output_with_the_lora_is_equal_in_trainer_and_comfyui(comfyui: Path, tmp_path: Path) -> None:
    """The embedded base, alpha ≠ rank included."""
    ran = run("parity.py", comfyui, str(tmp_path))
    found = json.loads(ran.stdout.splitlines()[-1])
    assert "lora key not loaded" not in ran.stderr
    assert found.pop("base") <= TOLERANCE
    for targets in ("attention", "all"):
        for strength in (1.0, 0.5):
            assert found[f"effect of {targets} {strength}"] > 0.01
            assert found[f"{targets} {strength}"] <= TOLERANCE


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Single files of each family; deleted at once, because pytest keeps folders of several sessions."""
    folder = tmp_path_factory.mktemp("single_files")
    small_checkpoints.sd15(folder / "sd15" / "sd15.safetensors", whole=False, dtype=torch.float32)
    small_checkpoints.sdxl(folder / "sdxl" / "sdxl.safetensors", dtype=torch.float32)
    made = small_flux(folder / "made")
    write_parts(made, FLUX1, folder / "flux1")["transformer"].rename(folder / "flux1" / "flux1.safetensors")
    for part in ("tokenizer", "tokenizer_2"):
        shutil.copytree(made / part, folder / "flux1" / "tokenizers" / part)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def found(comfyui: Path, files: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """How much ComfyUI's text embeddings and predictions differ, and what it complained of."""
    given = [f"{family}={files / family / family}.safetensors" for family in FILES]
    ran = run("parity_files.py", comfyui, str(tmp_path_factory.mktemp("loras")), *given)
    return json.loads(ran.stdout.splitlines()[-1].removeprefix("RESULT"))


@pytest.mark.parametrize("family", FILES)
def test_single_files_are_equal_without_an_adapter(family: str, found: dict[str, Any]) -> None:
    bare = found["found"][f"{family} base"]
    assert bare["text"] <= TOLERANCE
    assert bare["denoiser"] <= TOLERANCE


@pytest.mark.parametrize("drawn", DRAWN)
@pytest.mark.parametrize("family", FILES)
def test_single_files_are_equal_with_an_adapter(family: str, drawn: str, found: dict[str, Any]) -> None:
    """ComfyUI computes the text with the adapted text encoders, and the prediction from that text."""
    one = found["found"][f"{family} {drawn}"]
    assert one["effect"] > 0.01
    assert one["denoiser"] <= TOLERANCE
    assert one["text"] <= TOLERANCE
    if family != "flux1":  # whose LoRAs leave the text encoders alone
        assert one["text effect"] > 0.01


def test_comfyui_found_every_key(found: dict[str, Any]) -> None:
    assert found["bad"] == []
