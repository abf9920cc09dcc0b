"""`families`, `inspect` and `captions`: tables of what there is, or the same as JSON."""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict

from ..api import describe_lora, family_names, family_spec, inspect_dataset, size
from ..config import DatasetConfig, validated
from . import OK
from .data import folder_settings
from .terminal import print_json, print_table, say

_LONGEST_CELL = 100


def families(args: argparse.Namespace) -> int:
    """The model families, from their specs alone."""
    specs = [family_spec(name) for name in family_names()]
    if args.json:
        print_json([asdict(spec) for spec in specs])
        return OK
    print_table(
        ("family", "title", "category", "default repository", "gated", "memory", "parts"),
        (
            (
                spec.name,
                spec.title,
                spec.category,
                spec.default_repo,
                "yes" if spec.gated else "no",
                spec.vram_gb,
                ", ".join(part.name for part in spec.parts),
            )
            for spec in specs
        ),
    )
    return OK


def inspect(args: argparse.Namespace) -> int:
    """What a LoRA file holds."""
    facts = describe_lora(args.lora)
    if args.json:
        print_json(facts)
        return OK
    metadata = facts.pop("metadata")
    print_table(("LoRA", ""), ((name.replace("_", " "), _cell(name, value)) for name, value in facts.items()))
    if metadata:
        say()
        print_table(("metadata", ""), ((name, _shortened(text)) for name, text in sorted(metadata.items())))
    return OK


def captions(args: argparse.Namespace) -> int:
    """Every image's caption as the text encoder sees it."""
    dataset = validated(DatasetConfig, folder_settings(args.folder, args))
    summary = inspect_dataset(dataset)
    if args.json:
        print_json(
            {
                "folder": str(args.folder),
                "count": summary.count,
                "captions": [{"file": file, "caption": caption} for file, caption in summary.captions],
                "without_caption": summary.missing_captions,
                "warnings": summary.warnings,
            }
        )
        return OK
    print_table(("image", "caption"), summary.captions)
    for warning in summary.warnings:
        say(f"warning: {warning}", sys.stderr)
    return OK


def _shortened(text: str) -> str:
    """The head of a long text; --json has it whole."""
    return text if len(text) <= _LONGEST_CELL else f"{text[: _LONGEST_CELL - 4]} ..."


def _cell(name: str, value: object) -> object:
    """A fact for reading: sizes in units, lists without brackets."""
    if name == "size_bytes" and isinstance(value, int):
        return size(value)
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else value
