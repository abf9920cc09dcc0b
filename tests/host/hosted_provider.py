"""A stand-in for `nodes/comfy_models/provider.py`: a family whose files are looked for, and which then is the embedded
base. The tests put it into a copy of the pack."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ...trainer_core.config import ModelConfig
from ...trainer_core.families.base import Base
from ...trainer_core.families.flux1.model import Flux


class Hosted(Flux):
    spec = replace(Flux.spec, name="hosted", title="Hosted")

    @classmethod
    def open(cls, model: ModelConfig) -> Base:
        from comfy.model_management import get_torch_device

        assert str(get_torch_device()) == "cpu"
        assert all(Path(file).is_absolute() and Path(file).is_file() for file in (model.source, *model.files.values()))
        return super().open(model.but(source="embedded", files={}))


class ComfyModels:
    def names(self) -> Sequence[str]:
        return ["hosted"]

    def family(self, name: str) -> type[Base] | None:
        return Hosted if name == "hosted" else None

    def claims(self, model: ModelConfig) -> str | None:
        return "hosted" if model.source.endswith(".safetensors") else None
