"""`--comfyui`: the command line with a real ComfyUI as a library, in processes of its own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file

from . import small_checkpoints
from .server import ROOT

MODULES = ("comfy", "comfy_api", "comfy_execution", "utils")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the pack with a provider of the tests, a data set, and a job that names files by their names alone."""
    home = tmp_path_factory.mktemp("rented")
    without_caches = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "trainer_core", home / "pack" / "trainer_core", ignore=without_caches)
    models = home / "pack" / "nodes" / "comfy_models"
    models.mkdir(parents=True)
    for name in ("library.py", "tokenizers.py"):
        shutil.copy(ROOT / "nodes" / "comfy_models" / name, models)
    shutil.copy(Path(__file__).with_name("hosted_provider.py"), models / "provider.py")
    (home / "pictures").mkdir()
    for colour in ("red", "blue"):
        Image.new("RGB", (64, 64), colour).save(home / "pictures" / f"{colour}.png")
    job = {
        "name": "tiny",
        "model": {
            "source": "sub/wan.safetensors",
            "files": {"text_encoder": "umt5.safetensors", "vae": "wan_vae.safetensors"},
            "device": "cpu",
        },
        "adapter": {"rank": 2},
        "datasets": [{"folder": "pictures", "resolutions": [64], "trigger": "zorble", "default_caption": "a picture"}],
        "train": {"steps": 2, "gradient_checkpointing": False},
        "sample": {"prompts": [], "before_training": False},
    }
    (home / "job.yaml").write_text(yaml.safe_dump(job), encoding="utf-8")
    return home


@pytest.fixture(scope="module")
def folder(comfyui: Path, home: Path) -> Path:
    """ComfyUI with folders of models of its own, one of them elsewhere."""
    folder = home / "ComfyUI"
    folder.mkdir()
    for name in MODULES:
        (folder / name).symlink_to(comfyui / name)
    shutil.copy(comfyui / "folder_paths.py", folder)  # it looks for models beside itself
    weights = {"blocks.0.self_attn.norm_k.weight": torch.zeros(2)}
    for place in ("ComfyUI/models/unet/sub/wan", "ComfyUI/models/clip/umt5", "elsewhere/wan_vae"):
        file = home / f"{place}.safetensors"
        file.parent.mkdir(parents=True)
        save_file(weights, file)
    paths = {"mine": {"base_path": str(home), "vae": "elsewhere"}}
    (folder / "extra_model_paths.yaml").write_text(yaml.safe_dump(paths), encoding="utf-8")
    return folder


