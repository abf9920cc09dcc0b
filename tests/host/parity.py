"""Run by test_parity.py in a process of its own: the adapted denoiser in trainer and ComfyUI, on the same inputs.

Prints {"<adapter> <strength>": relative difference} as JSON. Arguments: ComfyUI's folder, the pack's, a scratch folder.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

comfyui, pack, scratch = (Path(argument) for argument in sys.argv[1:])
sys.argv = ["main.py", "--cpu"]
sys.path.insert(0, str(comfyui))
sys.path.append(str(pack))

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()

import comfy.model_management  # noqa: E402
import comfy.sd  # noqa: E402
import comfy.utils  # noqa: E402
import torch  # noqa: E402

from trainer_core.adapters.adapter import Adapter  # noqa: E402
from trainer_core.adapters.comfy_format import to_comfy  # noqa: E402
from trainer_core.config import AdapterConfig, ModelConfig  # noqa: E402
from trainer_core.families.base import Base  # noqa: E402
from trainer_core.families.conditioning import MAIN, Collated  # noqa: E402
from trainer_core.families.registry import open_base  # noqa: E402
from trainer_core.families.texts import stack_text  # noqa: E402
from trainer_core.safetensors_file import serialize  # noqa: E402

STRENGTHS = (1.0, 0.5)
ADAPTERS: dict[str, dict[str, str]] = {
    "attention": {"targets": "attention"},
    "all": {"targets": "all"},
    # on parts of layers that ComfyUI has fused
    "dora": {"targets": "attention", "type": "dora"},
    "lokr": {"targets": "all", "type": "lokr"},
    "loha": {"targets": "all", "type": "loha"},
}


def relative(left: torch.Tensor, right: torch.Tensor) -> float:
    return float((left - right).norm() / right.norm())


def in_comfyui(file: Path, lora: Path | None, strength: float, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """What ComfyUI's model gives, with a LoRA as its stock loaders apply it."""
    model = comfy.sd.load_diffusion_model(str(file), model_options={"dtype": torch.float32})
    if lora is not None:
        tensors, metadata = comfy.utils.load_torch_file(str(lora), safe_load=True, return_metadata=True)
        model, _ = comfy.sd.load_lora_for_models(model, None, tensors, strength, 0, lora_metadata=metadata)
    comfy.model_management.load_models_gpu([model], force_full_load=True)
    assert model.model.diffusion_model.dtype == torch.float32
    output = model.model.diffusion_model(inputs["x"], inputs["t"], context=inputs["text"], y=inputs["pooled"])
    comfy.model_management.unload_all_models()
    return output


def predicted(base: Base, denoiser: torch.nn.Module, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """What the trainer's denoiser gives."""
    text = {name: inputs[name] for name in ("text", "pooled")}
    return base.predict(denoiser, {MAIN: inputs["x"]}, inputs["t"], Collated(text))[MAIN]


@torch.no_grad()
def main() -> None:
    random = torch.Generator().manual_seed(0)
    base = open_base(ModelConfig(source="embedded", device="cpu", dtype="float32"))
    base.load_text_encoders()
    text = stack_text(base.encode_prompts(["a red circle on a white background", "a zorble"]), torch.device("cpu"))
    x = torch.randn(2, 16, 8, 8, generator=random)
    t = torch.tensor([0.9, 0.3])
    inputs = {"x": x, "t": t, "text": text["text"].float(), "pooled": text["pooled"].float()}
    found = {
        "base": relative(in_comfyui(base.denoiser_file, None, 0, inputs), predicted(base, base.load_denoiser(), inputs))
    }
    for name, settings in ADAPTERS.items():
        denoiser = base.load_denoiser()
        config = AdapterConfig(rank=8, alpha=3.0, **settings)  # type: ignore[arg-type]
        adapter = Adapter(denoiser, config, base.spec.targets[config.targets], seed=0)
        bare = predicted(base, denoiser, inputs)
        # trained, and more than usual, so that the adapter matters
        adapter.load_state_dict(
            {
                one: tensor + torch.randn(tensor.shape, generator=random) * (0.5 if "lora_B" in one else 0.1)
                for one, tensor in adapter.state_dict().items()
            }
        )
        file = scratch / f"{name}.safetensors"
        file.write_bytes(serialize(to_comfy(adapter.deltas(), base, torch.float32), {}))
        for strength in STRENGTHS:
            adapter.set_strength(strength)
            ours = predicted(base, denoiser, inputs)
            found[f"{name} {strength}"] = relative(in_comfyui(base.denoiser_file, file, strength, inputs), ours)
            found[f"effect of {name} {strength}"] = relative(ours, bare)
    print(json.dumps(found))


main()
