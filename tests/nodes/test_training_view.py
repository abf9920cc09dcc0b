"""What a user reads under the node that trains."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

Pack = Callable[[str], ModuleType]


@pytest.fixture
def view_module(pack: Pack) -> ModuleType:
    return pack("nodes.training_view")


def test_text_tells_step_loss_speed_time_left_and_memory(pack: Pack, view_module: ModuleType) -> None:
    events = pack("trainer_core.runs.events")
    view = view_module.TrainingView()
    view.apply(events.Phase("encoding images", 3, 12))
    assert view.text() == "encoding images 3 of 12"
    view.apply(events.StepDone(120, 300, 0.12345, 1e-4, 0.251, 45.2, 3 * 2**30))
    assert view.text() == "step 120 / 300 · loss 0.1235 · lr 1.00e-04\n0.25 s/step · 0:45 left · 3.0 GB"
    view.apply(events.CheckpointSaved(120, Path("x")))
    view.apply(events.Warning("the disk is nearly full"))
    assert view.text().splitlines()[2:] == ["saved at step 120", "⚠ the disk is nearly full"]
    assert view.text(saved_as="a.safetensors").splitlines()[2] == "saved as a.safetensors"
    assert (view.step, view.steps) == (120, 300)


def test_text_tells_how_the_run_fits_into_memory(pack: Pack, view_module: ModuleType) -> None:
    events = pack("trainer_core.runs.events")
    view = view_module.TrainingView()
    view.apply(events.MemoryPlanned("memory: gradient checkpointing; about 7.0 GB of 8.0 GB"))
    view.apply(events.Phase("loading the base", 0, 1))
    assert view.text() == "memory: gradient checkpointing; about 7.0 GB of 8.0 GB\nloading the base"


def test_text_tells_further_losses_where_there_are_any(pack: Pack, view_module: ModuleType) -> None:
    events = pack("trainer_core.runs.events")
    view = view_module.TrainingView()
    view.apply(events.StepDone(1, 9, 0.5, 1e-4, 1.0, 8.0, 0, {"output_preservation": 0.25}))
    view.apply(events.StepDone(2, 9, 0.5, 1e-4, 1.0, 7.0, 0))  # a step without a preservation pass
    view.apply(events.ValidationDone(1, 0.75))
    assert view.text().splitlines()[2:] == ["output preservation loss 0.2500", "validation loss 0.7500 at step 1"]
    view.apply(events.ValidationDone(2, 0.5))
    assert view.text().splitlines()[-1] == "validation loss 0.5000 at step 2"
    view.apply(events.ValidationDone(3, 0.625))
    assert view.text().splitlines()[-1] == "validation loss 0.6250 at step 3 · lowest 0.5000 at step 2"


def test_text_tells_of_batches_that_were_passed_over(pack: Pack, view_module: ModuleType) -> None:
    events = pack("trainer_core.runs.events")
    view = view_module.TrainingView()
    view.apply(events.Skipped(3, "loss", ("0/a", "0/b")))
    assert view.text().splitlines()[0] == "⚠ 1 batch skipped at step 3: loss not finite (0/a, 0/b)"
    view.apply(events.Skipped(7, "gradient", ("0/c", "0/d", "0/e", "0/f")))
    expected = "⚠ 2 batches skipped, the last at step 7: gradient not finite (0/c, 0/d, 0/e, …)"
    assert view.text().splitlines()[0] == expected


def test_text_tells_how_the_run_goes_on_waits_and_is_left(pack: Pack, view_module: ModuleType) -> None:
    events = pack("trainer_core.runs.events")
    view = view_module.TrainingView(origin="goes on with a from step 5")
    view.apply(events.StateChanged("queued", 5, 9))
    view.apply(events.Phase("waiting for the device, which other runs use (b)", 0, 1))
    waiting = ["goes on with a from step 5", "waiting for the device, which other runs use (b)"]
    assert (view.state, view.text().splitlines()) == ("queued", waiting)
    view.apply(events.StateChanged("running", 5, 9))
    assert (view.state, view.text()) == ("running", "goes on with a from step 5")
    view.apply(events.StateChanged("paused", 6, 9))
    assert view.text().splitlines()[-1] == "paused: queue the workflow again to go on"
    assert (view.step, view.steps) == (6, 9)


def test_samples_are_those_of_the_latest_step(pack: Pack, view_module: ModuleType) -> None:
    events = pack("trainer_core.runs.events")
    view = view_module.TrainingView()
    for step, index in ((0, 0), (0, 1), (250, 0)):
        view.apply(events.SampleReady(step, Path(f"{step}_{index}.png"), "a prompt", index))
    assert view.samples == [Path("250_0.png")]


def test_text_tells_what_is_done_for_minutes(pack: Pack, view_module: ModuleType) -> None:
    events = pack("trainer_core.runs.events")
    view = view_module.TrainingView()
    view.apply(events.Phase("loading the base", 0, 1))
    view.apply(events.Phase("drawing sample", 2, 4))
    assert view.text() == "drawing sample 2 of 4"
    view.apply(events.SampleReady(0, Path("1.png"), "a prompt", 1))
    assert view.text() == "training"  # the first step takes long, and nothing else is told of it
    view.apply(events.StepDone(1, 9, 0.5, 1e-4, 1.0, 8.0, 0))
    assert "training" not in view.text()


def test_text_answers_what_the_user_asked_for(pack: Pack, view_module: ModuleType) -> None:
    events = pack("trainer_core.runs.events")
    view = view_module.TrainingView()
    view.apply(events.StateChanged("running", 0, 90))
    view.apply(events.CheckpointSaved(40, Path("x")))
    view.apply(events.RequestDone("save", 40))
    view.apply(events.RequestDone("sample", 41))
    assert view.text().splitlines() == ["saved at step 40 as you asked", "samples drawn at step 41 as you asked"]
    assert view.answered == {"save": 40, "sample": 41}
    view.apply(events.CheckpointSaved(50, Path("x")))
    assert view.text().splitlines()[0] == "saved at step 50"


def test_warnings_name_widgets_and_notes_stay(pack: Pack, view_module: ModuleType) -> None:
    events = pack("trainer_core.runs.events")
    view = view_module.TrainingView(notes=["no samples are drawn"])
    view.apply(events.StateChanged("running", 0, 90))
    for number in range(3):
        view.apply(events.Warning(f"{number}: lower train.learning_rate"))
    assert view.text().splitlines() == [
        "⚠ no samples are drawn",
        "⚠ 1: lower learning_rate of Train LoRA",
        "⚠ 2: lower learning_rate of Train LoRA",
    ]
