"""What training takes: the plan for published models at their real size, and a step predicted against one counted.

    python benchmarks/memory.py table [COMFYUI] [--only NAME] [--rank 16]
    python benchmarks/memory.py check

`table` predicts, without weights, what LoRAs of the models that people train take at 1024 px (video: 81 frames of
832x480), and which setting the plan chooses on cards of 8 to 80 GB, in bf16 and with a quantized base. `check` trains
the embedded base for two steps under each setting and counts: by the tracker, and by torch's own allocator. Both print
Markdown for RESULTS.md.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

CARDS = (8, 12, 16, 24, 48, 80)
MODELS = {
    "FLUX.1-dev": "FLUX.1-dev and Kontext",
    "Z-Image": "Z-Image-Turbo",
    "Qwen-Image": "Qwen-Image and Edit-2509",
    "FLUX.2 klein 4B": "FLUX.2-klein-base-4B",
    "FLUX.2 klein 9B": "FLUX.2-klein-base-9B",
    "Wan 2.2 T2V 14B": "Wan2.2-T2V-A14B",
}
"""By their names in `tests/host/comfy_models/zoo/real.py`."""
FORMATS = ("none", "int8", "4bit")


def planned(name: str, rank: int) -> None:
    """One model: its settings, and the choice for each card and format."""
    import torch

    from tests.host.comfy_models.hosted import patcher_of
    from tests.host.comfy_models.zoo.real import REAL
    from tests.host.pack import module

    _, model = REAL[MODELS[name]]
    started, cpu = time.perf_counter(), time.process_time()
    found = model.found()
    found.set_inference_dtype(torch.bfloat16, None)
    whole = found.get_model({}, "", device="meta").eval().requires_grad_(False)
    base_of, linked = module("nodes.comfy_models.base").ComfyBase, module("nodes.comfy_models.loading").Linked
    config, conditioning = module("trainer_core.config"), module("nodes.comfy_models.conditioning")
    plan_of, prediction = module("trainer_core.memory.plan"), module("trainer_core.memory.prediction")
    inputs, scan = module("trainer_core.memory.inputs"), module("trainer_core.data.scan")
    kept = linked((patcher_of(whole),))
    base = base_of(kept, config.ModelConfig(device="cpu"))
    options = model.text(lambda *shape: torch.zeros(shape))
    text = conditioning.to_embedding([[options.pop("cross_attn"), options]], torch.bfloat16)
    moves = base.spec.frame_rate is not None
    size, frames = ((832, 480), 81) if moves else ((1024, 1024), 1)
    item = scan.Item(Path("x.png"), "x.png", *size, ("a",))
    job = config.JobConfig(
        name="planned",
        model=config.ModelConfig(device="cpu", dtype="bfloat16"),
        adapter=config.AdapterConfig(rank=rank),
        datasets=(config.DatasetConfig(folder=".", resolutions=(1024,)),),
        train=config.TrainConfig(steps=1),
    )
    data = inputs.described(job, base, lambda _: text, [[scan.Sample(0, item, size, frames)]])
    batches = inputs.largest_batches(job, base, data)
    outlines = {}
    for form in FORMATS:
        base.config = config.ModelConfig(device="cpu", quantization=form)
        outlines[form] = prediction.outline_of(base.imitated())
    base.config = config.ModelConfig(device="cpu")
    twin = base.imitated()
    plan = plan_of.Plan(lambda one: prediction.step_use(job, twin, batches, one, outlines["none"]), outlines["none"])
    rows = []
    for row in plan.rows():
        if row.settings.streamed or row.settings.offload_inputs:
            break
        rows.append(f"{row.label}: {row.peak / 2**30:.1f} GB, {row.time:.2f}")
    cells = []
    for form in FORMATS:
        plan.outline = outlines[form]
        for card in CARDS:
            row = plan.chosen(card * 2**30 - plan_of.CONTEXT)
            cells.append(f"{row.label} ({row.peak / 2**30:.1f} GB, x{row.time:.2f})" if row else "-")
    wall, cpu = time.perf_counter() - started, time.process_time() - cpu
    weights = ", ".join(f"{form} {one.total / 2**30:.1f}" for form, one in outlines.items())
    print(f"\n{name}: weights in GB: {weights}; {'; '.join(rows)}. {cpu:.0f} s of CPU, {wall:.0f} s of wall time")
    for number, form in enumerate(FORMATS):
        given = cells[number * len(CARDS) : (number + 1) * len(CARDS)]
        print(f"| {name} | {'bf16' if form == 'none' else form} | {' | '.join(given)} |", flush=True)


def check() -> None:
    """The embedded base, predicted and counted."""
    import torch

    from tests.trainer_core.memory.counting import batches_of, counted, predicted
    from trainer_core.demo import plain_job
    from trainer_core.families.registry import open_base
    from trainer_core.memory.settings import MemorySettings, label

    job = plain_job()
    base = open_base(job.model)
    base.load_text_encoders()
    with torch.no_grad():
        text = base.encode_prompts(["a"])[0]
    base.free_text_encoders()
    batches = batches_of(job, base, lambda _: text)
    print("| setting | predicted, MB | counted, MB | ratio | TFLOP predicted / counted |\n|---|---|---|---|---|")
    for settings in (
        MemorySettings(recompute=False),
        MemorySettings(every=2),
        MemorySettings(keep_attention=True),
        MemorySettings(),
    ):
        said, real = predicted(job, base, batches, settings), counted(job, base, batches, settings)
        ratio, flops = said.peak / real.peak, said.flops / real.flops
        print(
            f"| {label(settings)} | {said.peak / 1e6:.2f} | {real.peak / 1e6:.2f} | {ratio:.4f} | {flops:.4f} |",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("table", "check"))
    parser.add_argument("comfyui", nargs="?", type=Path, default=Path.home() / "ComfyUI")
    parser.add_argument("--only", choices=MODELS)
    parser.add_argument("--rank", type=int, default=16)
    given = parser.parse_args()
    if given.what == "check":
        check()
        return
    from tests.host.pack import comfy_on_cpu

    comfy_on_cpu(given.comfyui)
    from comfy.ldm.modules import attention

    for name, loaded in list(sys.modules.items()):  # attention as on GPUs
        for function in ("optimized_attention", "optimized_attention_masked"):
            if name.startswith("comfy.") and hasattr(loaded, function):
                setattr(loaded, function, attention.attention_pytorch)
    for name in [given.only] if given.only else MODELS:
        planned(name, given.rank)


if __name__ == "__main__":
    main()
