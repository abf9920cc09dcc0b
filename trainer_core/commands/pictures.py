"""`demo` and `sample`: commands whose point is the pictures they draw."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

from .. import api
from ..errors import ConfigError, DatasetError, SaveError
from . import OK, base_options, given
from .terminal import Progress, print_json, quiet_libraries, say

if TYPE_CHECKING:
    from ..api import Drawn


def demo(args: argparse.Namespace) -> int:
    """Teaches the embedded base a new shape and reports what came of it."""
    quiet_libraries()
    api.run_demo(args.out, args.json, args.seed, say)
    return OK


def sample(args: argparse.Namespace) -> int:
    """Draws one picture for each prompt, into files that were not there before."""
    lora = api.find_lora(args.lora, args.runs, base=base_options(args))
    prompts = [api.prompt_with_trigger(prompt, lora.trigger) for prompt in args.prompt or lora.sample.prompts]
    if not prompts:
        raise ConfigError("nothing to draw: give at least one --prompt")
    settings = lora.sample.but(
        negative_prompt=api.prompt_with_trigger(lora.sample.negative_prompt, lora.trigger),
        **given(args, "seed", "width", "height", "steps", "guidance", "frames"),
    )
    try:
        controls = lora.controls(len(prompts), args.control or (), own_prompts=not args.prompt)
    except DatasetError as error:
        say(f"note: drawn without control images; --control names some ({error})", sys.stderr)
        controls = []
    quiet_libraries()
    progress = Progress(sys.stderr if args.json else None)  # stdout is nothing but the JSON
    found = api.sample_frames(
        lora.model,
        prompts,
        lora=lora.path,
        strength=args.strength,
        settings=settings,
        controls=[one.pictures() for one in controls] or [()] * len(prompts),
        progress=lambda done, total: progress(api.Phase("drawing", done, total)),
        cache=api.cache_of(args.runs),
    )
    progress.clear()
    drawn = list(_save(found, args.out, lora.name))
    if args.json:
        files = [[str(file) for file in one.files] for one in controls] or [[] for _ in prompts]
        print_json(
            [
                {"prompt": prompt, "path": str(path), "controls": seen}
                for prompt, path, seen in zip(prompts, drawn, files, strict=True)
            ]
        )
    else:
        for prompt, path in zip(prompts, drawn, strict=True):
            clip = path.with_suffix(".webp")
            say(f"{clip if found.rate and clip.exists() else path}  {prompt}")
    return OK


def _save(drawn: Drawn, folder: Path, stem: str) -> Iterator[Path]:
    """Writes pictures under the next free numbers; of a video its first frame, and beside it what moves.

    Raises:
        SaveError: if the folder or a file cannot be written.
    """
    numbers = count(1)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for frames in drawn.frames:
            path = next(path for n in numbers if not (path := folder / f"{stem}_{n:04}.png").exists())
            frames[0].save(path)
            if drawn.rate is not None and len(frames) > 1:
                path.with_suffix(".webp").write_bytes(api.webp_bytes(frames, drawn.rate))
            yield path
    except OSError as error:
        raise SaveError(f"{folder}: pictures cannot be written: {error.strerror or error}") from None
