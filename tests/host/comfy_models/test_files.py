"""Bases by the names of their files: what is read, and what ComfyUI's text encoders are told."""

from __future__ import annotations

from pathlib import Path

import pytest

from ..pack import module

pytestmark = pytest.mark.host


@pytest.mark.parametrize("part", ["source", "text_encoder", "vae", "model_low_noise", "training_adapter"])
def test_nothing_is_unpickled(part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ComfyUI would read such a file with care; here it is not opened at all."""
    import torch

    config, errors = module("trainer_core.config"), module("trainer_core.errors")
    files = module("nodes.comfy_models.files")
    path = tmp_path / "weights.pt"
    torch.save({"a": torch.ones(1)}, path)
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("it was opened"))

    def read() -> None:
        if part == "training_adapter":
            from .zoo import MODELS

            module("nodes.comfy_models.training_adapter").TrainingAdapter(path, MODELS["flux1"].make().model)
        elif part == "source":
            files.opened(config.ModelConfig(family="comfyui", source=str(path)))
        else:
            files.check_file(f"model.files.{part}", str(path))

    with pytest.raises(errors.FoundryError, match=r"is a pickle|is not a safetensors file"):
        read()


@pytest.mark.parametrize(
    ("architecture", "name"),
    [
        ("Flux", "FLUX"),
        ("FluxSchnell", "FLUX"),
        ("Flux2", "FLUX2"),
        ("SDXL", "STABLE_DIFFUSION"),
        ("WAN21_I2V", "WAN"),
        ("WAN22_T2V", "WAN"),
        ("LTXAV", "LTXV"),
        ("ZImage", "LUMINA2"),
        ("HunyuanVideo15", "HUNYUAN_VIDEO_15"),
        ("HunyuanImage21", "HUNYUAN_IMAGE"),
        ("QwenImage", "QWEN_IMAGE"),
        ("Kandinsky5Image", "KANDINSKY5_IMAGE"),
        ("GenmoMochi", "MOCHI"),
        ("Chroma", "CHROMA"),
        ("Omnigen2", "OMNIGEN2"),
        ("HiDream", "HIDREAM"),
    ],
)
def test_text_encoders_are_loaded_for_the_architecture(architecture: str, name: str) -> None:
    """The type that the user of ComfyUI's templates chooses in CLIPLoader."""
    assert module("nodes.comfy_models.files").clip_type(architecture).name == name
