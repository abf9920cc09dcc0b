"""Two processes train one run: as one of twice the batch would, whatever becomes of either of them.

The processes are forks of this one, joined as `torchrun` joins them. On a CPU they speak by gloo; nccl was not run.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import torch

from trainer_core.cli import main
from trainer_core.config import JobConfig, dump_job
from trainer_core.families import registry
from trainer_core.memory.packed_linear import PackedLinear
from trainer_core.memory.products import key_of
from trainer_core.runs.requests import CONTINUE, PAUSE, STOP, ask
from trainer_core.runs.run_folder import RunFolder
from trainer_core.safetensors_file import read_tensors
from trainer_core.training import products
from trainer_core.training.experts import Experts
from trainer_core.training.loop import Trainer

from .family import Provider
from .runs import files_of, run_of

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="the processes are forks")
Hook = Callable[[Trainer, int], None]
"""Called after each step with the rank."""


@pytest.fixture(autouse=True, scope="module")
def toy() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "_PROVIDERS", [])
        registry.register_provider(Provider())
        yield


@pytest.fixture
def job_by(job_of: Callable[..., JobConfig]) -> Callable[..., JobConfig]:
    """Four pictures, so that of some micro-batches one rank has less than the other, or nothing."""

    def make(size: int, steps: int = 6, **train: Any) -> JobConfig:
        return job_of(
            model={"family": "toy", "device": "cpu"},
            adapter={"targets": "all", "dropout": 0.1},
            dataset={"flip_x": True, "caption_dropout": 0.3},
            train={"steps": steps, "batch_size": size, "gradient_accumulation": 2, "ema_decay": 0.9, **train},
            sample={"prompts": ["a [trigger]"], "every": 3},
            save={"keep": 9, "every": 2},
        )

    return make


def together(arguments: list[str], log: Path, hook: Hook | None = None, count: int = 2) -> list[int | None]:
    """Runs the command line in several processes; gives their exit codes, negative for signals."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = get_context("fork")
    started = [context.Process(target=_rank, args=(rank, count, port, arguments, log, hook)) for rank in range(count)]
    for process in started:
        process.start()
    for process in started:
        process.join(120)
    assert not any(process.is_alive() for process in started), "a process hangs"
    return [process.exitcode for process in started]


def _rank(rank: int, count: int, port: int, arguments: list[str], log: Path, hook: Hook | None) -> None:
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in names.items()})
    out = (log / f"rank{rank}.txt").open("a")
    os.dup2(out.fileno(), 1)
    os.dup2(out.fileno(), 2)
    sys.stdout = sys.stderr = out
    if hook is not None:
        original = Trainer.report

        def report(self: Trainer, *given: Any) -> None:
            original(self, *given)
            hook(self, rank)

        Trainer.report = report  # type: ignore[method-assign]
    code = main(arguments)
    out.flush()
    os._exit(code)


def trained(job: JobConfig, folder: Path, hook: Hook | None = None) -> tuple[RunFolder, list[int | None]]:
    """A new run of two processes."""
    folder.mkdir()
    (folder / "job.yaml").write_text(dump_job(job))
    codes = together(["train", str(folder / "job.yaml"), "--runs", str(folder), "--no-queue"], folder, hook)
    return RunFolder.open(folder / job.name), codes


def resumed(run: RunFolder, count: int = 2) -> list[int | None]:
    return together(["resume", str(run.path), "--no-queue"], run.path.parent, count=count)


def last(run: RunFolder) -> dict[str, bytes]:
    """All files of its last step, and the losses."""
    found = {name: data for name, data in files_of(run).items() if "00000006" in name}
    return {**found, "losses": repr(run.losses()).encode()}


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kept") / "whole"


@pytest.fixture
def whole(job_by: Callable[..., JobConfig], kept: Path) -> RunFolder:
    """A run that nothing disturbs, made once."""
    if not kept.is_dir():
        _, codes = trained(job_by(2), kept)
        assert codes == [0, 0], (kept / "rank0.txt").read_text()
    return RunFolder.open(kept / "tiny")


