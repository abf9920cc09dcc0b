"""Models that edit, while they are trained: each sample's own pictures, before the denoiser and the text encoder."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from ..pack import module
from .editing import BASES, MOST, ZOO, base_of, fills, made, parts_of, shown, stock

pytestmark = pytest.mark.host


@pytest.fixture(scope="module", autouse=True)
def _bases() -> Iterator[None]:
    yield
    BASES.clear()


@pytest.mark.parametrize(
    "name", ["flux1_kontext", "qwen_edit_2511", "omnigen2_edit", "hidream_e1", "sd15_ip2p", "flux1_fill"]
)
def test_each_sample_of_a_batch_is_told_of_its_own_pictures(name: str) -> None:
    """Of other sizes and numbers; what the model predicts is what it does for the stock conditioning of each."""
    from .running import predict
    from .stock_edit import guided

    base, (patcher, _, _) = base_of(name), parts_of(name)
    count = MOST.get(name, 2)
    pictures = [shown(name, count), [one[::-1].copy() for one in shown(name, count)][-count if fills(name) else -1 :]]
    prompts = ["make it night", "now"]
    noisy = torch.cat([ZOO[name].streams(seed)[0] for seed in (2, 3)])
    t = torch.tensor([0.75, 0.3])
    given = base.collate([made(name, prompt, seen) for prompt, seen in zip(prompts, pictures, strict=True)], 1.0)
    with torch.no_grad():
        found = base.predict(base.load_denoiser(), {"main": noisy}, t, given)["main"]
    for row, (prompt, seen) in enumerate(zip(prompts, pictures, strict=True)):
        conditioning = stock(name, prompt, seen)
        if base.guidance_distilled:
            conditioning = guided(conditioning, 1.0)
        with torch.inference_mode():
            sigma = float(base.schedule.sigma(t[row : row + 1]))
            (expected,) = predict(patcher.model, [noisy[row : row + 1]], conditioning, sigma)
            blind = predict(patcher.model, [noisy[row : row + 1]], guided(stock_text(name, prompt), 1.0), sigma)[0]
        torch.testing.assert_close(found[row : row + 1], expected, rtol=1e-4, atol=1e-4)
        assert (expected - blind).abs().max() > 1e-3, "the pictures must matter"


def stock_text(name: str, prompt: str) -> Any:
    from .stock_edit import text

    return text(parts_of(name)[1], prompt)


def test_a_run_shows_its_pictures_with_every_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Captions, class words in the trigger's place, the blank prompt, validation and previews: each with the picture
    of its own sample. What is drawn without pictures has none."""
    from .zoo import encoders

    model = ZOO["qwen_edit"]
    clip, vae = encoders.clip(model), encoders.vae(model)
    asked: list[tuple[str, tuple[int, ...]]] = []
    real = clip.tokenize

    def tokenize(text: str, **options: Any) -> Any:
        asked.append(
            (
                text.split("<|vision_end|>")[-1],
                tuple(round(float(one.mean()) * 255) for one in options.get("images", [])),
            )
        )
        return real(text, **options)

    clip.tokenize = tokenize
    grey = {"a": 40, "b": 90, "c": 200}
    for folder in ("after", "before"):
        (tmp_path / folder).mkdir()
    for name, value in grey.items():
        Image.new("RGB", (64, 64), (value, 9, 9)).save(tmp_path / "after" / f"{name}.png")
        (tmp_path / "after" / f"{name}.txt").write_text(f"a dog {name}")
        Image.new("RGB", (96, 64), (value,) * 3).save(tmp_path / "before" / f"{name}.png")
    api, config = module("trainer_core.api"), module("trainer_core.config")
    registry, provider = module("trainer_core.families.registry"), module("nodes.comfy_models.provider")
    monkeypatch.setattr(registry, "_PROVIDERS", [provider.ComfyModels()])
    edits = module("nodes.comfy_models.edits")
    small = replace(edits.EDITS["QwenImage"], reference=edits.area(64 * 64, 8))  # a megapixel takes its time
    monkeypatch.setitem(edits.EDITS, "QwenImage", small)
    base, _ = module("nodes.comfy_models.links").linked_model((model.make(),), clip, vae, {"device": "cpu"})
    folders = {"folder": str(tmp_path / "after"), "control_folders": [str(tmp_path / "before")]}
    job = config.validated(
        config.JobConfig,
        {
            "name": "edit",
            "model": base,
            "adapter": {"rank": 2},
            "datasets": [{**folders, "resolutions": [64], "trigger": "dog"}],
            "train": {"steps": 1, "batch_size": 1},
            "regularization": {
                "output_preservation": True,
                "output_preservation_class": "animal",
                "blank_preservation": True,
            },
            "validation": {"share": 0.34, "every": 1},
            "sample": {"prompts": ["paint it"], "every": 1, "steps": 1, "width": 64, "height": 64},
        },
    )
    run = api.new_run(tmp_path / "runs", job)
    assert run.run_here(lambda _: None) == "finished"
    seen = {text: {pictures for one, pictures in asked if one == text} for text, _ in asked}
    for name, value in grey.items():
        assert seen[f"a dog {name}"] == {(value,)}
    kept = {name: value for name, value in grey.items() if f"a animal {name}" in seen}
    assert 0 < len(kept) < 3, "some validate"
    for name, value in kept.items():
        assert seen[f"a animal {name}"] == {(value,)}
    first = next(iter(kept.values()))
    assert {(value,) for value in kept.values()} <= seen[""] <= {(value,) for value in kept.values()} | {()}
    assert seen["paint it"] - {()} == {(first,)}
    before, after = sorted((run.run.path / "samples").rglob("*.png"))
    assert Image.open(before).info["controls"] == Image.open(after).info["controls"] == f"before/{min(kept)}.png"
