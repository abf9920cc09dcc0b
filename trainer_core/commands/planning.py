"""`plan`: what a job takes of the device's memory, under each setting, and which one is chosen."""

from __future__ import annotations

import argparse

from ..api import plan_job, size
from ..config import load_job
from . import OK
from .terminal import print_json, print_table, say


def plan(args: argparse.Namespace) -> int:
    """One table of settings; nothing is downloaded or loaded beyond configurations and headers."""
    planned = plan_job(load_job(args.job), args.memory or ())
    if args.json:
        print_json(planned.as_dict())
        return OK
    cards = [f"{card:.3g} GB" for card in planned.chosen]
    rows = [*planned.rows, *(row for row in planned.chosen.values() if row and row not in planned.rows)]
    print_table(
        ("setting", "peak", "of it weights", "in host memory", "time", *(f"fits {card}" for card in cards)),
        (
            (
                row.label,
                size(row.peak),
                size(row.memory["weights"]),
                size(row.host) if row.host else "",
                f"x{row.time:.2f}",
                *(
                    "chosen" if row == chosen else ("yes" if planned.fits(row, card) else "no")
                    for card, chosen in planned.chosen.items()
                ),
            )
            for row in rows
        ),
    )
    if planned.phases:
        say()
        print_table(
            ("before and between steps", "peak"), ((name, size(value)) for name, value in planned.phases.items())
        )
    for card, row in planned.chosen.items():
        if row is None:
            say(f"{card:.3g} GB: nothing fits. Choose lower bits (model.quantization), or smaller pictures or batches")
    say("\nPredicted. Gradient checkpointing and layer offloading (low VRAM) change memory and time, not results.")
    return OK
