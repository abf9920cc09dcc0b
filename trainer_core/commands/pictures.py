"""`demo` and `sample`: commands whose point is the pictures they draw."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ..config import JobConfig, ModelConfig, SampleConfig, validated
from ..errors import ConfigError, DatasetError, RunError, SaveError
from ..families.registry import file_parts
from ..families.sources.source import is_repository_id
from ..reading import parse_json
from . import OK
from .runs import find_lora
from .terminal import Progress, print_json, quiet_libraries, say

if TYPE_CHECKING:
    from PIL.Image import Image

    from ..sampling.controls import PromptControls


def demo(args: argparse.Namespace) -> int:
    """Teaches the embedded base a new shape and reports what came of it."""
    from ..demo import run_demo

    quiet_libraries()
    run_demo(args.out, args.json, args.seed, say)
    return OK


def sample(args: argparse.Namespace) -> int:
    """Draws one picture for each prompt, into files that were not there before."""
    from ..data.captions import prompt_with_trigger
    from ..runs import events
    from ..sampling.preview import preview

    name, lora, model, settings, trigger, job = _subject(args)
    prompts = [prompt_with_trigger(prompt, trigger) for prompt in args.prompt or settings.prompts]
    settings = settings.but(negative_prompt=prompt_with_trigger(settings.negative_prompt, trigger))
    if not prompts:
        raise ConfigError("nothing to draw: give at least one --prompt")
    controls = _controls(args, model, settings, job, len(prompts))
    quiet_libraries()
    progress = Progress(sys.stderr if args.json else None)  # stdout is nothing but the JSON
    pictures = preview(
        model,
        prompts,
        lora=lora,
        strength=args.strength,
        sample=settings,
        controls=[one.pictures() for one in controls],
        progress=lambda done, total: progress(events.Phase("drawing", done, total)),
    )
    progress.clear()
    drawn = list(_save(pictures, args.out, name))
    if args.json:
        print_json(
            [
                {"prompt": prompt, "path": str(path), "controls": [str(file) for file in seen.files]}
                for prompt, path, seen in zip(prompts, drawn, controls, strict=True)
            ]
        )
    else:
        for prompt, path in zip(prompts, drawn, strict=True):
            say(f"{path}  {prompt}")
    return OK


def _controls(
    args: argparse.Namespace, model: ModelConfig, settings: SampleConfig, job: JobConfig | None, count: int
) -> list[PromptControls]:
    """The control images of each prompt: those on the command line, else the run's own.

    Raises:
        ConfigError: if they are not there, or do not fit the family or the prompts.
    """
    from ..families.registry import family_spec
    from ..sampling.controls import check_controls_of, of_job, of_settings

    spec = family_spec(model.family)
    if args.control:
        settings = settings.but(controls=args.control)
    elif args.prompt and len(settings.controls) > 1:
        settings = settings.but(controls=())  # they belong to the run's own prompts
    check_controls_of(settings, spec)
    if job is None or settings.controls:
        return of_settings(settings, count)
    try:
        return of_job(job.model_copy(update={"sample": settings}), spec, count)
    except DatasetError as error:
        say(f"note: drawn without control images; --control names some ({error})", sys.stderr)
        return of_settings(settings, count)


class _Subject(NamedTuple):
    """What `sample` draws with."""

    name: str
    lora: Path
    model: ModelConfig
    settings: SampleConfig
    trigger: str | None
    job: JobConfig | None
    """A run's; None of a file."""


def _subject(args: argparse.Namespace) -> _Subject:
    """What a run or a LoRA file says itself, as far as the command line does not say otherwise."""
    run_job, found = None, find_lora(args.lora, args.runs)
    if isinstance(found, Path):
        from ..adapters.export import describe_lora

        name, path = found.name.removesuffix(".safetensors"), found
        facts = describe_lora(path)
        model, settings, trigger = ModelConfig(), SampleConfig(), facts["trigger"]
        if args.base is None:
            job = job_of_file(path, facts["metadata"])
            # of control images the file tells the names alone
            model, settings, trigger = job.model, job.sample.but(controls=()), job.preview_trigger
        elif args.family is None:
            model = model.but(family=family_of_file(facts["metadata"]))
    else:
        newest = found.latest()
        if newest is None:
            raise RunError(f"{found.path} has no checkpoint yet, so there is no LoRA to draw with")
        job = run_job = found.job()
        name, path = found.name, newest.lora
        model, settings, trigger = job.model, job.sample, job.preview_trigger
    model = model.but(**given(device=args.device), **base_options(args, model))
    drawing = {name: getattr(args, name) for name in ("seed", "width", "height", "steps", "guidance")}
    return _Subject(name, path, model, settings.but(**given(**drawing)), trigger, run_job)


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


def base_options(args: argparse.Namespace, model: ModelConfig) -> dict[str, object]:
    """The fields of a base that the command line changes."""
    files = {**model.files, **given(**{part: getattr(args, part) for part in file_parts()})}
    return {**given(family=args.family, source=args.base, tokenizers=args.tokenizers), "files": files}


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
