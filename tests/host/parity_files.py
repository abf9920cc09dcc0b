"""Run by test_parity.py in a process of its own: single files with adapters, in the trainer and in ComfyUI, in fp32.

ComfyUI loads each file as its stock loaders do, and the LoRA file as LoraLoader does, with a strength for the denoiser
and one for the text encoders; both draw one prediction from the same noise, time and prompt. Prints
{"<family> <adapter> <strength>": {"effect": …, "text": …, "denoiser": …}} as JSON: how much the adapter changes the
prediction, and by how much ComfyUI's text embedding and its prediction (from its own embedding) differ from ours,
relative to ours. Arguments: ComfyUI's folder, the pack's, a scratch folder, and "family=file" for each file; the text
encoders and VAE of a diffusion model lie beside it.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

comfyui, pack, scratch = (Path(argument) for argument in sys.argv[1:4])
files = dict(argument.split("=", 1) for argument in sys.argv[4:])
sys.argv = ["main.py", "--cpu", "--force-fp32", "--fp32-text-enc", "--disable-mmap"]
sys.path.insert(0, str(comfyui))
sys.path.append(str(pack))

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()

import comfy.model_management  # noqa: E402
import comfy.sd  # noqa: E402
import comfy.utils  # noqa: E402
import torch  # noqa: E402
from torch import Tensor  # noqa: E402

from trainer_core.adapters.adapter import Adapter  # noqa: E402
from trainer_core.adapters.comfy_format import to_comfy  # noqa: E402
from trainer_core.config import AdapterConfig, ModelConfig  # noqa: E402
from trainer_core.families.conditioning import MAIN, Collated  # noqa: E402
from trainer_core.families.registry import open_base  # noqa: E402
from trainer_core.families.sources.tokenizers import register_tokenizers  # noqa: E402
from trainer_core.families.texts import stack_text  # noqa: E402
from trainer_core.safetensors_file import serialize  # noqa: E402

PROMPT = "a red circle on a white background"
GUIDANCE = 3.5
SIZES = {"height": 80, "width": 96, "crop_h": 8, "crop_w": 4, "target_height": 64, "target_width": 64}
ADAPTERS: dict[str, tuple[dict[str, Any], tuple[float, ...]]] = {
    "lora": ({"rank": 4, "alpha": 3.0}, (1.0, 0.7)),
    "conv": ({"rank": 4, "conv_rank": 2, "conv_alpha": 3.0}, (1.0, 0.7)),
    "dora": ({"type": "dora", "rank": 4, "conv_rank": 2}, (1.0,)),
    "lokr": ({"type": "lokr", "rank": 4, "conv_rank": 2}, (1.0,)),
    "loha": ({"type": "loha", "rank": 4, "conv_rank": 2}, (1.0,)),
}
SHARE = {"sd15": 0.03, "sdxl": 0.03, "flux1": 0.1}
"""How far adapters are from where they start, so that each changes a lot."""
TEXT_LAYERS = 3  # of small_checkpoints.py, which needs pytest's import


class Warnings(logging.Handler):
    """Keeps what ComfyUI logs as a warning or worse."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())


class Theirs:
    """A file in ComfyUI."""

    def __init__(self, family: str, file: str) -> None:
        self.clip: Any = None
        if family == "flux1":
            self.model = comfy.sd.load_diffusion_model(file, model_options={"dtype": torch.float32})
            return
        small = {"num_hidden_layers": TEXT_LAYERS}
        self.model, self.clip, *_ = comfy.sd.load_checkpoint_guess_config(
            file, output_vae=False, te_model_options={"clip_l_model_config": small, "clip_g_model_config": small}
        )

    def drawn(self, lora: Path | None, strength: float, x: Tensor, t: Tensor, given: dict[str, Tensor]) -> Any:
        """Text embedding and prediction; `given` is the embedding where ComfyUI has no text encoder."""
        model, clip = self.model, self.clip
        if lora is not None:
            tensors, metadata = comfy.utils.load_torch_file(str(lora), safe_load=True, return_metadata=True)
            model, clip = comfy.sd.load_lora_for_models(
                model, clip, tensors, strength, strength if clip else 0, lora_metadata=metadata
            )
        text, pooled = given["text"], given.get("pooled")
        if clip is not None:
            text, pooled = clip.encode_from_tokens(clip.tokenize(PROMPT), return_pooled=True)
        comfy.model_management.load_models_gpu([model], force_full_load=True)
        denoiser = model.model.diffusion_model
        assert all(weight.dtype == torch.float32 for weight in denoiser.parameters())
        y = pooled if clip is None else model.model.encode_adm(pooled_output=pooled, **SIZES)
        guidance = {"guidance": torch.tensor([GUIDANCE])} if clip is None else {}  # of FLUX.1 alone
        out = denoiser(x, t, context=text.float(), y=y, **guidance)
        comfy.model_management.unload_all_models()
        return text.float(), out.float()


