"""Captions out of `metadata.jsonl` and `metadata.csv`, as Hugging Face's `imagefolder` has them.

Each row names an image (`file_name`, relative to the file's own folder) and has its caption in a column. In a
`metadata.jsonl` the caption may be a list of captions; several rows for one image are several captions too.
"""

from __future__ import annotations

import csv
import io
import posixpath
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PureWindowsPath
from typing import Any

from ..content import read_once
from ..errors import DatasetError
from ..reading import TEXT_LIMIT, parse_json, read_regular
from .text import NO_TEXT, composed, is_text

METADATA_FILES = ("metadata.jsonl", "metadata.csv")
"""By precedence: where an image has captions in both, the first counts."""
_NAME = "file_name"


@dataclass
class Metadata:
    """What the metadata files of a folder and of its sub-folders say."""

    captions: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """By the image's path relative to the folder, with `/`, `composed`; only images that have captions."""
    files: dict[str, Path] = field(default_factory=dict)
    """All images that are named, as they are written, and where."""
    columns: set[str] = field(default_factory=set)
    """All columns that there are."""
    problems: list[str] = field(default_factory=list)
    """What is wrong with the files that cannot be used, each with file and line; nothing of these is here."""


def read_metadata(folder: Path, files: Iterable[Path], column: str) -> Metadata:
    """Reads metadata files that lie in a folder or below it. A file that lies nearer to an image wins."""
    metadata, tables = Metadata(), list[Metadata]()
    # the deepest first, and in a folder METADATA_FILES' order
    for path in sorted(files, key=lambda path: (-len(path.parts), path.parent, METADATA_FILES.index(path.name))):
        try:
            tables.append(_table(path, path.parent.relative_to(folder).as_posix(), column))
        except DatasetError as error:
            metadata.problems.append(str(error))
    for table in reversed(tables):  # those that come first have the last word
        metadata.captions |= table.captions
        metadata.files |= table.files
        metadata.columns |= table.columns
    return metadata


@read_once
def _table(path: Path, below: str, column: str) -> Metadata:
    """What a single file says; `below` is its own folder, relative to the data set's.

    Raises:
        DatasetError: for a file that cannot be read, is no valid JSON or CSV, or holds rows without a file name, with
            one that leads out of the folder, or with a caption that is no text; the message has file and line.
    """
    table = Metadata()
    captions: dict[str, list[str]] = {}
    for line, row in _json_lines(path) if path.suffix == ".jsonl" else _csv_rows(path):
        name = row.get(_NAME)
        if not isinstance(name, str) or not name.strip() or not is_text(name):
            raise DatasetError(f"{path}, line {line}: has no `{_NAME}`. Each row names its image there")
        key = _key(below, name.strip(), f"{path}, line {line}")
        table.files.setdefault(key, path)
        table.columns.update(row.keys())
        captions.setdefault(composed(key), []).extend(_captions(row.get(column), f"{path}, line {line}: `{column}`"))
    table.captions = {key: tuple(texts) for key, texts in captions.items() if texts}
    return table


def _key(below: str, name: str, where: str) -> str:
    """The key of an image that a row names; only names are compared here, nothing is looked up.

    Raises:
        DatasetError: for a name that leads out of the data set's folder: on Windows, merely asking whether
            `//server/share/a.png` is there sends the user's credentials to that server.
    """
    key = posixpath.normpath(posixpath.join(below, name.replace("\\", "/")))
    if key.startswith(("/", "../")) or key == ".." or PureWindowsPath(name).drive:
        raise DatasetError(f"{where}: `{_NAME}` {name[:200]!r} leads out of the data set's folder. Name an image in it")
    return key


def _captions(value: Any, where: str) -> list[str]:
    texts = value if isinstance(value, list) else [value]
    if any(text is not None and not isinstance(text, str) for text in texts):
        raise DatasetError(f"{where} is neither a text nor a list of texts. Write the caption in quotation marks")
    if not all(is_text(text) for text in texts if text):
        raise DatasetError(f"{where} {NO_TEXT}. Remove it")
    return [text.strip() for text in texts if text and text.strip()]


def _json_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    # not splitlines(), which breaks at characters that may stand in a JSON text
    for number, line in enumerate(_text(path).split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = parse_json(line)
        except ValueError as error:
            raise DatasetError(f"{path}, line {number}: is no valid JSON ({error}). Each line is one object") from None
        if not isinstance(row, dict):
            raise DatasetError(f'{path}, line {number}: is no JSON object, such as {{"{_NAME}": "a.png", "text": "…"}}')
        yield number, row


def _csv_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    reader = csv.DictReader(io.StringIO(_text(path), newline=""), strict=True, skipinitialspace=True)
    try:
        if _NAME not in (header := reader.fieldnames or []):
            raise DatasetError(
                f"{path}, line 1: has no column `{_NAME}` (columns, separated by commas: {', '.join(header) or 'none'})"
            )
        for row in reader:
            if None in row:
                raise DatasetError(
                    f"{path}, line {reader.line_num}: has more columns than the first line. Put texts that hold commas "
                    "into quotation marks"
                )
            yield reader.line_num, row
    except csv.Error as error:
        # the inner reader's line: the outer one's is that of the last good row
        raise DatasetError(f"{path}, line {reader.reader.line_num}: is no valid CSV ({error})") from None


def _text(path: Path) -> str:
    try:
        data = read_regular(path, TEXT_LIMIT)
    except OSError as error:
        raise DatasetError(f"{path}: cannot be read ({error.strerror or error})") from None
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DatasetError(f"{path}, line {line}: is not UTF-8 text. Save it as UTF-8") from None
