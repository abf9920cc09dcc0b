"""Captions that a tool keeps in one file, by picture: they become the `metadata.jsonl` of our data set."""

from __future__ import annotations

import json
import posixpath
from collections.abc import Mapping
from typing import Any

from ..errors import ConfigError
from ..reading import TEXT_LIMIT, parse_json
from .draft import Captions, Draft
from .files import Files
from .rules import Outcome, plain, section, shown, word

_PATHS = ("image_path", "video_path")
"""What lines call their picture or clip."""


def take_captions(key: str, named: Any, folder: Any, files: Files, draft: Draft, dataset: int) -> None:
    """Takes over the file of captions that a data set names.

    Args:
        key: where it names it.
        folder: of the data set, where it has one.
        dataset: its number.

    Raises:
        ConfigError: if it is no such file.
    """
    found = files.text(named, TEXT_LIMIT) if isinstance(named, str) and named else None
    if found is None:
        say = f"{shown(named)} is not at hand: give it too, or put a metadata.jsonl beside the pictures"
        draft.tell(key, "missing", say)
        return
    name, text = found
    try:
        captions = _lines(text) if name.lower().endswith(".jsonl") else _by_path(section(parse_json(text)))
    except ValueError as error:
        raise ConfigError(f"{plain(name)}: {error}") from None
    paths = [path.replace("\\", "/") for path in captions]
    home = folder.replace("\\", "/").rstrip("/") if isinstance(folder, str) and folder else _common(paths)
    rows, left = [], 0
    names = {posixpath.splitext(one)[0]: one for one in files.names(home)}
    for path, caption in zip(paths, captions.values(), strict=True):
        within = path[len(home) + 1 :] if path.startswith(f"{home}/") else path
        within = within if posixpath.splitext(within)[1] else names.get(within, "")
        if not within or within.startswith(("/", "../")) or within[1:2] == ":":
            left += 1
        elif caption:
            rows.append(json.dumps({"file_name": within, "text": caption}, ensure_ascii=False))
    say = f"{len(rows)} captions, which belong beside the pictures as metadata.jsonl (the command `import` writes it)"
    if left:
        say += f"; {left} of pictures outside {shown(home)}, or whose names have no ending, are left out"
    if '"control_path' in text:
        say += "; its control images are not taken over: put them into folders"
    draft.take(key, Outcome("converted", say, {} if folder else {".folder": home}), dataset)
    draft.captions.append(Captions(home, "".join(f"{row}\n" for row in rows)))


def _lines(text: str) -> dict[str, str]:
    """One object a line: sd-scripts' and musubi-tuner's JSONL."""
    captions = {}
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = section(parse_json(line))
            path = next((row[key] for key in _PATHS if key in row), None)
            captions[word(path)] = _caption(row)
        except ValueError as error:
            raise ValueError(f"line {number}: {error}") from None
    return captions


def _by_path(values: Mapping[str, Any]) -> dict[str, str]:
    """Path → section: sd-scripts' and AI Toolkit's JSON."""
    captions = {}
    for path, value in values.items():
        try:
            captions[path] = _caption(section(value))
        except ValueError as error:
            raise ValueError(f"{plain(path)}: {error}") from None
    return captions


def _caption(row: Mapping[str, Any]) -> str:
    """Caption and tags as one text, as sd-scripts joins them."""
    return ", ".join(part for part in (word(row.get(key) or "") for key in ("caption", "tags")) if part)


def _common(paths: list[str]) -> str:
    """The folder that all pictures are in; `.` if there is none."""
    folders = [posixpath.dirname(path) for path in paths]
    try:
        return posixpath.commonpath(folders) or "."
    except ValueError:  # of none, and of absolute and relative ones
        return "."
