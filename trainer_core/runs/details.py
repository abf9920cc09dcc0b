"""What a page shows of one run: its checkpoints, samples, log and warnings. Links in its folder are not followed."""

from __future__ import annotations

import contextlib
import math
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from ..errors import RunError
from ..reading import leads_away, read_json
from ..secrets import redacted
from .checkpoints import MANIFEST
from .metrics import is_number
from .run_folder import RunFolder

_LOG_BYTES = 65536
_WARNINGS = 5
_STEP_FOLDER = re.compile(r"step_(\d{1,16})", re.ASCII)
_PICTURE = re.compile(r"\d{1,9}\.png", re.ASCII)
_WARNING = re.compile(r"[\d\-]{10} [\d:]{8} warning: (.*)")
_PHASE = re.compile(r"[\d\-]{10} [\d:]{8} (.*) \((\d+) of (\d+)\)")
_OVER = 20
"""Logged losses that make one figure: a single step's says little."""
_LONGEST_PROMPT = 2000


@dataclass(frozen=True)
class CheckpointFacts:
    """A checkpoint whose files are all there; whether they are what was written is looked at when one is used."""

    step: int
    bytes: int
    loss: float | None
    """Mean of the last logged losses up to it."""
    validation_loss: float | None
    pinned: bool
    best: bool
    files: tuple[str, ...]
    """The LoRA, or that of each expert."""


@dataclass(frozen=True)
class Sample:
    """A preview; `time` in seconds since 1970."""

    index: int
    prompt: str | None
    file: str
    clip: str | None
    """The video, where `file` is its first frame."""
    time: float


def checkpoint_facts(run: RunFolder, lines: Sequence[dict[str, Any]]) -> list[CheckpointFacts]:
    """A run's checkpoints, oldest first.

    Args:
        lines: its metrics.
    """
    validations = {line["step"]: line["validation_loss"] for line in lines if "validation_loss" in line}
    losses = [(line["step"], line["loss"]) for line in lines if "loss" in line and math.isfinite(line["loss"])]
    pins, found = run.pinned(), []
    for step, files in _complete(run.path / "checkpoints"):
        near = [loss for at, loss in losses if at <= step][-_OVER:]
        validation = validations.get(step, math.nan)
        found.append(
            CheckpointFacts(
                step=step,
                bytes=sum(files.values()),
                loss=sum(near) / len(near) if near else None,
                validation_loss=validation if math.isfinite(validation) else None,
                pinned=step in pins,
                best=False,
                files=tuple(name for name in files if name.startswith("lora") and name.endswith(".safetensors")),
            )
        )
    measured = [one for one in found if one.validation_loss is not None]
    best = min(measured, key=lambda one: one.validation_loss or 0.0, default=None)
    return [CheckpointFacts(**{**vars(one), "best": one is best}) for one in found]


def _complete(folder: Path) -> Iterator[tuple[int, dict[str, int]]]:
    """The checkpoints that have all the files of their manifests, with their sizes."""
    for step, path in sorted(_steps(folder)):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
            sizes = {entry.name: entry.stat().st_size for entry in _plain_files(path)}
            if MANIFEST not in sizes:
                continue
            told = {name: one["size"] for name, one in read_json(path / MANIFEST)["files"].items()}
            if told and all(sizes.get(name) == size for name, size in told.items()):
                yield step, dict(sorted(told.items()))


def checkpoint_file(run: RunFolder, step: int, name: str) -> Path:
    """A LoRA file of a checkpoint that is listed.

    Raises:
        RunError: if there is none.
    """
    for one in checkpoint_facts(run, ()):
        if one.step == step and name in one.files:
            return run.path / "checkpoints" / f"step_{step:08d}" / name
    raise RunError(f"{run.name}: step {step} has no LoRA file {name!r:.120}")


def samples_of(run: RunFolder, after: int = -1) -> list[tuple[int, list[Sample]]]:
    """The previews of each step after `after`, oldest first."""
    found = []
    for step, folder in sorted(_steps(run.path / "samples")):
        if step > after:
            entries = {entry.name: entry for entry in _plain_files(folder)}
            pictures = sorted(name for name in entries if _PICTURE.fullmatch(name))
            items = [_sample(entries[name], f"{name[:-4]}.webp" in entries) for name in pictures]
            if items:
                found.append((step, items))
    return found


