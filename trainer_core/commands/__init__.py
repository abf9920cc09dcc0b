"""The commands of `lora-foundry`, a file for each group. Each takes the parsed arguments and returns an exit code."""

from __future__ import annotations

import argparse
from pathlib import Path

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


def write_new(file: Path, text: str, how: str) -> None:
    """Writes a text to a file that is not there yet.

    Args:
        how: what to type to have another name.

    Raises:
        SaveError: if it is there, or cannot be written.
    """
    from ..errors import SaveError

    try:
        with file.open("x", encoding="utf-8", newline="\n") as out:
            out.write(text)
    except FileExistsError:
        raise SaveError(f"{file} exists already and stays as it is; give another name: {how}") from None
    except OSError as error:
        raise SaveError(f"{file}: cannot be written: {error.strerror or error}") from None
