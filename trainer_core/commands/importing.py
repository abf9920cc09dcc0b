"""`import`: the settings of another trainer as a job."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..api import import_config
from . import OK, write_new
from .terminal import print_json, print_table, say


def import_(args: argparse.Namespace) -> int:
    """Writes the job to a file that is not there yet, and tells what did not come over as it was."""
    made = import_config(args.files[0], args.files[1:])
    out = args.out or (None if args.json else Path("job.yaml"))
    if out:
        write_new(out, made.text, f"lora-foundry import {args.files[0]} --out FILE")
    if args.json:
        notes = [{"key": one.key, "kind": one.kind, "text": one.text, "fields": one.fields} for one in made.notes]
        written = str(out) if out else None
        print_json({"tool": made.tool, "path": written, "job": made.job.model_dump(mode="json"), "notes": notes})
        return OK
    print_table(("setting", "", "why"), ((one.key, one.kind, one.text) for one in made.lost))
    say(f"{len(made.notes) - len(made.lost)} settings of {made.tool} are as they were, {len(made.lost)} as told above")
    say(f"wrote {out}. Look it over, then: lora-foundry lint {out}, lora-foundry train {out}")
    return OK
