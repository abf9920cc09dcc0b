"""Every kind of adapter trains on a UNet with convolutions and text encoders, resumes exactly, starts from its file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file

from trainer_core.adapters.export import describe_lora
from trainer_core.config import JobConfig
from trainer_core.job import TrainingJob
from trainer_core.runs.events import StepDone
from trainer_core.runs.run_folder import RunFolder
from trainer_core.safetensors_file import read_tensors

from .small_models import SMALL

if TYPE_CHECKING:
    from trainer_core.training.loop import Trainer

Jobs = Callable[..., JobConfig]
Train = Callable[..., TrainingJob]

ADAPTERS: dict[str, dict[str, Any]] = {
    "lora": {"rank": 2, "alpha": 1.0, "conv_rank": 1, "text_encoders": True, "dropout": 0.2},
    "dora": {"type": "dora", "rank": 2, "conv_rank": 1, "text_encoders": True},
    "lokr": {"type": "lokr", "rank": 1, "conv_rank": 1, "text_encoders": True},
    "loha": {"type": "loha", "rank": 2, "conv_rank": 1, "text_encoders": True},
}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return SMALL["sd15"](tmp_path_factory.mktemp("models") / "sd15")


@pytest.mark.parametrize("kind", ADAPTERS)
def test_trains_resumes_and_starts_again(
    kind: str, source: Path, job_of: Jobs, train: Train, trainer_of: Callable[..., Trainer], tmp_path: Path
) -> None:
    model = {"family": "sd15", "source": str(source)}
    settings: dict[str, Any] = {
        "train": {"steps": 2, "learning_rate": 0.01, "text_encoder_lr": 0.004},
        "save": {"every": 1, "keep": 9, "dtype": "float32"},
    }
    job = job_of(kind, model=model, adapter=ADAPTERS[kind], **settings)
    straight = train(job).run

    stopped = TrainingJob.new(tmp_path / "stopped", job)

    def stop(event: object) -> None:
        if isinstance(event, StepDone) and event.step == 1:
            stopped.stop()

    assert stopped.run_here(stop) == "stopped"
    assert TrainingJob(RunFolder.open(stopped.run.path)).run_here(lambda _: None) == "finished"
    files = [run.latest().lora for run in (straight, stopped.run)]  # type: ignore[union-attr]
    assert files[0].read_bytes() == files[1].read_bytes()

    first = load_file(straight.checkpoints()[0].lora)
    last = load_file(files[0])
    moved = {name.split(".")[0] for name in last if not torch.equal(first[name], last[name])}
    facts = describe_lora(files[0])
    assert facts["names"] == "kohya"
    assert facts["text_encoder_modules"] == 3 * 6
    assert facts["convolutions"] > 0 or kind in ("lokr", "loha"), "theirs are flat in the file"
    assert len(moved) == facts["modules"], "each layer is trained"

    again = trainer_of(job.but(adapter=job.adapter.but(warm_start=str(files[0]))), tmp_path / "again")
    again.restore()
    trained = read_tensors(straight.latest().state)  # type: ignore[union-attr]
    for name, value in again.experts.active.adapter.state_dict().items():
        torch.testing.assert_close(value, trained[f"adapter.{name}"], rtol=1e-5, atol=1e-6)
