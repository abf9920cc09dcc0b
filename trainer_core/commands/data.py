"""`lint` and `cache`: what is wrong with a data set before it is trained on, and what the encoders' cache holds."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from ..api import (
    GB,
    CacheUsage,
    LintReport,
    Phase,
    cache_of,
    find_tokenizers,
    lint_dataset,
    lint_job,
    size,
    usual_model,
)
from ..config import DatasetConfig, load_job, validated
from ..errors import ConfigError
from . import FAILED, OK
from .terminal import Progress, print_json, print_table, say

_FOLDER_OPTIONS = {
    "trigger": "--trigger",
    "classes": "--class",
    "base": "--base",
    "tokenizers": "--tokenizers",
    "resolutions": "--resolutions",
    "validation_share": "--validation-share",
    "default_caption": "--default",
}
"""What would be ignored beside a job, by its name among the arguments; those without a default of their own."""


def lint(args: argparse.Namespace) -> int:
    """Looks for everything that is wrong with a folder of images, or with all data sets of a job."""
    is_job = args.what.suffix.lower() in {".yaml", ".yml"} and not args.what.is_dir()
    report = _lint_job(args) if is_job else _lint_folder(args)
    if args.json:
        print_json(report.as_dict())
    else:
        _print_report(report)
    return OK if report.ok else FAILED


def cache(args: argparse.Namespace) -> int:
    """Says how much the cache of a runs folder holds, after clearing or shrinking it if that is asked for."""
    store = cache_of(args.runs)
    deleted = CacheUsage(0, 0)
    if args.clear:
        deleted = store.clear()
    elif args.limit is not None:
        deleted = CacheUsage(*store.prune(int(args.limit * GB)))
    usage = store.usage()
    if args.json:
        print_json(
            {
                "folder": str(store.root),
                "entries": usage.entries,
                "bytes": usage.bytes,
                "deleted_entries": deleted.entries,
                "deleted_bytes": deleted.bytes,
            }
        )
        return OK
    if args.clear or args.limit is not None:
        say(f"deleted {_amount(deleted)}")
    say(f"{store.root}: {_amount(usage) if usage.entries else 'empty'}")
    if args.limit is not None and usage.bytes > args.limit * GB:
        say("What was used within the last day stays, for a run may need it; --clear deletes that too")
    return OK


def folder_settings(folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """A data set as the options that `lint` and `captions` share describe it."""
    return {
        "folder": str(folder),
        "trigger": args.trigger,
        "trigger_placement": args.placement,
        "caption_extension": args.extension,
        "caption_column": args.column,
        "caption_per_line": args.caption_per_line,
        "kohya_folders": args.kohya_folders,
        "default_caption": args.default_caption,
    }


def _lint_folder(args: argparse.Namespace) -> LintReport:
    model = usual_model(args.family or "flux1")
    if args.base:
        model = model.but(family=args.family or "auto", source=args.base)
    if args.tokenizers:
        model = model.but(tokenizers=args.tokenizers)
    settings = folder_settings(args.what, args)
    if args.resolutions:
        settings["resolutions"] = args.resolutions
    return lint_dataset(
        validated(DatasetConfig, settings),
        model=model,
        classes=args.classes or (),
        style=args.style or (),
        share=args.validation_share,
        tokenizers=find_tokenizers(model) if args.tokenizers else None,
        progress=_Reading(),
    )


def _lint_job(args: argparse.Namespace) -> LintReport:
    if given := [option for name, option in _FOLDER_OPTIONS.items() if getattr(args, name)]:
        raise ConfigError(f"{args.what}: a job says {', '.join(given)} itself. Leave it out, or set it in the job")
    return lint_job(load_job(args.what), style=args.style or (), progress=_Reading())


class _Reading:
    """The progress line, on a terminal only: a report that goes elsewhere should be nothing but the report."""

    def __init__(self) -> None:
        self._line = Progress(sys.stderr)
        self._shown = sys.stderr.isatty()

    def __call__(self, what: str, done: int, total: int) -> None:
        if not self._shown:
            return
        if done < total:
            if done % 50 == 0:
                self._line(Phase(what, done, total))
        else:
            self._line.clear()


def _print_report(report: LintReport) -> None:
    rows = report.rows()
    if rows:
        print_table((), ((kind, check, f"{files}: {text}" if files else text) for kind, check, files, text in rows))
        say()
    say(report.summary())


def _amount(usage: CacheUsage) -> str:
    return f"{usage.entries} {'entry' if usage.entries == 1 else 'entries'}, {size(usage.bytes)}"