def call(
    home: Path, *arguments: object, usual: Path | None = None, pack: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """`lora-foundry` in the home folder; `usual` is COMFYUI_DIR, `pack` another than the copy in the home folder."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(pack or home / "pack"),
        "HF_HUB_OFFLINE": "1",
        "COMFYUI_DIR": str(usual or ""),
    }
    command = [sys.executable, "-m", "trainer_core", *map(str, arguments)]
    return subprocess.run(command, cwd=home, capture_output=True, text=True, env=environment, timeout=300)


def test_trains_goes_on_draws_and_tells_with_a_models_file_by_its_name(home: Path, folder: Path) -> None:
    trained = call(home, "train", "job.yaml", "--comfyui", folder)
    assert trained.returncode == 0, trained.stderr
    model = yaml.safe_load((home / "runs" / "tiny" / "job.yaml").read_text(encoding="utf-8"))["model"]
    assert (model["family"], model["source"]) == ("hosted", str(folder / "models" / "unet" / "sub" / "wan.safetensors"))
    assert model["files"] == {
        "text_encoder": str(folder / "models" / "clip" / "umt5.safetensors"),
        "vae": str(home / "elsewhere" / "wan_vae.safetensors"),
    }

    resumed = call(home, "resume", "tiny", "--set", "train.steps=3", usual=folder)
    assert resumed.returncode == 0, resumed.stderr
    assert (home / "runs" / "tiny" / "checkpoints" / "step_00000003" / "lora.safetensors").is_file()

    size = ["--width", 64, "--height", 64, "--steps", 1]
    drawn = call(home, "sample", "tiny", "--prompt", "a zorble", *size, "--json", usual=folder)
    assert drawn.returncode == 0, drawn.stderr
    assert Path(home / json.loads(drawn.stdout)[0]["path"]).is_file()


def test_lists_families_and_checks_data_with_them(home: Path, folder: Path) -> None:
    listed = call(home, "families", "--json", "--comfyui", folder)
    assert listed.returncode == 0, listed.stderr
    assert [one["name"] for one in json.loads(listed.stdout)][-1] == "hosted"
    found = call(home, "lint", "job.yaml", "--json", "--comfyui", folder)
    assert found.returncode == 0, found.stderr
    assert json.loads(found.stdout)["images"] == 2


def test_a_model_that_needs_it_says_so(home: Path, folder: Path) -> None:
    refused = call(home, "train", folder.parent / "job.yaml")
    assert refused.returncode == 1
    assert "there is no such file" in refused.stderr
    bare = {"name": "bare", "model": {"source": str(folder / "models/unet/sub/wan.safetensors")}}
    (home / "bare.yaml").write_text(yaml.safe_dump({**bare, "datasets": [{"folder": "pictures"}]}), encoding="utf-8")
    refused = call(home, "train", "bare.yaml")
    assert refused.returncode == 1
    assert "seems to be a Wan diffusion model" in refused.stderr
    assert "--comfyui DIR" in refused.stderr


def test_options_that_nobody_knows_are_wrong_usage(home: Path, folder: Path) -> None:
    for more in ((), ("--comfyui", folder)):
        refused = call(home, "train", "job.yaml", "--nonsense", *more)
        assert refused.returncode == 2, refused.stderr
        assert "unrecognized arguments: --nonsense" in refused.stderr


def test_a_folder_that_is_no_comfyui_or_lacks_its_packages(home: Path, tmp_path: Path) -> None:
    refused = call(home, "train", "job.yaml", "--comfyui", tmp_path)
    assert refused.returncode == 1
    assert f"{tmp_path}: is no ComfyUI" in refused.stderr
    (tmp_path / "comfy").mkdir()
    (tmp_path / "comfy" / "options.py").write_text("import a_package_that_is_not_here")
    refused = call(home, "train", "job.yaml", "--comfyui", tmp_path)
    assert refused.returncode == 1
    assert "No module named 'a_package_that_is_not_here'" in refused.stderr
    assert f'-m pip install -r "{tmp_path / "requirements.txt"}"' in refused.stderr


def test_an_installed_trainer_has_it_beside_itself_or_says_what_to_do(home: Path, folder: Path, tmp_path: Path) -> None:
    """As in a wheel, where `comfy_models` is a package of its own."""
    shutil.copytree(home / "pack" / "trainer_core", tmp_path / "pack" / "trainer_core")
    refused = call(tmp_path, "families", "--comfyui", folder)
    assert refused.returncode == 1
    assert "Clone its repository" in refused.stderr
    shutil.copytree(home / "pack" / "nodes" / "comfy_models", tmp_path / "pack" / "comfy_models")
    listed = call(tmp_path, "families", "--comfyui", folder)
    assert listed.returncode == 0, listed.stderr
    assert "hosted" in listed.stdout


def test_trains_what_comfyui_has_loaded(home: Path, comfyui: Path) -> None:
    """The pack as it is, and a checkpoint that both the trainer and ComfyUI can open: the job says who is to."""
    file = small_checkpoints.sd15(home / "sd.safetensors", whole=True, dtype=torch.float16)
    job = yaml.safe_load((home / "job.yaml").read_text(encoding="utf-8"))
    job |= {"name": "hosted", "model": {"family": "comfyui", "source": file.name, "device": "cpu"}}
    job["sample"] = {"prompts": ["a [trigger]"], "every": 2, "before_training": False, "steps": 1}
    job["sample"] |= {"width": 64, "height": 64}
    (home / "hosted.yaml").write_text(yaml.safe_dump(job), encoding="utf-8")
    trained = call(home, "train", "hosted.yaml", "--comfyui", comfyui, pack=ROOT)
    file.unlink()
    assert trained.returncode == 0, trained.stderr
    run = home / "runs" / "hosted"
    assert (run / "samples" / "step_00000002" / "00.png").is_file()
    keys = load_file(run / "checkpoints" / "step_00000002" / "lora.safetensors").keys()
    assert {key.partition(".")[0] for key in keys} == {"diffusion_model"}, "ComfyUI's own names"
