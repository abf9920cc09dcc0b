"""Every failure that a user can cause or cure. Each message says what is wrong, where, and what to do about it."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence


class FoundryError(Exception):
    """The root: catch this to show a user one clear message instead of a traceback."""


class ConfigError(FoundryError):
    """A job's settings are wrong; the message names the field."""


class DatasetError(FoundryError):
    """A data set cannot be read or trained on; the message names the folder or file."""


class NotListed(DatasetError):
    """A data set or picture is asked for by an id that nobody gave out, or it is not there any more."""


class CaptionChanged(DatasetError):
    """A caption is no longer what its editor saw; nothing was written."""

    def __init__(self, message: str, keys: Sequence[str]) -> None:
        """`keys` are those of the pictures."""
        super().__init__(message)
        self.keys = tuple(keys)


class BaseModelError(FoundryError):
    """A base model cannot be found or loaded; the message names the source."""


class AdapterError(FoundryError):
    """A LoRA file cannot be read, or it does not fit the base."""


class RunError(FoundryError):
    """A run folder cannot be created, resumed or found."""


class RunHeld(RunError):
    """Another process, or another job of this one, works on the run; the message says who."""


class ResumeRefused(ConfigError):
    """A run cannot go on as asked, because it would not be the same run; it is as it was."""

    def __init__(self, message: str, changed: Mapping[str, str] | None = None) -> None:
        """`changed` says of each setting that must not differ what it was and is."""
        super().__init__(message)
        self.changed = dict(changed or {})


class SaveError(RunError):
    """Something could not be written, most often because the disk is full; what was there before is intact."""


class TrainingError(FoundryError):
    """The training itself failed (a loss that is not finite, out of memory)."""


def first_line(error: BaseException) -> str:
    """What a library's exception says, in one line without its full stop; its name if it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


def did_you_mean(name: str, known: Sequence[str]) -> str:
    """The end of a message about an unknown name: the nearest known one, whatever its case, or else all of them."""
    lower = {one.lower(): one for one in known}
    near = difflib.get_close_matches(name.lower(), lower, n=1, cutoff=0.5)
    return f"did you mean `{lower[near[0]]}`?" if near else f"known here: {', '.join(known)}"


class Interrupted(Exception):
    """Ends long work early: raised by what the work calls on its way (progress, on_step), the one way to cancel it."""
