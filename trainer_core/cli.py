"""The command line: `lora-foundry` and `python -m trainer_core`. What each command does is in `commands/`.

Exit codes: 0 done; 1 an error, told in one message on stderr; 2 wrong usage; 130 stopped (training is saved
first, unless it was interrupted twice).
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TextIO

from .commands import FAILED, INTERRUPTED
from .commands.parser import parser_of
from .errors import FoundryError


def main(argv: Sequence[str] | None = None, begin: Callable[[], None] | None = None) -> int:
    """Runs one command and returns its exit code. Only wrong usage leaves through SystemExit (argparse, code 2).

    Args:
        begin: what comes before all else, such as starting a host.
    """
    _print_anything()
    arguments = sys.argv[1:] if argv is None else argv
    debug = "--debug" in arguments
    try:
        if begin:
            begin()
        code = _run(arguments)
        sys.stdout.flush()  # here and not at Python's exit, where a failure would be a traceback
        return code
    except BrokenPipeError:  # `… | head`: nobody reads on. What Python still holds for stdout must not fail at exit
        _discard_output(sys.stdout)
        return FAILED
    except KeyboardInterrupt:
        _complain("interrupted")
        return INTERRUPTED
    except FoundryError as error:
        if debug:
            raise
        _complain(str(error))
    except Exception as error:
        if debug:
            raise
        _complain(f"unexpected error: {type(error).__name__}: {error}\nRun it again with --debug to see where.")
    return FAILED


def _run(arguments: Sequence[str]) -> int:
    parser = parser_of(arguments)
    args, unknown = parser.parse_known_args(arguments)
    if "comfyui" in args:
        from .commands.comfyui import run_with_comfyui

        code = run_with_comfyui(args, arguments)  # which knows more options: those for the parts of its models
        if code is not None:
            return code
    if unknown:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    done: int = args.command(args)
    return done


def _complain(message: str) -> None:
    from .api import redacted
    from .commands.terminal import say

    try:
        sys.stdout.flush()
    except OSError:  # what could not be printed is not tried again at exit
        _discard_output(sys.stdout)
    try:
        say(f"lora-foundry: {redacted(message)}", sys.stderr)
    except OSError:  # nobody reads on: the exit code tells
        _discard_output(sys.stderr)


def _discard_output(stream: TextIO) -> None:
    """What a stream still holds, and what comes, goes nowhere from now on."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


def _print_anything() -> None:
    """Captions may hold letters that a console's or pipe's encoding lacks (Windows): show them escaped, do not fail.

    A stream that is closed (`>&-`, a program without a console) is None: what is printed there goes nowhere.
    """
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
