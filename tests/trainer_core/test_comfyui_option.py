"""When the command line begins with ComfyUI, and when it does without; tests/host/ has a real one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from trainer_core.cli import main
from trainer_core.commands import comfyui
from trainer_core.config import SOURCE, ModelConfig, load_job, register_model_files
from trainer_core.config import model_files as registered
from trainer_core.families.registry import can_find

Jobs = Callable[..., Path]


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Whether what starts ComfyUI was asked for; it then is not there."""
    asked: list[str] = []

    def library() -> None:
        asked.append("library")
        raise config_error

    config_error = comfyui.ConfigError("no library here")
    monkeypatch.setattr(comfyui, "_library", library)
    return asked


def test_a_base_that_is_here_does_without(
    make_job: Jobs, started: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COMFYUI_DIR", str(tmp_path))
    assert main(["train", str(make_job(train={"steps": 1})), "--runs", str(tmp_path / "runs")]) == 0
    assert main(["resume", "tiny", "--runs", str(tmp_path / "runs")]) == 0
    assert started == []


@pytest.mark.parametrize(
    "model", [{"source": "wan.safetensors"}, {"family": "comfyui"}, {"files": {"vae": "ae.safetensors"}}]
)
def test_a_base_that_is_not_asks_for_the_usual_one(
    model: dict[str, object], make_job: Jobs, started: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    job = str(make_job(model=model))
    monkeypatch.chdir(tmp_path)
    assert main(["train", job]) == 1
    assert started == [], "there is none"
    monkeypatch.setenv("COMFYUI_DIR", str(tmp_path))
    assert main(["train", job]) == 1
    assert started == ["library"]


def test_the_option_comes_first_wherever_the_base_is(make_job: Jobs, started: list[str], tmp_path: Path) -> None:
    for command in (["train", str(make_job())], ["families"], ["queue", "start"], ["lint", "."], ["sample", "tiny"]):
        assert main([*command, "--comfyui", str(tmp_path)]) == 1
    assert len(started) == 5


def test_the_usual_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(comfyui, "_ROOT", tmp_path / "ComfyUI" / "custom_nodes" / "lora-foundry")
    monkeypatch.setenv("COMFYUI_DIR", "/somewhere")
    assert comfyui.usual_folder() == Path("/somewhere")
    monkeypatch.setenv("COMFYUI_DIR", "")
    assert comfyui.usual_folder() is None
    monkeypatch.delenv("COMFYUI_DIR")
    assert comfyui.usual_folder() == tmp_path / "ComfyUI"
    monkeypatch.setattr(comfyui, "_ROOT", tmp_path / "lora-foundry")
    assert comfyui.usual_folder() is None


def test_names_of_a_hosts_files_become_paths(make_job: Jobs, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What lies beside the job is taken first, and what nobody has stays to be told of."""
    monkeypatch.setattr(registered, "_FINDERS", [])
    held = {
        (SOURCE, "a.safetensors"): "/models/a",
        ("vae", "b.safetensors"): "/models/b",
        ("vae", "own"): "/models/own",
    }
    register_model_files(lambda part, name: Path(held[part, name]) if (part, name) in held else None)
    names = {"vae": "b.safetensors", "text_encoder": "b.safetensors"}
    model = load_job(make_job(model={"source": "a.safetensors", "files": names})).model
    assert (model.source, model.files["vae"]) == ("/models/a", "/models/b")
    assert model.files["text_encoder"] == str(tmp_path / "b.safetensors")
    (tmp_path / "own").write_text("")
    model = load_job(make_job(model={"source": "somebody/model", "files": {"vae": "own"}})).model
    assert (model.source, model.files) == ("somebody/model", {"vae": str(tmp_path / "own")})


def test_what_can_be_found(tmp_path: Path) -> None:
    assert can_find(ModelConfig())
    assert not can_find(ModelConfig(source=str(tmp_path)))
    assert not can_find(ModelConfig(family="sdxl", source="sdxl.safetensors"))
