"""`demo` and `sample`: commands whose point is the pictures they draw."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

from ..config import JobConfig, ModelConfig, SampleConfig, validated
from ..config.model import MODEL_FILES
from ..errors import ConfigError, RunError, SaveError
from ..families.sources import is_repository_id
from ..reading import parse_json
from . import OK
from .terminal import Progress, print_json, quiet_libraries

if TYPE_CHECKING:
    from PIL.Image import Image


def demo(args: argparse.Namespace) -> int:
    """Teaches the embedded base a new shape and reports what came of it."""
    from ..demo import run_demo

    quiet_libraries()
    run_demo(args.out, args.json, args.seed, lambda line: print(line, flush=True))
    return OK


def sample(args: argparse.Namespace) -> int:
    """Draws one picture for each prompt, into files that were not there before."""
    from ..data.captions import with_trigger
    from ..sampling import preview
    from ..training import events

    lora, model, settings, trigger = _subject(args)
    prompts = [with_trigger(prompt, trigger, "only_placeholder") for prompt in args.prompt or settings.prompts]
    if not prompts:
        raise ConfigError("nothing to draw: give at least one --prompt")
    quiet_libraries()
    progress = Progress()
    pictures = preview(
        model,
        prompts,
        lora=lora,
        strength=args.strength,
        sample=settings,
        progress=lambda done, total: progress(events.Phase("drawing", done, total)),
    )
    progress.clear()
    drawn = list(_save(pictures, args.out, Path(args.lora).stem))
    if args.json:
        print_json([{"prompt": prompt, "path": str(path)} for prompt, path in zip(prompts, drawn, strict=True)])
    else:
        for prompt, path in zip(prompts, drawn, strict=True):
            print(f"{path}  {prompt}")
    return OK


def _subject(args: argparse.Namespace) -> tuple[Path, ModelConfig, SampleConfig, str | None]:
    """The LoRA file, its base, how to draw, the trigger: a run knows all four, our files do too."""
    path = Path(args.lora).expanduser()
    if path.is_file():
        from ..adapters.export import describe_lora

        facts = describe_lora(path)
        model, settings, trigger = ModelConfig(), SampleConfig(), facts["trigger"]
        if args.base is None:
            job = job_of_file(path, facts["metadata"])
            model, settings, trigger = job.model, job.sample, job.preview_trigger
        elif args.family is None:
            model = model.but(family=family_of_file(facts["metadata"]))
    else:
        from .runs import find_run

        run = find_run(args.lora, args.runs)
        newest = run.latest()
        if newest is None:
            raise RunError(f"{run.path} has no checkpoint yet, so there is no LoRA to draw with")
        job = run.job()
        path, model, settings, trigger = newest.lora, job.model, job.sample, job.preview_trigger
    files = {name: getattr(args, name) for name in MODEL_FILES}
    model = model.but(**given(family=args.family, source=args.base, device=args.device, **files))
    drawing = {name: getattr(args, name) for name in ("seed", "width", "height", "steps", "guidance")}
    return path, model, settings.but(**given(**drawing)), trigger


def job_of_file(path: Path, metadata: dict[str, str]) -> JobConfig:
    """The job that a LoRA file of ours was trained with.

    Raises:
        ConfigError: if the file says none, or names a base by a folder: which one is not a file's to say, least of all
            one on another machine (`//server/share`).
    """
    told = metadata.get("lora_foundry.config")
    if told is None:
        raise ConfigError(f"{path} does not say which base model it belongs to: name it with --base")
    try:
        job = validated(JobConfig, parse_json(told))
    except ValueError as error:
        raise ConfigError(f"{path} tells its settings wrongly ({error}): name its base with --base") from None
    source = job.model.source
    if source != "embedded" and not is_repository_id(source):
        raise ConfigError(f"{path} belongs to a base model in a folder called {source!r}: say where it is with --base")
    return job


def family_of_file(metadata: dict[str, str]) -> str:
    """The family that a LoRA file is for, if it says so in a way that can be believed; else the usual default."""
    from ..families.registry import family_names, family_spec

    told: object = None
    with contextlib.suppress(ValueError, KeyError, TypeError):
        told = parse_json(metadata["lora_foundry.config"])["model"]["family"]
    names = family_names()
    if isinstance(told, str) and told in names:
        return told
    version = metadata.get("ss_base_model_version")  # kohya's word for it
    known = {family_spec(name).base_model_version: name for name in reversed(names)}
    return known.get(version or "-", ModelConfig().family)


def given(**options: object) -> dict[str, object]:
    """The options that stand on the command line."""
    return {name: value for name, value in options.items() if value is not None}


def _save(pictures: list[Image], folder: Path, stem: str) -> Iterator[Path]:
    """Writes pictures under the next free numbers.

    Raises:
        SaveError: if the folder or a file cannot be written.
    """
    numbers = count(1)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for picture in pictures:
            path = next(path for n in numbers if not (path := folder / f"{stem}_{n:04}.png").exists())
            picture.save(path)
            yield path
    except OSError as error:
        raise SaveError(f"{folder}: pictures cannot be written: {error.strerror or error}") from None
