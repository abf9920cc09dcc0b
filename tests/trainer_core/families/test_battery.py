"""What every family must do, with its small model: train, accumulate, resume, export and sample, from both sources."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file

from trainer_core.adapters.applied import applied
from trainer_core.adapters.parsing import for_modules, parse
from trainer_core.config import JobConfig, ModelConfig, SampleConfig
from trainer_core.errors import ConfigError
from trainer_core.families.conditioning import Conditioning
from trainer_core.families.registry import family_spec, open_base
from trainer_core.families.texts import stack_text
from trainer_core.job import TrainingJob
from trainer_core.runs.events import StepDone
from trainer_core.runs.run_folder import RunFolder
from trainer_core.sampling.preview import preview

from ..predicting import predicted
from .checkpoints import write_checkpoint
from .small_models import SMALL

if TYPE_CHECKING:
    from trainer_core.training.loop import Trainer

Jobs = Callable[..., JobConfig]
Train = Callable[..., TrainingJob]

PICTURE = {"width": 64, "height": 64, "steps": 2}
every_family = pytest.mark.parametrize("name", SMALL)


@dataclass(frozen=True)
class Small:
    """One family's small model, from both sources."""

    folder: dict[str, Any]
    """Settings of `ModelConfig`."""
    file: dict[str, Any]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Small]:
    root, made = tmp_path_factory.mktemp("models"), {}

    def of(name: str) -> Small:
        if name not in made:
            folder = SMALL[name](root / name)
            layout = type(open_base(ModelConfig(family=name, source=str(folder), device="cpu"))).layout
            assert layout is not None
            file = write_checkpoint(folder, layout, root / f"{name}.safetensors")
            made[name] = Small(
                {"family": name, "source": str(folder)},
                {"family": name, "source": str(file), "tokenizers": str(folder)},
            )
        return made[name]

    return of


def lora(run: RunFolder) -> Path:
    latest = run.latest()
    assert latest is not None
    return latest.lora


def weights(trainer: Trainer) -> torch.Tensor:
    return torch.cat([value.flatten() for value in trainer.experts.active.adapter.state_dict().values()])


@every_family
def test_both_sources_train_the_same_lora(
    name: str, small: Callable[[str], Small], job_of: Jobs, train: Train, tmp_path: Path
) -> None:
    """Bit for bit, on the CPU in fp32: same weights, same draws, same steps."""
    runs = [
        train(job_of(name, model=model, train={"steps": 2}), root=tmp_path / kind).run
        for kind, model in vars(small(name)).items()
    ]
    one, other = (load_file(lora(run)) for run in runs)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)
    assert any(value.any() for key, value in one.items() if "lora_up" in key or "lora_B" in key)
    assert runs[0].metrics()[-1]["loss"] == runs[1].metrics()[-1]["loss"]


@every_family
def test_accumulation_equals_a_batch(
    name: str, small: Callable[[str], Small], job_of: Jobs, trainer_of: Callable[..., Trainer], tmp_path: Path
) -> None:
    """Two updates by plain gradient descent, so that a difference in the gradients is one in the weights."""
    settings = {"optimizer": "SGD", "learning_rate": 1.0, "weight_decay": 0.0, "max_grad_norm": 0.0}
    moved = []
    for count, way in enumerate(("batch_size", "gradient_accumulation")):
        job = job_of(name, model=small(name).folder, train={**settings, way: 4})
        trainer = trainer_of(job, tmp_path / str(count))
        start = weights(trainer)
        for _ in range(2):
            trainer.update()
            trainer.progress.step += 1
        moved.append(weights(trainer) - start)
    assert moved[0].norm() > 0
    assert (moved[0] - moved[1]).norm() < 1e-4 * moved[0].norm()


