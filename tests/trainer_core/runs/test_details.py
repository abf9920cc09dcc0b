"""Checkpoints, samples, log and news of one run, as pages show them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image, PngImagePlugin

from trainer_core.config import JobConfig
from trainer_core.errors import RunError
from trainer_core.runs.details import (
    checkpoint_facts,
    checkpoint_file,
    log_of,
    sample_file,
    samples_of,
    settings_shown,
    told_in_log,
)
from trainer_core.runs.find import run_called
from trainer_core.runs.news import RunNews
from trainer_core.runs.run_folder import RunFolder

FILES = {"lora_high.safetensors": b"high", "lora_low.safetensors": b"low!", "state.safetensors": b"state"}


@pytest.fixture
def run(tmp_path: Path, job_of: Callable[..., JobConfig]) -> RunFolder:
    return RunFolder.create(tmp_path / "runs", job_of(name="one"))


def draw(run: RunFolder, step: int, index: int, prompt: str, clip: bool = False) -> Path:
    folder = run.sample_folder(step)
    folder.mkdir(parents=True, exist_ok=True)
    facts = PngImagePlugin.PngInfo()
    facts.add_text("prompt", prompt)
    path = folder / f"{index:02d}.png"
    Image.new("RGB", (8, 8)).save(path, pnginfo=facts)
    if clip:
        path.with_suffix(".webp").write_bytes(b"clip")
    return path


def test_checkpoints_with_sizes_losses_and_marks(run: RunFolder) -> None:
    for step in range(1, 61):
        run.append_metrics({"step": step, "loss": float(step)})
    for step, loss in ((30, 0.5), (40, 0.3), (50, float("nan")), (60, 0.4)):
        run.append_metrics({"step": step, "validation_loss": loss})
        run.save_checkpoint(step, FILES)
    (run.path / "checkpoints" / "step_00000060" / "state.safetensors").unlink()
    run.pin(30)
    found = checkpoint_facts(run, run.metrics())
    assert [one.step for one in found] == [30, 40, 50]
    assert [one.loss for one in found] == [20.5, 30.5, 40.5]  # means of the last 20
    assert [one.validation_loss for one in found] == [0.5, 0.3, None]
    assert [(one.pinned, one.best) for one in found] == [(True, False), (False, True), (False, False)]
    assert found[0].bytes == 13
    assert found[0].files == ("lora_high.safetensors", "lora_low.safetensors")
    assert checkpoint_file(run, 40, "lora_low.safetensors").read_bytes() == b"low!"
    for step, name in ((40, "state.safetensors"), (40, "../lora_low.safetensors"), (60, "lora_low.safetensors")):
        with pytest.raises(RunError):
            checkpoint_file(run, step, name)


def test_samples_say_what_was_drawn(run: RunFolder) -> None:
    for step in (10, 0):
        draw(run, step, 0, f"a red zorble at {step}")
    path = draw(run, 10, 1, "another", clip=True)
    (run.sample_folder(10) / "02.png").write_bytes(b"no picture")
    (run.sample_folder(10) / "notes.png").write_bytes(b"not ours")
    (run.path / "samples" / "step_x").mkdir()
    assert [step for step, _ in samples_of(run)] == [0, 10]
    assert [step for step, _ in samples_of(run, after=0)] == [10]
    items = samples_of(run)[1][1]
    assert [(one.index, one.prompt, one.file, one.clip) for one in items] == [
        (0, "a red zorble at 10", "00.png", None),
        (1, "another", "01.png", "01.webp"),
        (2, None, "02.png", None),
    ]
    assert sample_file(run, 10, "01.webp") == path.with_suffix(".webp")
    for step, name in ((10, "03.png"), (10, "../../run.json"), (5, "00.png")):
        with pytest.raises(RunError):
            sample_file(run, step, name)


def test_log_goes_on_where_it_was_read_to(run: RunFolder) -> None:
    assert log_of(run) == ("", 0)
    run.log("first")
    text, size = log_of(run)
    assert text.endswith("first\n")
    assert size == (run.path / "log.txt").stat().st_size
    with (run.path / "log.txt").open("a", encoding="utf-8") as file:
        file.write("half a li")
    assert log_of(run, size) == ("", size)
    with (run.path / "log.txt").open("a", encoding="utf-8") as file:
        file.write("ne\n" + "x" * 99 + "\n" + ("y" * 99 + "\n") * 2000)
    text, end = log_of(run, size)
    assert (len(text) <= 65536, set(text)) == (True, {"y", "\n"})
    assert end == (run.path / "log.txt").stat().st_size
    assert log_of(run, end) == ("", end)
    (run.path / "log.txt").write_text("another\n", encoding="utf-8")
    assert log_of(run, end)[0] == "another\n"


def test_warnings_and_the_work_at_hand_are_read_off_the_log(run: RunFolder) -> None:
    for number in range(7):
        run.log(f"warning: number {number}")
    run.log("encoding images (3 of 10)")
    assert told_in_log(run) == ([f"number {number}" for number in range(2, 7)], "encoding images 3/10")
    run.append_metrics({"step": 1, "loss": 1.0})
    assert told_in_log(run)[1] is None


def test_news_are_what_came_since(run: RunFolder) -> None:
    run.append_metrics({"step": 1, "loss": 1.0})
    news = RunNews(run)
    assert news.look() == {}
    run.append_metrics({"step": 2, "loss": 0.5})
    run.append_metrics({"step": 2, "validation_loss": 0.6})
    with (run.path / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"step": 3, "lo')
    told = news.look()
    assert told["steps"] == [2]
    assert told["series"] == {"loss": [0.5], "validation_loss": {"steps": [2], "values": [0.6]}}
    with (run.path / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write('ss": 0.25}\n')
    assert news.look()["series"] == {"loss": [0.25]}
    draw(run, 3, 0, "a")
    assert news.look() == {"samples": True}
    draw(run, 3, 1, "b")
    assert news.look() == {"samples": True}
    run.save_checkpoint(3, FILES)
    assert news.look() == {"checkpoints": True}
    run.log("saving (1 of 1)")
    assert news.look() == {"phase": "saving"}
    run.truncate_metrics(1)
    assert news.look()["reload"]
    assert news.look() == {}


def test_requests_reach_no_run_but_those_right_in_the_folder(run: RunFolder, tmp_path: Path) -> None:
    root = run.path.parent
    assert run_called("one", root).path == run.path
    for name in ("", ".", "..", "../runs/one", str(run.path), "ONE", "one/", "one\0", "two", "CON", ".trash"):
        with pytest.raises(RunError):
            run_called(name, root)
    (root / "linked").symlink_to(run.path, target_is_directory=True)
    with pytest.raises(RunError):
        run_called("linked", root)
    (tmp_path / "secret").write_text("x", encoding="utf-8")
    (run.path / "log.txt").symlink_to(tmp_path / "secret")
    with pytest.raises(RunError, match=r"link \(log\.txt\)"):
        run_called("one", root)


def test_settings_for_people_take_what_can_be_read() -> None:
    job = {
        "model": {"family": "flux1", "source": 7},
        "adapter": [],
        "datasets": [{"folder": "/a", "resolutions": [512, 768]}],
    }
    job |= {"train": {"learning_rate": 1e-4, "ema_decay": None, "seed": {"x": 1}}, "trigger": ""}
    assert dict(settings_shown(json.loads(json.dumps(job)))) == {
        "model.family": "flux1",
        "model.source": "7",
        "datasets.folder": "/a",
        "datasets.resolutions": "512, 768",
        "train.learning_rate": "0.0001",
    }
