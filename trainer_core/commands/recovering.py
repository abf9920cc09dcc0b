"""`recover`: a recovery adapter for a quantized base, and what it gives back."""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict

from ..api import Phase, RecoverySettings, cache_of, make_recovery
from ..config import load_job
from . import OK
from .terminal import Progress, print_json, print_table, quiet_libraries, say


def recover(args: argparse.Namespace) -> int:
    """Makes a recovery adapter, and shows what it gives back."""
    job = load_job(args.job)
    if args.quantization:
        job = job.model_copy(update={"model": job.model.but(quantization=args.quantization)})
    settings = RecoverySettings(args.rank, args.batches, args.steps, args.whole_steps)
    quiet_libraries()
    shown = Progress(sys.stderr)
    path, found = make_recovery(
        job, settings, cache_of(args.runs), args.out, lambda what, done, total: shown(Phase(what, done, total))
    )
    shown.clear()
    if args.json:
        told = {name: value for name, value in vars(found).items() if name not in ("branches", "blocks")}
        print_json({"path": str(path), **told, "blocks": [asdict(block) for block in found.blocks]})
        return OK
    print_table(
        ("error", "before", "after"),
        [
            *((block.path, _percent(block.before), _percent(block.after)) for block in found.blocks),
            ("predictions", _percent(found.before), _percent(found.after)),
            ("bits per weight", f"{found.bits_before:.2f}", f"{found.bits_after:.2f}"),
        ],
    )
    say()
    say(path)
    return OK


def _percent(share: float) -> str:
    return f"{share:.2%}"
