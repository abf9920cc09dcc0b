"""Values of options, as argparse takes them: it reports what is refused."""

from __future__ import annotations

import argparse
import math
from pathlib import Path


def seed(text: str) -> int:
    """A whole number that can be a seed; argparse reports what is refused."""
    value = int(text)
    if not 0 <= value < 2**63:
        raise argparse.ArgumentTypeError("must lie between 0 and 2^63 - 1")
    return value


def number(text: str) -> float:
    """A number that is one: neither infinite nor nan."""
    value = float(text)
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError("must be finite")
    return value


def absolute(text: str) -> str:
    """A path as the job that it goes into has it."""
    return str(Path(text).expanduser().absolute())


def count(text: str) -> int:
    """A whole number from 1 on."""
    value = int(text)
    if not 1 <= value < 2**31:
        raise argparse.ArgumentTypeError("must be 1 or more")
    return value


def whole(text: str) -> int:
    """A whole number from 0 on."""
    value = int(text)
    if not 0 <= value < 2**31:
        raise argparse.ArgumentTypeError("must not be negative")
    return value


def which_step(text: str) -> int | str:
    """A step, or which checkpoint in a word."""
    return text if text in ("best", "latest") else count(text)


def size(text: str) -> float:
    """A number that is not negative."""
    value = number(text)
    if value < 0:
        raise argparse.ArgumentTypeError("must not be negative")
    return value


def positive(text: str) -> float:
    """A number above 0."""
    value = number(text)
    if value <= 0:
        raise argparse.ArgumentTypeError("must be above 0")
    return value


def share(text: str) -> float:
    """A share of a data set that validation may hold out."""
    value = number(text)
    if not 0 <= value <= 0.5:
        raise argparse.ArgumentTypeError("must lie between 0 and 0.5")
    return value


# argparse says "invalid number value: …"
seed.__name__ = count.__name__ = whole.__name__ = which_step.__name__ = "whole number"
number.__name__ = size.__name__ = share.__name__ = "number"
