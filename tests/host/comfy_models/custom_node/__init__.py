"""A node pack for tests: models of the zoo in a real ComfyUI, as a loader would hand them over."""

from __future__ import annotations

import gc
import importlib.util
import json
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


class FoundryTestState(io.ComfyNode):
    """Tells what training could leave behind in the process and on a MODEL."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FoundryTestState",
            display_name="Test State",
            category="LoRA Foundry/tests",
            is_output_node=True,
            inputs=[io.Model.Input("model"), io.AnyType.Input("after", optional=True)],
        )

    @classmethod
    def fingerprint_inputs(cls, **_: Any) -> float:
        return float("nan")  # never from the cache

    @classmethod
    def execute(cls, model: Any, after: Any = None) -> io.NodeOutput:
        import comfy.model_base
        import comfy.model_management
        import psutil

        gc.collect()
        modules = list(model.model.modules())
        state = {
            "in_training": comfy.model_management.in_training,
            "hooks": sum(len(one._forward_hooks) + len(one._forward_pre_hooks) for one in modules),
            "forwards": sum("forward" in vars(one) for one in modules),
            "kinds": sorted({type(one).__name__ for one in modules}),
            "wrappers": [*model.wrappers, *model.model_options["transformer_options"].get("wrappers", {})],
            "models": sum(isinstance(one, comfy.model_base.BaseModel) for one in gc.get_objects()),
            "rss": psutil.Process().memory_info().rss,
        }
        return io.NodeOutput(ui={"text": [json.dumps(state)]})


class TestModels(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [FoundryTestModel, FoundryTestState]


async def comfy_entrypoint() -> TestModels:
    return TestModels()
