"""`import`: the settings of another trainer as a job."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..api import import_config
from . import OK, write_new
from .terminal import print_json, print_table, say


def import_(args: argparse.Namespace) -> int:
    """Writes job and captions to files that are not there yet, and tells what did not come over as it was."""
    made = import_config(args.files[0], args.files[1:])
    out = args.out or (None if args.json else Path("job.yaml"))
    again = f"lora-foundry import {args.files[0]} --out FILE"
    captions = [_beside(out, number) for number in range(len(made.captions))] if out else []
    if out:
        write_new(out, made.text, again)
    for file, one in zip(captions, made.captions, strict=False):
        write_new(file, one.text, again)
    if args.json:
        notes = [{"key": one.key, "kind": one.kind, "text": one.text, "fields": one.fields} for one in made.notes]
        written = str(out) if out else None
        kept = [{"path": str(file), "folder": one.folder} for file, one in zip(captions, made.captions, strict=False)]
        job = made.job.model_dump(mode="json")
        print_json({"tool": made.tool, "path": written, "job": job, "notes": notes, "captions": kept})
        return OK
    print_table(("setting", "", "why"), ((one.key, one.kind, one.text) for one in made.lost))
    say(f"{len(made.notes) - len(made.lost)} settings of {made.tool} are as they were, {len(made.lost)} as told above")
    for file, one in zip(captions, made.captions, strict=True):
        say(f"wrote {file}. Put it into {one.folder} as metadata.jsonl")
    say(f"wrote {out}. Look it over, then: lora-foundry lint {out}, lora-foundry train {out}")
    return OK


def _beside(job: Path, number: int) -> Path:
    """Where the captions of a data set go."""
    return job.with_name(f"{job.stem}.captions{f'_{number + 1}' if number else ''}.jsonl")
