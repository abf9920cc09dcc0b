"""What a step of ComfyUI's own models is said to take, against what one takes, counted on real tensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ...trainer_core.memory.counting import batches_of, counted, predicted
from ..pack import PACK, module
from .zoo import MODELS

pytestmark = pytest.mark.host

CORE = f"{PACK}.trainer_core"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from PIL import Image

    made = tmp_path_factory.mktemp("data")
    Image.new("RGB", (64, 64), "red").save(made / "a.png")
    (made / "a.txt").write_text("a red circle")
    return made


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("name", ["flux1", "qwen_image", "wan21_t2v"])
def test_a_step_takes_what_was_predicted(name: str, recompute: bool, folder: Path) -> None:
    from .hosted import opened
    from .zoo.encoders import clip, vae

    config = module("trainer_core.config")
    model = MODELS[name]
    base = opened(model.make(), clip=clip(model), vae=vae(model))
    job = config.JobConfig(
        name="counted",
        model=config.ModelConfig(device="cpu"),
        adapter=config.AdapterConfig(rank=4),
        datasets=(config.DatasetConfig(folder=str(folder), resolutions=(64,)),),
        train=config.TrainConfig(steps=2, batch_size=2, ema_decay=0.9),
    )
    (text,) = base.encode_prompts(["a red circle"])
    settings = module("trainer_core.memory.settings").MemorySettings(recompute=recompute)
    batches = batches_of(job, base, lambda _: text, CORE)
    said: Any = predicted(job, base, batches, settings, CORE)
    real = counted(job, base, batches, settings, CORE)
    print(name, recompute, said, real.peak, real.at_peak, real.flops)
    assert said.peak == pytest.approx(real.peak, rel=0.02)
    assert said.flops == real.flops
