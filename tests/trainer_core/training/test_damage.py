"""Damage of any file of a run, at any place: noticed, told, and worked around where another intact copy exists."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from trainer_core.adapters.parsing import parse
from trainer_core.config import JobConfig, load_job
from trainer_core.data.cache import TensorCache
from trainer_core.errors import AdapterError, ConfigError
from trainer_core.job import TrainingJob
from trainer_core.runs.events import Event, StepDone, Warning
from trainer_core.runs.run_folder import STATES, RunFolder
from trainer_core.safetensors_file import read_tensors, serialize

Jobs = Callable[..., JobConfig]

NEWEST = "checkpoints/step_00000004"
LAYERS = [f"diffusion_model.double_blocks.{k}.img_attn.proj" for k in range(2)]
LORA = {
    **{f"{layer}.lora_A.weight": torch.arange(8.0).view(2, 4) for layer in LAYERS},
    **{f"{layer}.lora_B.weight": torch.arange(8.0).view(4, 2) for layer in LAYERS},
    **{f"{layer}.alpha": torch.tensor(2.0) for layer in LAYERS},
}

Damage = Callable[[bytes], bytes]


def flipped(data: bytes, bit: int) -> bytes:
    place = bit % (len(data) * 8)
    return data[: place // 8] + bytes([data[place // 8] ^ 1 << place % 8]) + data[place // 8 + 1 :]


def zeroed(data: bytes, place: int) -> bytes:
    """A block that never reached the disk."""
    start = place % len(data)
    return data[:start] + bytes(len(data[start : start + 64])) + data[start + 64 :]


_PLACE = st.integers(0, 2**24)
DAMAGES = st.one_of(
    st.builds(lambda bit: lambda data: flipped(data, bit), _PLACE),
    st.builds(lambda place: lambda data: data[: place % len(data)], _PLACE),
    st.builds(lambda place: lambda data: zeroed(data, place), _PLACE),
    st.builds(lambda junk: lambda _: junk, st.binary(max_size=80)),
    st.builds(lambda junk: lambda data: data + junk, st.binary(min_size=1, max_size=80)),
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, pictures: Path) -> RunFolder:
    """A run with two checkpoints that know its job; tests must not change it."""
    job = JobConfig.model_validate(
        {"name": "tiny", "datasets": [{"folder": str(pictures)}], "train": {"steps": 6}, "save": {"every": 2}}
    )
    run = RunFolder.create(tmp_path_factory.mktemp("whole"), job)
    for step in (2, 4):
        state = {"x": torch.arange(64.0) + step}
        config = json.dumps(job.model_dump(mode="json"))
        run.save_checkpoint(
            step,
            {
                "lora.safetensors": serialize(LORA, {"modelspec.title": "tiny"}),
                "state.safetensors": serialize(state, {"step": str(step), "config": config}),
            },
        )
    run.pin(2)
    for step in range(1, 5):
        run.append_metrics({"step": step, "loss": 0.5, "lr": 0.001})
    run.write_status("stopped", 4, 6)
    return run


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("scratch")


def damaged(whole: RunFolder, scratch: Path, name: str, damage: Damage) -> RunFolder:
    """A copy of the run with one damaged file."""
    copy = scratch / "run"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(whole.path, copy)
    data = (copy / name).read_bytes()
    (copy / name).write_bytes(damage(data))
    return RunFolder.open(copy)


quick = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@quick
@given(damage=DAMAGES, name=st.sampled_from(["lora.safetensors", "state.safetensors", "manifest.json"]))
def test_a_damaged_checkpoint_is_never_used(whole: RunFolder, scratch: Path, damage: Damage, name: str) -> None:
    run = damaged(whole, scratch, f"{NEWEST}/{name}", damage)
    latest = run.latest()
    assert latest is not None
    if latest.step == 4:  # a manifest without its last line break says the same
        for file in ("lora.safetensors", "state.safetensors"):
            assert (latest.path / file).read_bytes() == (whole.path / NEWEST / file).read_bytes()
    else:
        assert latest.step == 2
        ((found, problem),) = [one for one in run.examine_checkpoints() if one[1]]
        assert found.step == 4
        assert problem
    assert run.job() == whole.job()


@quick
@given(damage=DAMAGES)
def test_a_damaged_job_is_known_by_the_checkpoints(whole: RunFolder, scratch: Path, damage: Damage) -> None:
    """Damage that leaves another job is for `resume_rules` to find: it looks like somebody's wish."""
    run = damaged(whole, scratch, "job.yaml", damage)
    left = (run.path / "job.yaml").read_bytes()
    try:
        said = load_job(run.path / "job.yaml")
    except ConfigError:
        assert run.job() == whole.job()
        assert (run.path / "job.damaged.yaml").read_bytes() == left
        assert any("job.yaml is damaged" in note for note in run.repair())
        assert load_job(run.path / "job.yaml") == whole.job()
    else:
        assert run.job() == said
        assert (run.path / "job.yaml").read_bytes() == left


