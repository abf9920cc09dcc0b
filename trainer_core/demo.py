"""`lora-foundry demo`: teaches the embedded base a new shape under an invented word, and judges it on pictures."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .config import (
    AdapterConfig,
    DatasetConfig,
    JobConfig,
    ModelConfig,
    RegularizationConfig,
    SaveConfig,
    TrainConfig,
)
from .embedded.demo_data import FOLDER, PICTURES, TRIGGER
from .embedded.shapes import SHAPES
from .files import write_atomically
from .runs.events import Event, Phase, StepDone

IMAGES = 200
"""Pictures behind each number."""
_GRID = (
    f"a red {TRIGGER} on a black background",
    f"a white {TRIGGER} on a purple background",
    f"a green {TRIGGER} on a yellow background",
    f"a purple {TRIGGER} on a yellow background",
    f"a green {TRIGGER} on a blue background",
    "a red circle on a black background",
    "a green star on a purple background",
    "a yellow square on a blue background",
    "a white ring on a green background",
)


def plain_job(seed: int = 42) -> JobConfig:
    """A recipe without any preservation: it teaches quickly and leaks. Benchmarks measure features against it."""
    return JobConfig(
        name="demo",
        model=ModelConfig(source="embedded", device="cpu"),
        adapter=AdapterConfig(rank=32, targets="all"),
        datasets=(DatasetConfig(folder=str(FOLDER), resolutions=(64,), trigger=TRIGGER, flip_x=True),),
        train=TrainConfig(steps=300, batch_size=16, learning_rate=1e-3, gradient_checkpointing=False, seed=seed),
        save=SaveConfig(every=100),
    )


def demo_job(seed: int = 42) -> JobConfig:
    """The demo's job: the plain recipe with Differential Output Preservation, which keeps the shape in its trigger.

    The class words are all shapes that the base knows; the best of what benchmarks/features.py compared.
    """
    preservation = RegularizationConfig(
        output_preservation=True, output_preservation_class=", ".join(SHAPES), output_preservation_weight=2.0
    )
    return plain_job(seed).model_copy(update={"regularization": preservation})


def run_demo(
    out: Path,
    json_file: Path | None = None,
    seed: int = 42,
    emit: Callable[[str], None] = print,
    listener: Callable[[Event], None] | None = None,
) -> dict[str, Any]:
    """Trains, judges, draws; gives what `--json` writes.

    Args:
        out: folder for the run and `demo.png`.
        json_file: where to write the result.
        seed: of the training; the pictures' seeds are fixed.
        emit: gets lines of text.
        listener: gets the training's events, instead of lines about them.

    Raises:
        FoundryError: if something fails on the way.
    """
    from .embedded.evaluate import compare
    from .job import TrainingJob

    started = time.monotonic()
    emit(f"Teaching the embedded base the word {TRIGGER!r} from {PICTURES} pictures in {FOLDER}")
    job = TrainingJob.new(out, demo_job(seed))
    job.run_here(listener or _lines(emit))
    trained = time.monotonic()
    checkpoint = job.run.latest()
    assert checkpoint is not None
    emit(f"Judging {IMAGES} pictures for each number, before and after")
    before, after = compare(checkpoint.lora, TRIGGER, IMAGES)
    picture = out / f"{job.run.name}.png"
    draw_grid(checkpoint.lora, picture)
    result = {
        name: {"before": round(getattr(before, name), 4), "after": round(getattr(after, name), 4)}
        for name in ("activation", "generalization", "leak")
    }
    emit("")
    emit(f"{'':16}{'before':>8}{'after':>8}")
    for name, values in result.items():
        emit(f"{name:16}{values['before']:8.3f}{values['after']:8.3f}")
    emit("")
    emit(f"LoRA     {checkpoint.lora}")
    emit(f"Picture  {picture}")
    emit(f"Training took {trained - started:.0f} s, all of it {time.monotonic() - started:.0f} s")
    if json_file:
        write_atomically(json_file, (json.dumps(result, indent=2) + "\n").encode())
    return result


def draw_grid(lora: Path, target: Path) -> None:
    """Writes the comparison: rows are prompts, columns the base and the LoRA, each with the same seeds."""
    from PIL import Image, ImageDraw

    from .data.images import png_bytes, to_image
    from .embedded.evaluate import Painter, Prompt
    from .embedded.shapes import CONCEPT, Scene

    seeds = (11, 12, 13)
    nowhere = Scene(CONCEPT, "red", "black")
    prompts = [Prompt(text, nowhere, seed) for text in _GRID for seed in seeds]
    columns = [("base", Painter().paint(prompts)), ("with the LoRA", Painter(lora).paint(prompts))]
    cell, label, gap, head = 96, 300, 16, 24
    width = label + 2 * (len(seeds) * cell + gap)
    image = Image.new("RGB", (width, head + len(_GRID) * (cell + 4)), "white")
    canvas = ImageDraw.Draw(image)
    for row, text in enumerate(_GRID):
        canvas.text((8, head + row * (cell + 4) + cell // 2 - 6), text, fill="black")
    for column, (title, pictures) in enumerate(columns):
        left = label + column * (len(seeds) * cell + gap)
        canvas.text((left, 6), title, fill="black")
        for k in range(len(prompts)):
            row, place = divmod(k, len(seeds))
            small = to_image(pictures[k]).resize((cell - 2, cell - 2), Image.Resampling.NEAREST)
            image.paste(small, (left + place * cell, head + row * (cell + 4)))
    write_atomically(target, png_bytes(image))


def _lines(emit: Callable[[str], None]) -> Callable[[Event], None]:
    """Events as lines: one for each piece of work, one for every fifty steps."""
    last = ""

    def listen(event: Event) -> None:
        nonlocal last
        if isinstance(event, Phase) and event.what != last:
            last = event.what
            emit(f"  {event.what}")
        elif isinstance(event, StepDone) and (event.step % 50 == 0 or event.step == event.steps):
            emit(
                f"  step {event.step}/{event.steps}  loss {event.loss:.4f}  {event.seconds_per_step:.2f} s/step  "
                f"ETA {event.eta_seconds:.0f} s"
            )

    return listen
