"""Fixtures for all tests, and which tests this machine can run."""

from __future__ import annotations

import gc
import os
import re
import shutil
import signal
import sys
import uuid
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from hypothesis import settings
from PIL import Image

ROOT = Path(__file__).parents[1]
_MOST_WORKERS = 4
_WORKER_MEMORY = 3 * 2**30
"""What one that runs the tests, and the processes that they start, take at most."""
_modules = 0
"""How many were imported when garbage was last left alone."""

if "PYTEST_XDIST_WORKER" in os.environ:
    # before torch is imported: workers must not fight for the cores, nor may threads that wait keep them busy
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# No deadlines: a busy machine is no bug. Hypothesis' own profile for CI tries the same examples in every run; ours is
# the same everywhere, so that CI finds what a user's run would.
settings.register_profile("foundry", settings.get_profile("default"), deadline=None, derandomize=False, print_blob=True)
settings.load_profile("foundry")


class _RootIsNoPackage:
    """The root has an `__init__.py` for ComfyUI, which pytest would import as the tests' package: forbid it."""

    def pytest_collect_directory(self, path: Path, parent: pytest.Collector) -> pytest.Collector | None:
        return pytest.Dir.from_parent(parent, path=path) if path == ROOT else None


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(_RootIsNoPackage())


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """How many processes run the tests: one for each core, as far as memory goes; named files run in this one."""
    if any(".py" in argument for argument in config.args):
        return 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    count = min(cores, _MOST_WORKERS, psutil.virtual_memory().available // _WORKER_MEMORY)
    return count if count > 1 else 0


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """What tests have imported stays: a base that is freed collects garbage, and need not look through it each time.

    With torch's compiler, transformers and ComfyUI there, that was half of what all tests took together.
    """
    global _modules
    if len(sys.modules) > _modules or nextitem is None or nextitem.path != item.path:
        gc.collect()
        gc.freeze()
        _modules = len(sys.modules)


def find_comfyui() -> Path | None:
    """A ComfyUI checkout: COMFYUI_DIR, or the one whose custom_nodes/ holds this pack, or ~/ComfyUI."""
    given = os.environ.get("COMFYUI_DIR")
    around = ROOT.parents[1] if ROOT.parent.name == "custom_nodes" else None
    candidates = [Path(given)] if given else [path for path in (around, Path.home() / "ComfyUI") if path]
    return next((path for path in candidates if (path / "main.py").is_file() and (path / "comfy").is_dir()), None)


def why_no_host() -> str | None:
    """Why tests that need ComfyUI cannot run here, or None if they can."""
    comfyui = find_comfyui()
    if comfyui is None:
        given = os.environ.get("COMFYUI_DIR")
        return f"COMFYUI_DIR={given} is no ComfyUI" if given else "no ComfyUI found; COMFYUI_DIR says where it is"
    lines = (comfyui / "requirements.txt").read_text(encoding="utf-8").splitlines()
    names = [match[0] for line in lines if (match := re.match(r"[A-Za-z0-9._-]+", line))]
    missing = [name for name in names if not _installed(name)]
    return f"{comfyui} is there, but this Python lacks its requirements: {', '.join(missing)}" if missing else None


def why_no_web() -> str | None:
    """Why tests in a browser cannot run here, or None if they can."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    return why_no_host() or (None if browser else "no chromium found")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skips what cannot run here and says why. With LORA_FOUNDRY_REQUIRE_HOST (CI) a missing ComfyUI is an error."""
    reasons = {"host": why_no_host(), "web": why_no_web()}
    if os.environ.get("LORA_FOUNDRY_REQUIRE_HOST") and reasons["host"]:
        raise pytest.UsageError(f"tests/host must run but cannot: {reasons['host']}")
    for item in items:
        for kind, reason in reasons.items():
            if ROOT / "tests" / kind in item.path.parents:
                item.add_marker(kind)
            if item.get_closest_marker(kind) and reason:
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session", autouse=True)
def _state_of_all_tests(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The user's own queue is none of the tests' business; a server that several tests share has this one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LORA_FOUNDRY_STATE", str(tmp_path_factory.mktemp("state")))
        yield


@pytest.fixture(scope="session", autouse=True)
def _signals_arrive() -> None:
    """Who starts the tests in the background (`&`, nohup) hands signals down as ignored, also to their processes."""
    for name, handler in (
        ("SIGINT", signal.default_int_handler),
        ("SIGTERM", signal.SIG_DFL),
        ("SIGHUP", signal.SIG_DFL),
    ):
        number = getattr(signal, name, None)  # Windows has no SIGHUP
        if number is not None and signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, handler)


@pytest.fixture(autouse=True)
def _own_state(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """The queue of a test and of its processes: it waits for nobody and is in nobody's way.

    Nor do they find a ComfyUI by themselves, which would be started for every base that is wrong on purpose.
    """
    monkeypatch.setenv("COMFYUI_DIR", "")
    monkeypatch.setenv("LORA_FOUNDRY_STATE", str(tmp_path_factory.getbasetemp() / f"state-{uuid.uuid4().hex}"))


@pytest.fixture(scope="session")
def comfyui() -> Path:
    """The ComfyUI checkout that host tests run against."""
    found = find_comfyui()
    if found is None:
        pytest.skip("no ComfyUI found; COMFYUI_DIR says where it is")
    return found


@pytest.fixture
def make_dataset(tmp_path: Path) -> Callable[..., Path]:
    """Makes a folder of flat 64-pixel pictures, each of another colour, with captions."""

    def make(count: int = 3, caption: str | None = "a {colour} [trigger]", name: str = "pictures") -> Path:
        folder = tmp_path / name
        folder.mkdir()
        for number, colour in enumerate(("red", "green", "blue", "yellow", "purple", "orange")[:count]):
            Image.new("RGB", (64, 64), colour).save(folder / f"{number}_{colour}.png")
            if caption is not None:
                (folder / f"{number}_{colour}.txt").write_text(caption.format(colour=colour), encoding="utf-8")
        return folder

    return make


@pytest.fixture
def make_job(tmp_path: Path, make_dataset: Callable[..., Path]) -> Callable[..., Path]:
    """Writes a small job for the embedded base on the CPU; settings come by section, such as train={"steps": 2}."""

    def make(name: str = "tiny", **sections: dict[str, Any]) -> Path:
        folder = tmp_path / "pictures"
        job: dict[str, Any] = {
            "name": name,
            "model": {"source": "embedded", "device": "cpu"},
            "adapter": {"rank": 4},
            "datasets": [
                {"folder": str(folder if folder.exists() else make_dataset()), "resolutions": [64], "trigger": "zorble"}
            ],
            "train": {"steps": 4, "learning_rate": 1e-3, "gradient_checkpointing": False},
            "sample": {"prompts": [], "before_training": False},
        }
        for section, values in sections.items():
            job[section] = {**job.get(section, {}), **values} if isinstance(values, dict) else values
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(job, sort_keys=False), encoding="utf-8")
        return path

    return make


def _installed(distribution: str) -> bool:
    try:
        metadata.distribution(distribution)
    except metadata.PackageNotFoundError:
        return False
    return True