@quick
@given(damage=DAMAGES)
def test_a_damaged_state_is_a_state_all_the_same(whole: RunFolder, scratch: Path, damage: Damage) -> None:
    run = damaged(whole, scratch, "run.json", damage)
    status = run.status()
    assert status["state"] in STATES
    assert (type(status["step"]), type(status["steps"])) == (int, int)
    assert status["error"] is None or isinstance(status["error"], str)
    if run.repair():
        assert (status["state"], status["step"], status["steps"]) == ("stopped", 4, 6)


@quick
@given(damage=DAMAGES)
def test_damaged_metrics_cost_no_line_but_the_damaged_ones(whole: RunFolder, scratch: Path, damage: Damage) -> None:
    run = damaged(whole, scratch, "metrics.jsonl", damage)
    left = (run.path / "metrics.jsonl").read_bytes().split(b"\n")
    untouched = [line for line in (whole.path / "metrics.jsonl").read_bytes().split(b"\n") if line and line in left]
    found = run.metrics()
    assert all(json.loads(line) in found for line in untouched)
    assert all(type(line["step"]) is int for line in found)
    assert all(isinstance(loss, int | float) for loss in run.losses())
    run.truncate_metrics(4)
    run.append_metrics({"step": 5, "loss": 0.5})
    assert run.metrics()[-1] == {"step": 5, "loss": 0.5}
    assert run.best() is None or run.best().step in (2, 4)  # type: ignore[union-attr]


@quick
@given(damage=DAMAGES)
def test_damaged_pins_delete_nothing(whole: RunFolder, scratch: Path, damage: Damage) -> None:
    run = damaged(whole, scratch, "pinned.json", damage)
    try:
        written_by_hand = isinstance(json.loads((run.path / "pinned.json").read_bytes()), list)
    except (ValueError, RecursionError):
        written_by_hand = False
    run.prune_checkpoints(1)
    run.repair()
    run.prune_checkpoints(1)
    assert written_by_hand or [found.step for found in run.checkpoints()] == [2, 4]


@quick
@given(damage=DAMAGES)
def test_a_damaged_cache_entry_counts_as_absent(scratch: Path, damage: Damage) -> None:
    cache, key = TensorCache(scratch / "cache"), "ab" * 32
    entry = {"latents": torch.arange(50.0), "mask": torch.ones(3, dtype=torch.float16)}
    cache.put(key, entry)
    path = scratch / "cache" / "ab" / f"{key}.safetensors"
    path.write_bytes(damage(path.read_bytes()))
    found = TensorCache(scratch / "cache").get(key)
    assert found is None or (
        found.keys() == entry.keys() and all(torch.equal(found[name], value) for name, value in entry.items())
    )