@every_family
def test_a_stopped_run_ends_like_one_that_never_was(
    name: str, small: Callable[[str], Small], job_of: Jobs, train: Train, tmp_path: Path
) -> None:
    """With all that draws numbers switched on, previews included."""
    job = job_of(
        name,
        model=small(name).folder,
        dataset={"flip_x": True, "crop": "random", "caption_dropout": 0.3},
        adapter={"dropout": 0.2, "text_encoders": bool(family_spec(name).lora.text_encoders)},
        train={"steps": 3, "batch_size": 2, "noise_offset": 0.05, "min_snr_gamma": 5.0},
        sample={**PICTURE, "prompts": ("a [trigger]",), "every": 3},
    )
    whole = train(job, root=tmp_path / "whole").run
    broken = TrainingJob.new(tmp_path / "broken", job)
    outcome = broken.run_here(lambda event: broken.stop() if isinstance(event, StepDone) and event.step == 1 else None)
    assert outcome == "stopped"
    assert TrainingJob(RunFolder.open(broken.run.path)).run_here(lambda _: None) == "finished"
    assert lora(broken.run).read_bytes() == lora(whole).read_bytes()
    pictures = [[path.read_bytes() for path in run.sample_paths(3)] for run in (whole, broken.run)]
    assert pictures[0]
    assert pictures[0] == pictures[1]


@every_family
def test_the_exported_file_is_what_was_trained(
    name: str, small: Callable[[str], Small], job_of: Jobs, trainer_of: Callable[..., Trainer], tmp_path: Path
) -> None:
    """Its names are the family's, and beside a fresh base it predicts as the trained one did; previews show it."""
    from trainer_core.training.state import lora_files

    model = small(name).folder
    trainer = trainer_of(job_of(name, model=model, train={"learning_rate": 0.1}))
    for _ in range(2):
        trainer.update()
        trainer.progress.step += 1
    file = tmp_path / "lora.safetensors"
    (content,) = lora_files(trainer.experts, trainer.base, trainer.job, {}).values()
    file.write_bytes(content)
    tensors = load_file(file)
    assert all(key.startswith(family_spec(name).lora.denoiser) for key in tensors)

    base = open_base(trainer.job.model)
    base.load_text_encoders()
    text = stack_text(base.encode_prompts(["a red fox"]), base.device)
    x = torch.randn(1, base.spec.main.channels, 8, 8, generator=torch.Generator().manual_seed(0))
    t = torch.tensor([0.6])
    denoiser = base.load_denoiser()
    expert = trainer.experts.active
    expert.denoiser.eval()
    expert.adapter.set_strength(1.0)
    with torch.no_grad():
        trained = predicted(base, expert.denoiser, x, t, text)
        plain = predicted(base, denoiser, x, t, text)
        with applied(denoiser, for_modules(parse(tensors), denoiser, base), 1.0):
            exported = predicted(base, denoiser, x, t, text)
    change = (trained - plain).norm()
    assert change > 0
    assert (exported - trained).norm() < 1e-3 * change + 1e-5 * plain.norm()

    with_lora, without = (
        preview(trainer.job.model, ["a red fox"], lora=one, sample=SampleConfig(**PICTURE, seed=3))[0]
        for one in (file, None)
    )
    assert with_lora.size == (64, 64)
    assert with_lora.tobytes() != without.tobytes()


@every_family
def test_text_encoders_are_trained_where_the_family_allows_it(
    name: str, small: Callable[[str], Small], job_of: Jobs, trainer_of: Callable[..., Trainer]
) -> None:
    spec = family_spec(name)
    job = job_of(name, model=small(name).folder, adapter={"text_encoders": True}, train={"learning_rate": 0.1})
    if not spec.lora.text_encoders:
        with pytest.raises(ConfigError, match=r"adapter\.text_encoders"):
            spec.check_adapter(job.adapter)
        return
    trainer = trainer_of(job)
    adapter, prompt = trainer.experts.active.adapter, [Conditioning("a red fox")]
    before = adapter.state_dict()
    plain = trainer.base.collate(prompt).text
    trainer.update()
    with torch.no_grad():
        trained = trainer.base.collate(prompt).text
        with adapter.disabled():
            disabled = trainer.base.collate(prompt).text
    for root in spec.lora.text_encoders:
        names = [key for key in before if key.startswith(f"{root}.")]
        assert names
        assert any(not torch.equal(before[key], adapter.state_dict()[key]) for key in names)
    for key, values in plain.items():
        assert not torch.equal(values, trained[key])
        assert torch.equal(values, disabled[key])
