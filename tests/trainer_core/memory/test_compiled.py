"""Compiled blocks compute the same, and where compiling fails a run goes on without it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors import safe_open
from torch._dynamo.exc import BackendCompilerFailed

from trainer_core.config import JobConfig
from trainer_core.errors import ConfigError
from trainer_core.memory.blocks import blocks_of
from trainer_core.memory.compiled import compile_blocks
from trainer_core.memory.recompute import recompute_blocks
from trainer_core.memory.saved import mutable_saved
from trainer_core.runs.events import Event, StepDone, Warning

if TYPE_CHECKING:
    from trainer_core.training.loop import Trainer


@pytest.fixture(autouse=True)
def _no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything but the C++ compiler, which takes a minute."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    torch._dynamo.reset()


def without_compiler(*_: Any, **__: Any) -> Any:
    """What a compiled function does on a machine that has none."""
    raise BackendCompilerFailed(without_compiler, RuntimeError("no compiler"), None)


class Attending(torch.nn.Module):
    """Attention between two products, the last of which no gradient needs."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = torch.nn.Linear(8, 24), torch.nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.first(x).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        y = torch.nn.functional.scaled_dot_product_attention(q, k, v)
        return x + self.last(y.transpose(1, 2).flatten(2))


def differentiated(block: torch.nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, Counter[str]]:
    """The gradient of its input, and how often operations were computed."""
    torch.autograd.grad(block(x).square().sum(), x)  # compiles both passes
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as seen:
        (gradient,) = torch.autograd.grad(block(x).square().sum(), x)
    return gradient, Counter({one.key: one.count for one in seen.key_averages()})


@pytest.mark.parametrize("keep_attention", [True, False])
def test_compiled_and_checkpointed_only_what_the_gradient_needs_is_computed_twice(keep_attention: bool) -> None:
    told: list[Event] = []
    block, x = Attending().requires_grad_(False), torch.randn(2, 5, 8, requires_grad=True)
    expected, once = differentiated(block, x)
    compile_blocks([block], told.append)
    recompute_blocks(block, [block], keep_attention=keep_attention)
    gradient, counts = differentiated(block, x)
    torch.testing.assert_close(gradient, expected)
    attention = "aten::_scaled_dot_product_flash_attention_for_cpu"
    assert counts[attention] == once[attention] + (not keep_attention) == (1 if keep_attention else 2)
    assert counts["aten::addmm"] == once["aten::addmm"] + 1 == 3, "the last product is not computed again"
    assert not told


@pytest.mark.parametrize("broken", ["the compiler", "watched"])
def test_checkpointed_blocks_that_cannot_be_compiled_are_recomputed_as_others_are(
    broken: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[Event] = []
    plain, block = Attending().requires_grad_(False), Attending().requires_grad_(False)
    x = torch.randn(2, 5, 8, requires_grad=True)
    with mutable_saved() if broken == "watched" else nullcontext():
        recompute_blocks(plain, [plain], keep_attention=True)
        expected, wanted = differentiated(plain, x)
        monkeypatch.setattr(torch, "compile", lambda _: without_compiler)
        compile_blocks([block], told.append)
        recompute_blocks(block, [block], keep_attention=True)
        gradient, counts = differentiated(block, x)
    assert torch.equal(gradient, expected)
    for operation in ("aten::_scaled_dot_product_flash_attention_for_cpu", "aten::addmm"):
        assert counts[operation] == wanted[operation] > 0, "attention is kept, and the last product not repeated"
    assert [type(one) for one in told] == [Warning]


def losses(trainer: Trainer) -> list[float]:
    return [trainer.update().loss for _ in range(2)]


def test_losses_and_weights_are_those_of_plain_blocks(
    job_of: Callable[..., JobConfig], trainer_of: Callable[..., Trainer]
) -> None:
    train = {"gradient_checkpointing": True, "optimizer": "SGD"}  # computes blocks with gradients and without
    plain = trainer_of(job_of(train=train))
    compiled = trainer_of(job_of(name="compiled", train=train, memory={"compile": True, "plan": "manual"}))
    torch._dynamo.utils.counters.clear()
    assert losses(compiled) == pytest.approx(losses(plain), rel=1e-5)
    one, other = (run.experts.active.adapter.state_dict() for run in (plain, compiled))
    for name, value in one.items():
        assert torch.allclose(other[name], value, atol=1e-4), name
    counters = torch._dynamo.utils.counters
    assert counters["stats"]["unique_graphs"] >= 2  # both kinds of blocks
    assert not counters["graph_break"]


def test_few_tokens_attend_by_products_in_a_training(
    job_of: Callable[..., JobConfig], trainer_of: Callable[..., Trainer]
) -> None:
    """A product of weights and one with values in each block, and two each in their gradients."""
    trainer = trainer_of(job_of(memory={"compile": True, "plan": "manual"}))
    trainer.update()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as seen:
        trainer.update()
    counts = Counter({one.key: one.count for one in seen.key_averages()})
    assert counts["aten::bmm"] == 6 * len(blocks_of(trainer.experts.active.denoiser))
    assert not any("scaled_dot_product" in name for name in counts)


@pytest.mark.parametrize("checkpointed", [False, True])
def test_blocks_of_a_whole_run_are_compiled(checkpointed: bool, job_of: Callable[..., JobConfig], train: Any) -> None:
    """From its first update on, which otherwise is watched for operations that are not deterministic."""
    graphs: list[int] = []

    def listen(event: Event) -> None:
        if isinstance(event, StepDone):
            graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])

    torch._dynamo.utils.counters.clear()
    settings = {"gradient_checkpointing": checkpointed, "steps": 3}
    training = train(job_of(train=settings, memory={"compile": True, "plan": "manual"}), listen)
    assert "compile" not in (training.run.path / "log.txt").read_text(encoding="utf-8")
    assert 2 <= graphs[0] == graphs[2], "nothing is compiled for one step only"
    latest = training.run.latest()
    assert latest is not None
    with safe_open(latest.lora, "pt") as file:
        assert "no update was watched" in file.metadata()["lora_foundry.deterministic"]


def test_what_cannot_be_compiled_runs_as_it_is_and_the_user_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda _: without_compiler)
    blocks = [torch.nn.Linear(3, 3) for _ in range(2)]
    x = torch.ones(1, 3)
    expected = [block(x) for block in blocks]
    told: list[Event] = []
    compile_blocks(blocks, told.append)
    assert all(torch.equal(block(x), y) for block, y in zip(blocks, expected, strict=True))
    (warning,) = told
    assert isinstance(warning, Warning)
    assert "no compiler" in warning.message


def test_nothing_is_compiled_where_changes_in_place_are_watched() -> None:
    """torch would say nothing, and compile nothing."""
    told: list[Event] = []
    block, x = torch.nn.Linear(3, 3), torch.ones(1, 3)
    expected = block(x)
    compile_blocks([block], told.append)
    with mutable_saved():
        assert torch.equal(block(x), expected)
    (warning,) = told
    assert isinstance(warning, Warning)


def test_errors_of_the_model_itself_are_not_taken_for_the_compilers(base: Any) -> None:
    denoiser = base.load_denoiser()
    told: list[Event] = []
    block = next(iter(blocks_of(denoiser).values()))
    compile_blocks([block], told.append)
    with pytest.raises((TypeError, RuntimeError)):
        block()


def test_dropout_would_be_compiled_anew_in_each_step(job_of: Callable[..., JobConfig]) -> None:
    with pytest.raises((ConfigError, ValueError), match="dropout"):
        job_of(memory={"compile": True}, adapter={"dropout": 0.1})