@settings(quick, max_examples=300)
@given(damage=DAMAGES)
def test_a_damaged_lora_is_refused(scratch: Path, damage: Damage) -> None:
    """Wherever it is damaged, names and shapes too: for warm starts, previews and export."""
    path, whole_file = scratch / "warm.safetensors", serialize(LORA, {"modelspec.title": "tiny", "ss_steps": "4"})
    path.write_bytes(damage(whole_file))
    try:
        found = parse(read_tensors(path))
    except AdapterError:
        return
    path.write_bytes(whole_file)
    expected = parse(read_tensors(path))
    assert found.keys() == expected.keys()
    for name, change in expected.items():
        assert torch.equal(found[name].down, change.down)
        assert torch.equal(found[name].up, change.up)
        assert found[name].scale == change.scale


def test_all_at_once_and_the_run_ends_as_if_nothing_had_been(job_of: Jobs, tmp_path: Path) -> None:
    """Every file of a stopped run is damaged, but for one checkpoint; the damage is told, and the LoRA is the same."""
    job = job_of(train={"steps": 5, "ema_decay": 0.9}, dataset={"flip_x": True}, save={"every": 2, "keep": 2})
    straight = TrainingJob.new(tmp_path / "straight", job)
    straight.run_here(lambda _: None)
    stopping = TrainingJob.new(tmp_path / "damaged", job)
    stopping.run_here(lambda event: stopping.stop() if isinstance(event, StepDone) and event.step == 4 else None)
    run, whole = RunFolder.open(stopping.run.path), straight.run.latest()
    assert whole is not None
    run.pin(2)
    state = run.path / NEWEST / "state.safetensors"
    state.write_bytes(flipped(state.read_bytes(), 99_999))
    for name in ("job.yaml", "run.json", "pinned.json"):
        (run.path / name).write_bytes((run.path / name).read_bytes()[:9])
    with (run.path / "metrics.jsonl").open("ab") as file:
        file.write(b'\0\xff\n[1]\n{"step": 5, "lo')
    entries = sorted((run.path.parent / ".cache").rglob("*.safetensors"))
    for number, entry in enumerate(entries):
        data = entry.read_bytes()
        entry.write_bytes(flipped(data, -9) if number % 2 else data[:-9])
    leftover = run.path / "checkpoints" / ".tmp_12345678"
    shutil.copytree(run.path / NEWEST, leftover)

    events: list[Event] = []
    assert TrainingJob(RunFolder.open(run.path)).run_here(events.append) == "finished"
    latest = run.latest()
    assert latest is not None
    assert latest.lora.read_bytes() == whole.lora.read_bytes()
    assert latest.state.read_bytes() == whole.state.read_bytes()
    assert [event.step for event in events if isinstance(event, StepDone)] == [3, 4, 5]
    assert [line["step"] for line in run.metrics()] == [1, 2, 3, 4, 5]
    assert run.job() == job.model_copy(update={"model": job.model.but(family="flux1")})  # it was `auto`
    assert 2 in [found.step for found in run.checkpoints()]
    assert not leftover.exists()
    told = " ".join(event.message for event in events if isinstance(event, Warning))
    log = (run.path / "log.txt").read_text()
    for name in ("step_00000004", "job.yaml", "run.json", "pinned.json"):
        assert f"{name} is" in told.replace("was missing or damaged", "is damaged")
        assert name in log
    assert "metrics.jsonl" in log


def test_a_damaged_warm_start_ends_before_the_first_step(job_of: Jobs, tmp_path: Path) -> None:
    path = tmp_path / "warm.safetensors"
    path.write_bytes(flipped(serialize(LORA, {"modelspec.title": "tiny"}), -40))
    events: list[Event] = []
    with pytest.raises(AdapterError, match=r"warm\.safetensors: is damaged"):
        TrainingJob.new(tmp_path / "runs", job_of(adapter={"warm_start": str(path)})).run_here(events.append)
    assert not [event for event in events if isinstance(event, StepDone)]
