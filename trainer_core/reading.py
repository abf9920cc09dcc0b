"""Reading files that somebody else made: regular files only, no more than a limit, and JSON that cannot surprise.

Opening a named pipe waits for a writer for ever, a device never ends, and a text of nothing but brackets exhausts
Python's stack. Whoever reads a file of a data set, a base or a LoRA that came from elsewhere reads it through here.
"""

from __future__ import annotations

import errno
import json
import os
import stat
from pathlib import Path
from typing import Any, NoReturn

TEXT_LIMIT = 64_000_000
"""Bytes of a text file: 200,000 captions of 300 letters."""
_JUNCTION = 0xA0000003
"""Windows' IO_REPARSE_TAG_MOUNT_POINT."""
CONFIG_LIMIT = 64_000_000
"""Bytes of a model's JSON files; tokenizers of large vocabularies have 35 MB."""


def read_regular(path: Path, limit: int) -> bytes:
    """A regular file's bytes (or those of the file that a link leads to).

    Raises:
        FileNotFoundError: if it is not there.
        OSError: as the system says; and for pipes, devices and folders, and files of more than `limit` bytes.
    """
    check_regular(path)
    with path.open("rb") as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise OSError(errno.EFBIG, f"is larger than {limit / 1e6:g} MB", str(path))
    return data


def check_regular(path: Path) -> None:
    """Refuses what is no regular file (nor a link to one), before it is opened.

    Raises:
        FileNotFoundError: if it is not there.
        OSError: as the system says; and for pipes, devices and folders.
    """
    try:
        status = path.stat()
    except ValueError as error:  # a name with a zero byte, or one that is no text
        raise OSError(errno.EINVAL, str(error), str(path)) from None
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "is no regular file", str(path))


def is_file(path: Path) -> bool:
    """Whether there is such a file; `Path.is_file` alone raises for names that no file system takes."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def is_folder(path: Path) -> bool:
    """Whether there is such a folder; `is_dir` alone raises for names that no file system takes."""
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False


def leads_away(path: str | os.PathLike[str]) -> bool:
    """Whether a file or folder is a link, or a junction, which Windows does not call one.

    Raises:
        OSError: if it is not there.
    """
    status = os.lstat(path)
    return stat.S_ISLNK(status.st_mode) or getattr(status, "st_reparse_tag", 0) == _JUNCTION


def parse_json(text: str | bytes) -> Any:
    """A JSON text's value.

    Raises:
        ValueError: if it is no JSON: NaN and Infinity are none, and nesting has an end.
    """
    try:
        return json.loads(text, parse_constant=_no_number)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def read_json(path: Path, limit: int = CONFIG_LIMIT) -> Any:
    """A JSON file's value.

    Raises:
        OSError: as `read_regular` does.
        ValueError: as `parse_json` does, and for a text that is not UTF-8.
    """
    return parse_json(read_regular(path, limit).decode("utf-8-sig"))


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"{text} is no JSON number")