def sample_file(run: RunFolder, step: int, name: str) -> Path:
    """A picture or video of a step that is listed.

    Raises:
        RunError: if there is none.
    """
    for at, folder in _steps(run.path / "samples"):
        if at == step and name.endswith((".png", ".webp")) and name in {entry.name for entry in _plain_files(folder)}:
            return folder / name
    raise RunError(f"{run.name}: step {step} has no sample {name!r:.120}")


def log_of(run: RunFolder, after: int = 0) -> tuple[str, int]:
    """What log.txt says from a byte on, in whole lines, at most its last 64 KiB; and the byte to ask from next."""
    try:
        with (run.path / "log.txt").open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            start = after if after <= size else 0  # a shorter one is another log
            begin = max(start, size - _LOG_BYTES)
            file.seek(begin)
            data = file.read(_LOG_BYTES)
    except OSError:
        return "", 0
    head = data.find(b"\n") + 1 if begin > start else 0
    end = data.rfind(b"\n") + 1
    return redacted(data[head:end].decode("utf-8", "replace")), begin + end


def told_in_log(run: RunFolder) -> tuple[list[str], str | None]:
    """The latest warnings of a run, and the work that it is at now, if that is no training step."""
    lines = log_of(run)[0].splitlines()
    warnings = [found[1] for line in lines if (found := _WARNING.fullmatch(line))]
    phase = _PHASE.fullmatch(lines[-1]) if lines else None
    with contextlib.suppress(OSError):
        times = [(run.path / name).stat().st_mtime_ns for name in ("metrics.jsonl", "log.txt")]
        if times[0] > times[1]:
            phase = None  # steps were made since
    count = f" {phase[2]}/{phase[3]}" if phase and phase[3] != "1" else ""
    return warnings[-_WARNINGS:], f"{phase[1]}{count}" if phase else None


def _sample(entry: os.DirEntry[str], has_clip: bool) -> Sample:
    stem, modified = entry.name[:-4], entry.stat().st_mtime
    return Sample(int(stem), _prompt(entry.path, modified), entry.name, f"{stem}.webp" if has_clip else None, modified)


@lru_cache(maxsize=20_000)
def _prompt(path: str, _modified: float) -> str | None:
    """What a preview was drawn of, as the picture itself says; the time tells it from its successor."""
    from PIL import Image

    try:
        with Image.open(path, formats=["PNG"]) as picture:
            prompt = picture.info.get("prompt")
    except Exception:  # noqa: BLE001 - a damaged picture fails in many ways, and has no prompt
        return None
    return prompt[:_LONGEST_PROMPT] if isinstance(prompt, str) else None


def _steps(folder: Path) -> Iterator[tuple[int, Path]]:
    """The folders of steps in a folder that is no link."""
    for entry in _entries(folder):
        if (match := _STEP_FOLDER.fullmatch(entry.name)) and entry.is_dir(follow_symlinks=False):
            yield int(match[1]), Path(entry.path)


def _plain_files(folder: Path) -> list[os.DirEntry[str]]:
    """The regular files in a folder that is no link."""
    return [entry for entry in _entries(folder) if entry.is_file(follow_symlinks=False)]


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    with contextlib.suppress(OSError):
        if not leads_away(folder):
            with os.scandir(folder) as found:
                return list(found)
    return []


def settings_shown(settings: dict[str, Any]) -> list[tuple[str, str]]:
    """What matters of a job's settings, for people: field and value, as far as they can be read."""
    found = []
    for place in _SHOWN:
        value: Any = settings
        for part in place.split("."):
            value = value[0] if isinstance(value, list) and value else value
            value = value.get(part) if isinstance(value, dict) else None
        if isinstance(value, list):
            value = ", ".join(str(one) for one in value[:8])
        if value not in (None, "", False) and (isinstance(value, str) or is_number(value) or value is True):
            found.append((place, str(value)[:300]))
    return found


_SHOWN = (
    "model.family",
    "model.source",
    "model.quantization",
    "adapter.type",
    "adapter.rank",
    "adapter.alpha",
    "datasets.folder",
    "datasets.resolutions",
    "trigger",
    "train.steps",
    "train.learning_rate",
    "train.lr_scheduler",
    "train.optimizer",
    "train.batch_size",
    "train.gradient_accumulation",
    "train.timestep_type",
    "train.ema_decay",
    "train.seed",
    "regularization.output_preservation",
    "validation.every",
    "save.every",
    "sample.every",
)