def relative(left: Tensor, right: Tensor) -> float:
    return float((left - right).norm() / right.norm())


def compare(family: str, file: str) -> Iterator[tuple[str, dict[str, float]]]:
    folder = Path(file).parent
    beside: dict[str, Any] = {}
    if family == "flux1":
        beside = {part: f"{folder / part}.safetensors" for part in ("text_encoder", "text_encoder_2", "vae")}
        beside["tokenizers"] = str(folder / "tokenizers")
    config = ModelConfig(family=family, source=file, device="cpu", dtype="float32", **beside)
    base, theirs = open_base(config), Theirs(family, file)
    random = torch.Generator().manual_seed(0)
    x = torch.randn(1, base.spec.main.channels, 8, 8, generator=random)
    t = torch.tensor([0.4])
    # what ComfyUI's denoiser reads as time: the step of a thousand for DDPM, the time itself for flow
    their_t = torch.tensor([0.4 if base.schedule.prediction == "flow" else 400.0])
    sizes = torch.tensor([[SIZES[name] for name in SIZES]], dtype=torch.float32)

    def ours(denoiser: torch.nn.Module) -> tuple[dict[str, Tensor], Tensor]:
        text = stack_text(base.encode_prompts([PROMPT]), torch.device("cpu"))
        given = Collated(text, time_ids=sizes, guidance=GUIDANCE)
        return text, base.predict(denoiser, {MAIN: x}, t, given)[MAIN]

    base.load_text_encoders()
    bare_text, bare = ours(base.load_denoiser())
    text, out = theirs.drawn(None, 0, x, their_t, bare_text)
    yield "base", {"effect": 1.0, "text": relative(text, bare_text["text"]), "denoiser": relative(out, bare)}
    for name, (settings, strengths) in ADAPTERS.items():
        if not base.spec.conv_targets:
            settings = {key: value for key, value in settings.items() if not key.startswith("conv")}
        base.free_text_encoders()
        base.load_text_encoders()
        denoiser, encoders = base.load_denoiser(), base.text_encoders() if base.spec.lora.text_encoders else {}
        adapter = Adapter(
            denoiser,
            AdapterConfig(**settings, targets="all", text_encoders=bool(encoders)),
            base.spec.targets["all"],
            seed=0,
            conv_targets=base.spec.conv_targets,
            text_encoders=encoders,
            text_targets=base.spec.text_targets,
        )
        state = adapter.state_dict().items()
        adapter.load_state_dict(
            {key: value + torch.randn(value.shape, generator=random) * SHARE[family] for key, value in state}
        )
        lora = scratch / f"{family}_{name}.safetensors"
        lora.write_bytes(serialize(to_comfy(adapter.deltas(), base, torch.float32), {}))
        for strength in strengths:
            adapter.set_strength(strength)
            our_text, our_out = ours(denoiser)
            text, out = theirs.drawn(lora, strength, x, their_t, our_text)
            yield (
                f"{name} {strength}",
                {
                    "effect": relative(our_out, bare),
                    "text effect": relative(our_text["text"], bare_text["text"]),
                    "text": relative(text, our_text["text"]),
                    "denoiser": relative(out, our_out),
                },
            )


@torch.no_grad()
def main() -> None:
    register_tokenizers("clip", comfyui / "comfy" / "sd1_tokenizer")
    warnings = Warnings()
    logging.getLogger().addHandler(warnings)
    found = {f"{family} {name}": one for family, file in files.items() for name, one in compare(family, file)}
    bad = [text for text in warnings.texts if "not loaded" in text.lower() or "error" in text.lower()]
    print("RESULT" + json.dumps({"found": found, "bad": bad}))


main()
