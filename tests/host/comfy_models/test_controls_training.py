"""Models that edit, while they are trained: each sample's own pictures, before the denoiser and the text encoder."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from ..pack import module
from .editing import BASES, MOST, NAMES, ZOO, base_of, bytes_of, fills, made, parts_of, shown, stock, target
from .hosted import linked

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


@pytest.fixture
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Our models are offered, and references have 64 x 64 pixels: a megapixel takes its time."""
    registry, provider = module("trainer_core.families.registry"), module("nodes.comfy_models.provider")
    monkeypatch.setattr(registry, "_PROVIDERS", [provider.ComfyModels()])
    edits = module("nodes.comfy_models.edits")
    for name, edit in edits.EDITS.items():
        if edit.reference is not None:
            monkeypatch.setitem(edits.EDITS, name, replace(edit, reference=edits.area(64 * 64, 16)))


def run_of(name: str, folder: Path, clip: Any = None, **sections: Any) -> Any:
    """A run that is through."""
    from .zoo import encoders

    model = ZOO[name]
    base = linked(model.make(), clip or encoders.clip(model), encoders.vae(model))
    config = module("trainer_core.config")
    given = {"name": "edit", "model": base, "adapter": {"rank": 2}, **sections}
    run = module("trainer_core.api").new_run(folder, config.validated(config.JobConfig, given))
    assert run.run_here(lambda _: None) == "finished"
    return run.run


@pytest.mark.usefixtures("_quick")
@pytest.mark.parametrize("name", NAMES)
def test_trains_on_pairs_and_recomputed_blocks_change_nothing(name: str, tmp_path: Path) -> None:
    """Control images of two aspects in one batch; after two updates the LoRA is the same with recomputed blocks."""
    (width, height), count = target(name), MOST.get(name, 2)
    folders = [tmp_path / folder for folder in ("after", *(f"before{k}" for k in range(count)))]
    for number, folder in enumerate(folders):
        folder.mkdir()
        for k in range(4):
            wide = 2 * width if number and k % 2 else width
            Image.fromarray(bytes_of(wide, height, seed=10 * number + k)).save(folder / f"{k}.png")
    controls = [str(folder) for folder in folders[1:]]
    data = {"folder": str(folders[0]), "control_folders": controls, "resolutions": [width], "default_caption": "a b"}
    plain, again = (
        run_of(
            name,
            tmp_path / f"runs{recomputed}",
            datasets=[data],
            train={"steps": 2, "batch_size": 2, "learning_rate": 1e-3, "gradient_checkpointing": recomputed},
        )
        for recomputed in (False, True)
    )
    losses = [[line["loss"] for line in run.metrics() if "loss" in line] for run in (plain, again)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    ours, theirs = (load_file(run.latest().lora) for run in (plain, again))
    assert ours.keys() == theirs.keys()
    assert any((".lora_B" in key and value.any()) or ("lora_up" in key and value.any()) for key, value in ours.items())
    for key, value in ours.items():
        torch.testing.assert_close(theirs[key], value, rtol=1e-3, atol=1e-4)


@pytest.mark.usefixtures("_quick")
def test_a_run_shows_its_pictures_with_every_text(tmp_path: Path) -> None:
    """Captions, class words in the trigger's place, the blank prompt, validation and previews: each with the picture
    of its own sample. What is drawn without pictures has none."""
    from .zoo import encoders

    clip = encoders.clip(ZOO["qwen_edit"])
    asked: list[tuple[str, tuple[int, ...]]] = []
    real = clip.tokenize

    def tokenize(text: str, **options: Any) -> Any:
        greys = tuple(round(float(one.mean()) * 255) for one in options.get("images", []))
        asked.append((text.split("<|vision_end|>")[-1], greys))
        return real(text, **options)

    clip.tokenize = tokenize
    grey = {"a": 40, "b": 90, "c": 200}
    for folder in ("after", "before"):
        (tmp_path / folder).mkdir()
    for name, value in grey.items():
        Image.new("RGB", (64, 64), (value, 9, 9)).save(tmp_path / "after" / f"{name}.png")
        (tmp_path / "after" / f"{name}.txt").write_text(f"a dog {name}")
        Image.new("RGB", (96, 64), (value,) * 3).save(tmp_path / "before" / f"{name}.png")
    folders = {"folder": str(tmp_path / "after"), "control_folders": [str(tmp_path / "before")]}
    run = run_of(
        "qwen_edit",
        tmp_path / "runs",
        clip,
        datasets=[{**folders, "resolutions": [64], "trigger": "dog"}],
        train={"steps": 1, "batch_size": 1},
        regularization={
            "output_preservation": True,
            "output_preservation_class": "animal",
            "blank_preservation": True,
        },
        validation={"share": 0.34, "every": 1},
        sample={"prompts": ["paint it"], "every": 1, "steps": 1, "width": 64, "height": 64},
    )
    assert max(map(asked.count, asked)) <= 2, "for the data and for previews, however a batch is filled up"
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
    before, after = sorted((run.path / "samples").rglob("*.png"))
    assert Image.open(before).info["controls"] == Image.open(after).info["controls"] == f"before/{min(kept)}.png"
