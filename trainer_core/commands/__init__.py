"""The commands of `lora-foundry`, a file for each group. Each takes the parsed arguments and returns an exit code."""

from __future__ import annotations

import argparse

OK, FAILED, INTERRUPTED = 0, 1, 130
"""Exit codes. argparse itself leaves with 2 on wrong usage."""


def given(args: argparse.Namespace, *names: str) -> dict[str, object]:
    """Those of some options that stand on the command line."""
    return {name: value for name in names if (value := getattr(args, name, None)) is not None}


def base_options(args: argparse.Namespace) -> dict[str, object]:
    """What the command line says of a LoRA's base, as fields of `ModelConfig`."""
    from ..api import file_parts

    source = {} if args.base is None else {"source": args.base}
    return {**given(args, "family", "device", "tokenizers"), **source, "files": given(args, *file_parts())}
