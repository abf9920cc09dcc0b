"""Training a base in float16: its gradients are those of float32, and what its range cannot hold is dealt with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from trainer_core.config import JobConfig
from trainer_core.job import TrainingJob
from trainer_core.runs.events import Event, StepDone, Warning
from trainer_core.runs.run_folder import RunFolder
from trainer_core.safetensors_file import read_header
from trainer_core.training import update
from trainer_core.training.loop import Trainer
from trainer_core.training.update import NotFinite

from .updates import update_with

Jobs = Callable[..., JobConfig]
HALF = {"model": {"dtype": "float16"}}


def gradients(trainer: Trainer, size: int, monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """Those of an update over one micro-batch, of an adapter as it is after its first step: its zeros are 1e-4."""
    with torch.no_grad():
        for number, parameter in enumerate(trainer.experts.active.adapter.parameters()):
            if not parameter.any():
                parameter.copy_(1e-4 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number)))
    made: list[Tensor] = []
    keep = lambda: made.extend(one.grad.clone() for one in trainer.experts.active.adapter.parameters())  # noqa: E731
    monkeypatch.setattr(trainer.experts.active.updater.optimizer, "step", keep)
    batch = trainer.batches.get(0)[0].samples
    update_with(trainer, (batch * size)[:size])
    return made


def test_the_gradients_are_those_of_float32(
    job_of: Jobs, trainer_of: Callable[..., Trainer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All layers, a batch of 32. At a scale of 2^40, which overflows, the same step finds one that does not."""
    found = {}
    for name, dtype, highest in (("exact", "float32", 16), ("half", "float16", 16), ("too high", "float16", 40)):
        monkeypatch.setattr(update, "HIGHEST_SCALE", highest)
        settings = {"batch_size": 4, "max_grad_norm": 0}
        trainer = trainer_of(
            job_of(model={"dtype": dtype}, adapter={"targets": "all"}, train=settings), tmp_path / name
        )
        found[name] = gradients(trainer, 32, monkeypatch)
    assert trainer.experts.active.updater.scale is not None
    assert 0 < trainer.experts.active.updater.scale < 40
    whole = {name: torch.cat([one.flatten().double() for one in tensors]) for name, tensors in found.items()}
    for name in ("half", "too high"):
        cosine = torch.nn.functional.cosine_similarity(whole["exact"], whole[name], dim=0).item()
        assert cosine > 0.999
        assert whole[name].norm().item() == pytest.approx(whole["exact"].norm().item(), rel=1e-2)
        pairs = zip(found["exact"], found[name], strict=True)
        assert [k for k, (exact, half) in enumerate(pairs) if exact.any() and not half.any()] == []


def test_a_gradient_that_no_scale_helps_is_passed_over(job_of: Jobs, trainer_of: Callable[..., Trainer]) -> None:
    trainer = trainer_of(job_of(**HALF, train={"skip_limit": 0}))
    next(iter(trainer.experts.active.adapter.parameters())).register_hook(lambda gradient: gradient * torch.inf)
    with pytest.raises(NotFinite, match="gradient is not finite"):
        trainer.update()
    assert trainer.experts.active.updater.scale == 16, "one odd batch does not lower it for the others"


def test_resume_goes_on_at_the_same_scale(job_of: Jobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(update, "HIGHEST_SCALE", 40)
    monkeypatch.setattr(update, "_SCALE_GROWS_EVERY", 3)
    job, events = job_of(**HALF, train={"steps": 5}), list[Event]()
    straight = TrainingJob.new(tmp_path / "straight", job)
    straight.run_here(events.append)
    stopping = TrainingJob.new(tmp_path / "stopped", job)
    stopping.run_here(lambda event: stopping.stop() if isinstance(event, StepDone) and event.step == 2 else None)
    resumed = RunFolder.open(stopping.run.path)
    between = resumed.latest()
    assert TrainingJob(resumed).run_here(lambda _: None) == "finished"
    whole, cut = straight.run.latest(), resumed.latest()
    assert whole is not None
    assert cut is not None
    assert between is not None
    assert cut.lora.read_bytes() == whole.lora.read_bytes()
    assert cut.state.read_bytes() == whole.state.read_bytes()
    assert 0 < int(read_header(cut.state)["__metadata__"]["loss_scale"]) < 40
    assert any(isinstance(event, Warning) and "float16" in event.message for event in events)


def test_other_precisions_know_no_scale(job_of: Jobs, trainer_of: Callable[..., Trainer], tmp_path: Path) -> None:
    for dtype in ("float32", "bfloat16"):
        assert trainer_of(job_of(model={"dtype": dtype}), tmp_path / dtype).experts.active.updater.scale is None
