"""A node pack for tests: models of the zoo in a real ComfyUI, as a loader would hand them over."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

from comfy_api.latest import ComfyExtension, io

_ZOO = Path(__file__).resolve().parents[1] / "zoo"  # this folder lies in custom_nodes/ as a link


def _zoo() -> Any:
    name = "foundry_test_zoo"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(
            name, _ZOO / "__init__.py", submodule_search_locations=[str(_ZOO)]
        )
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


class FoundryTestModel(io.ComfyNode):
    """Makes a tiny model with random weights."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FoundryTestModel",
            display_name="Test Model",
            category="LoRA Foundry/tests",
            inputs=[io.Combo.Input("architecture", options=[*_zoo().MODELS]), io.Int.Input("seed", default=0)],
            outputs=[
                io.Model.Output(),
                io.Clip.Output(),
                io.Vae.Output(),
                io.Vae.Output("sound_vae", tooltip="None, unless the model makes sound."),
            ],
        )

    @classmethod
    def execute(cls, architecture: str, seed: int) -> io.NodeOutput:
        model = _zoo().MODELS[architecture]
        encoders = importlib.import_module(f"{_zoo().__name__}.encoders")
        sound = encoders.sound_vae(model) if len(model.latents) > 1 else None
        return io.NodeOutput(model.make(seed), encoders.clip(model), encoders.vae(model), sound)


class TestModels(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [FoundryTestModel]


async def comfy_entrypoint() -> TestModels:
    return TestModels()