@pytest.mark.parametrize(("size", "late"), [(1, False), (2, True)])
def test_two_give_what_one_gives_with_twice_the_batch(
    size: int, late: bool, job_by: Callable[..., JobConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With SGD, which does not make much of the last bits of a gradient; also where updates are known late."""
    monkeypatch.setattr(Experts, "read_late", lambda _: late)
    settings = {"optimizer": "SGD", "learning_rate": 0.1}
    run, codes = trained(job_by(size, **settings), tmp_path / "two")
    assert codes == [0, 0], (tmp_path / "two" / "rank1.txt").read_text()
    one = run_of(job_by(2 * size, **settings), tmp_path / "one").run_here
    assert one(lambda _: None) == "finished"
    alone = RunFolder.open(tmp_path / "one" / "tiny")
    assert run.losses() == pytest.approx(alone.losses(), rel=1e-5)
    mine, its = (found.latest() for found in (run, alone))
    assert mine is not None
    assert its is not None
    ours, theirs = read_tensors(mine.state), read_tensors(its.state)
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=1e-4, atol=1e-6)
    assert (tmp_path / "two" / "rank1.txt").read_text() == ""
    assert len(run.metrics()) == 6  # one process alone writes


@pytest.mark.parametrize("killed", [(1,), (0, 1)])
def test_killed_and_resumed_it_ends_in_the_same_bytes(
    killed: tuple[int, ...], whole: RunFolder, job_by: Callable[..., JobConfig], tmp_path: Path
) -> None:
    """If one of two is killed, the other saves what was made, says why, and ends."""

    def kill(trainer: Trainer, rank: int) -> None:
        if trainer.step == 3 and rank in killed:
            os.kill(os.getpid(), signal.SIGKILL)

    run, codes = trained(job_by(2), tmp_path / "killed", kill)
    assert codes == ([1, -9] if killed == (1,) else [-9, -9])
    latest = run.latest()
    assert latest is not None
    assert latest.step == (3 if killed == (1,) else 2)
    if killed == (1,):
        assert run.status()["state"] == "failed"
        assert "another process of this run has ended" in (tmp_path / "killed" / "rank0.txt").read_text()
    assert resumed(run, count=1) == [1]
    assert "2 processes" in (tmp_path / "killed" / "rank0.txt").read_text()
    assert resumed(run) == [0, 0]
    assert last(run) == last(whole)


def test_a_stop_that_one_hears_stops_both(whole: RunFolder, job_by: Callable[..., JobConfig], tmp_path: Path) -> None:
    def stop(trainer: Trainer, rank: int) -> None:
        if trainer.step == 3 and rank == 0:
            ask(trainer.run.path, STOP)

    run, codes = trained(job_by(2), tmp_path / "stopped", stop)
    assert codes == [130, 0], (tmp_path / "stopped" / "rank0.txt").read_text()
    assert run.status()["state"] == "stopped"
    assert resumed(run) == [0, 0]
    assert last(run) == last(whole)


def test_a_pause_is_one_of_both(whole: RunFolder, job_by: Callable[..., JobConfig], tmp_path: Path) -> None:
    """Both give back what they hold, and go on when the user says so."""

    def go_on(run: RunFolder) -> None:
        while run.status()["state"] != "paused":
            time.sleep(0.02)
        ask(run.path, CONTINUE)

    def pause(trainer: Trainer, rank: int) -> None:
        if trainer.step == 3 and rank == 0 and not (trainer.run.path / "once").exists():
            (trainer.run.path / "once").touch()
            ask(trainer.run.path, PAUSE)
            threading.Thread(target=go_on, args=(trainer.run,)).start()

    run, codes = trained(job_by(2), tmp_path / "paused", pause)
    assert codes == [0, 0], (tmp_path / "paused" / "rank0.txt").read_text()
    assert "paused at step 3" in (run.path / "log.txt").read_text()
    assert last(run) == last(whole)


def test_ranks_that_differ_are_found(job_by: Callable[..., JobConfig], tmp_path: Path) -> None:
    """One bit of one weight of one rank."""

    def spoil(trainer: Trainer, rank: int) -> None:
        if rank == 1:
            trainer.experts.active.adapter.flats()[0].weights.view(torch.int32)[0] ^= 1

    run, codes = trained(job_by(2), tmp_path / "spoiled", spoil)
    assert codes == [1, 1]
    assert "do not have the same weights" in str(run.status()["error"])
    assert run.latest() is None


def test_both_compute_products_as_the_first_has_measured_them(
    job_of: Callable[..., JobConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Resumed, they do as before, unmeasured."""

    def measured(_device: Any, weights: Any, *_more: Any) -> dict[str, bool]:
        assert os.environ["RANK"] == "0", "the other one measures nothing"
        assert not (tmp_path / "two" / "tiny" / products.FILE).exists(), "measured twice"
        return {key_of(*weight): True for weight in weights}

    def look(trainer: Trainer, rank: int) -> None:
        layers = [one for one in trainer.experts.active.denoiser.modules() if isinstance(one, PackedLinear)]
        assert {one.in_8_bits for one in layers} == {True}
        if trainer.step == 1 and rank == 0:
            ask(trainer.run.path, STOP)

    monkeypatch.setattr(products, "products_of", measured)
    job = job_of(model={"quantization": "int8"}, train={"steps": 2, "batch_size": 2})
    run, codes = trained(job, tmp_path / "two", look)
    assert codes == [130, 0], (tmp_path / "two" / "rank0.txt").read_text()
    assert together(["resume", str(run.path), "--no-queue"], run.path.parent, look) == [0, 0]
    assert run.status()["state"] == "finished"
