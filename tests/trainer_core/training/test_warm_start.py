"""Going on from a LoRA file: what it does is kept exactly, and what does not fit is told."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from trainer_core.adapters.applied import applied
from trainer_core.adapters.parsing import for_modules, parse
from trainer_core.config import JobConfig
from trainer_core.errors import AdapterError, FoundryError
from trainer_core.families.base import Base
from trainer_core.families.texts import stack_text
from trainer_core.job import TrainingJob
from trainer_core.safetensors_file import read_tensors, serialize
from trainer_core.training.loop import Trainer

from ..predicting import predicted

Jobs = Callable[..., JobConfig]
X = torch.randn(2, 16, 8, 8, generator=torch.Generator().manual_seed(0))
T = torch.tensor([0.3, 0.8])


@pytest.fixture
def trained(job_of: Jobs, train: Callable[..., TrainingJob], tmp_path: Path) -> Path:
    """A LoRA of rank 2 and alpha 1, trained for three steps."""
    latest = train(job_of("before", adapter={"rank": 2, "alpha": 1.0})).run.latest()
    assert latest is not None
    return Path(shutil.copy(latest.lora, tmp_path / "before.safetensors"))


def output(base: Base, denoiser: torch.nn.Module) -> torch.Tensor:
    text = stack_text(base.encode_prompts(["a red zorble", "a cat"]), base.device)
    with torch.no_grad():
        return predicted(base, denoiser, X, T, text)


@pytest.mark.parametrize("adapter", [{"rank": 2, "alpha": 1.0}, {"rank": 2}, {"rank": 8, "alpha": 4.0}, {"rank": 5}])
def test_the_function_is_kept(
    adapter: dict, trained: Path, job_of: Jobs, trainer_of: Callable[..., Trainer], base: Base
) -> None:
    trainer = trainer_of(job_of(adapter={**adapter, "warm_start": str(trained)}))
    trainer.restore()
    plain = base.load_denoiser()
    before = output(base, plain)
    with applied(plain, for_modules(parse(read_tensors(trained)), plain, base), 1.0):
        expected = output(base, plain)
    found = output(base, trainer.experts.active.denoiser.eval())
    assert (expected - before).norm() > 1e-3 * before.norm(), "the file does something"
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert trainer.step == 0


def test_going_on_and_resuming(trained: Path, job_of: Jobs, train: Callable[..., TrainingJob], tmp_path: Path) -> None:
    """The warm start happens once: what is resumed is the checkpoint, even if the file has gone."""
    job = job_of(adapter={"rank": 2, "warm_start": str(trained)}, train={"steps": 4}, save={"every": 2, "keep": 9})
    straight = train(job).run
    run = train(job).run
    assert run.latest().lora.read_bytes() == straight.latest().lora.read_bytes()  # type: ignore[union-attr]
    shutil.rmtree(run.path / "checkpoints" / "step_00000004")
    trained.unlink()
    assert TrainingJob(run).run_here(lambda _: None) == "finished"
    assert run.latest().lora.read_bytes() == straight.latest().lora.read_bytes()  # type: ignore[union-attr]


def test_a_file_of_fewer_layers(trained: Path, job_of: Jobs, trainer_of: Callable[..., Trainer]) -> None:
    tensors = {name: value for name, value in read_tensors(trained).items() if "double_blocks.0.img_attn.proj" in name}
    trained.write_bytes(serialize(tensors, {}))
    trainer = trainer_of(job_of(adapter={"warm_start": str(trained)}))
    trainer.restore()
    changed = {
        name for name, value in trainer.experts.active.adapter.state_dict().items() if "lora_B" in name and value.any()
    }
    assert changed == {"transformer_blocks.0.attn.to_out.0.lora_B.weight"}


def refusal(job: JobConfig, train: Callable[..., TrainingJob]) -> str:
    with pytest.raises(FoundryError) as caught:
        train(job)
    return str(caught.value)


def test_what_does_not_fit_is_told(
    trained: Path, job_of: Jobs, train: Callable[..., TrainingJob], tmp_path: Path
) -> None:
    file = str(trained)
    assert "rank" in refusal(job_of(adapter={"rank": 1, "warm_start": file}), train)
    assert "targets" in refusal(job_of(adapter={"targets": "attention", "warm_start": file}), train)
    assert "nowhere" in refusal(job_of(adapter={"warm_start": str(tmp_path / "nowhere.safetensors")}), train)
    (tmp_path / "junk.safetensors").write_bytes(b"junk")
    assert "junk" in refusal(job_of(adapter={"warm_start": str(tmp_path / "junk.safetensors")}), train)


def test_a_lora_of_another_base_is_told(trained: Path, job_of: Jobs, train: Callable[..., TrainingJob]) -> None:
    tensors = {name.replace("double_blocks.1", "double_blocks.18"): v for name, v in read_tensors(trained).items()}
    trained.write_bytes(serialize(tensors, {}))
    with pytest.raises(AdapterError, match=r"double_blocks\.18"):
        train(job_of(adapter={"warm_start": str(trained)}))


@pytest.mark.parametrize(
    ("alpha", "says"),
    [
        (torch.tensor([1.0, 2.0]), "alpha is one number, and this has shape (2,)"),
        (torch.tensor([]), "alpha is one number, and this has shape (0,)"),
        (torch.tensor(float("nan")), "alpha is nan"),
        (torch.tensor([float("-inf")]), "alpha is -inf"),
    ],
    ids=["two", "none", "nan", "infinite"],
)
def test_an_alpha_that_is_no_number_names_file_and_key(
    alpha: torch.Tensor, says: str, job_of: Jobs, tmp_path: Path
) -> None:
    file = tmp_path / "odd.safetensors"
    name = "diffusion_model.double_blocks.0.img_attn.proj"
    tensors = {f"{name}.lora_A.weight": torch.ones(2, 4), f"{name}.lora_B.weight": torch.ones(4, 2)}
    file.write_bytes(serialize({**tensors, f"{name}.alpha": alpha}, {}))
    with pytest.raises(AdapterError) as caught:
        TrainingJob.new(tmp_path / "runs", job_of(adapter={"warm_start": str(file)}))
    assert f"{file}: {name}.alpha: {says}" in str(caught.value)
