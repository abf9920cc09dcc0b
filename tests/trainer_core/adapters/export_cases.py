"""Trained LoRA files of small models, and what the adapted models give: what exported files are compared with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from trainer_core.adapters.adapter import Adapter
from trainer_core.adapters.comfy_format import to_comfy
from trainer_core.adapters.export_as import export_as
from trainer_core.config import AdapterConfig, ModelConfig
from trainer_core.families.base import Base
from trainer_core.families.registry import open_base
from trainer_core.safetensors_file import serialize

from ..predicting import predicted

METADATA = {"modelspec.title": "tiny", "modelspec.trigger_phrase": "zorble", "lora_foundry.weights": "raw"}
Loaded = Callable[[Mapping[str, nn.Module]], None]


@dataclass
class Case:
    """A trained LoRA file of a small model and what the adapted models give."""

    file: Path
    model: ModelConfig
    base: Base
    adapter: Adapter
    expected: dict[str, Tensor]

    def models(self) -> dict[str, nn.Module]:
        """The plain models, by root."""
        self.base.free_text_encoders()
        encoders = {}
        if self.adapter.config.text_encoders:
            self.base.load_text_encoders()
            encoders = self.base.text_encoders()
        return {"": self.base.load_denoiser(), **encoders}

    def export(self, form: str, folder: Path) -> Path:
        return export_as(form, self.file, self.model, "tiny", folder)


def outputs(base: Base, models: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """What each model gives for fixed inputs."""
    source = torch.Generator().manual_seed(5)
    given: dict[str, Tensor] = {}
    noisy = torch.randn(1, base.spec.main.channels, 8, 8, generator=source)
    if base.spec.name.startswith("flux1"):
        text = {"pooled": torch.randn(1, 64, generator=source), "text": torch.randn(1, 6, 32, generator=source)}
    else:
        wide = 96 if base.spec.name == "sdxl" else 32
        text = {"text": torch.randn(1, 7, wide, generator=source), "pooled": torch.randn(1, 64, generator=source)}
    with torch.no_grad():
        for root, model in models.items():
            if root:
                given[root] = model(torch.tensor([[3, 50, 70, 9, 2]])).last_hidden_state
            else:
                given[root] = predicted(base, model, noisy, torch.tensor([0.5]), text)
    return given


CONFIGS = {
    "lora": AdapterConfig(rank=3, alpha=1.5, targets="all"),
    "dora": AdapterConfig(type="dora", rank=2, alpha=1.0, targets="all"),
    "dora, denoiser": AdapterConfig(type="dora", rank=2, alpha=1.0, targets="all"),
    "lokr": AdapterConfig(type="lokr", rank=2, alpha=1.0, factor=4, targets="all"),
    "lokr, whole": AdapterConfig(type="lokr", rank=999, alpha=999.0, factor=4, targets="all"),
    "loha": AdapterConfig(type="loha", rank=2, alpha=1.0, targets="all"),
}


def case_of(family: str, config: AdapterConfig, model: Path, folder: Path, dtype: torch.dtype = torch.float32) -> Case:
    settings = ModelConfig(family=family, source=str(model), device="cpu")
    base = open_base(settings)
    if config.text_encoders:
        base.load_text_encoders()
    denoiser = base.load_denoiser()
    encoders = base.text_encoders() if config.text_encoders else None
    adapter = Adapter(
        denoiser,
        config,
        base.spec.targets[config.targets],
        seed=1,
        conv_targets=base.spec.conv_targets,
        text_encoders=encoders,
        text_targets=base.spec.text_targets,
    )
    source = torch.Generator().manual_seed(4)
    state = adapter.state_dict()
    moved = {name: value + torch.randn(value.shape, generator=source) * 0.05 for name, value in state.items()}
    if dtype != torch.float32:
        moved = {name: value.to(dtype).float() for name, value in moved.items()}
    adapter.load_state_dict(moved)
    file = folder / f"tiny_{family}.safetensors"
    file.write_bytes(serialize(to_comfy(adapter.deltas(), base, dtype), METADATA))
    return Case(file, settings, base, adapter, outputs(base, adapter.roots))
