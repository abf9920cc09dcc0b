"""Digests of large files: each is read whole once, and afterwards known by its place, size, times and inode.

What was found is kept in the user's state folder, a small file for each digest, so that processes do not overwrite one
another's. An entry that is damaged, or cannot be written, costs reading the file again and nothing else.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from .errors import SaveError
from .files import state_folder, write_atomically

_READ = 4 << 20
"""Bytes that are read at a time: enough that a disk with heads spends its time reading, though several threads ask."""
_BLOCK = 64 << 20
_READERS = 4
"""One core hashes 0.5 to 2 GB a second, where a disk gives more."""
_SETTLED = 2.0
"""Seconds after which another change of a file is sure to give it another time, on every file system (FAT: 2)."""
_known: dict[str, str] = {}
"""What this process has found, for when the state folder cannot be written."""


def whole_file(path: Path) -> str:
    """Digest of all of a file's bytes.

    Raises:
        OSError: as the system says.
    """
    size = path.stat().st_size
    return _digest(path, [(start, min(start + _BLOCK, size)) for start in range(0, size, _BLOCK)], [])


def spans_of_file(path: Path, spans: Sequence[tuple[int, int]], titles: Sequence[str]) -> str:
    """Digest of parts of a file, each of bytes [start, stop), and of what each of them is called, in that order.

    Raises:
        OSError: as the system says; also if the file ends before a part does.
    """
    return _digest(path, spans, titles)


def _digest(path: Path, spans: Sequence[tuple[int, int]], titles: Sequence[str]) -> str:
    before = _identity(path)
    key = hashlib.sha256("\n".join([before, *titles, *map(str, spans)]).encode("utf-8", "surrogatepass")).hexdigest()
    if found := _known.get(key) or _recalled(key):
        return found
    digest = hashlib.sha256()
    for number, part in enumerate(_hashed(path, spans)):
        digest.update(f"{titles[number] if titles else number}:{part}\n".encode())
    found = digest.hexdigest()
    if before == _identity(path) and abs(time.time() - path.stat().st_mtime) > _SETTLED:
        _remember(key, found)
    return found


def _identity(path: Path) -> str:
    """Changes with a file's content. The time of a file's last change of any kind (ctime) cannot be set by hand."""
    status = path.stat()
    times = f"{status.st_mtime_ns}:{status.st_ctime_ns}"
    return f"{path.resolve()}:{status.st_size}:{times}:{status.st_dev}:{status.st_ino}"


def _hashed(path: Path, spans: Sequence[tuple[int, int]]) -> list[str]:
    """Digests of parts of a file, several at a time, begun in the order in which they lie there."""

    def hashed(span: tuple[int, int]) -> str:
        digest, left = hashlib.sha256(), span[1] - span[0]
        with path.open("rb", buffering=0) as file:
            file.seek(span[0])
            while left:
                block = file.read(min(left, _READ))
                if not block:
                    raise OSError(f"{path}: ends before its weights do")
                digest.update(block)
                left -= len(block)
        return digest.hexdigest()

    pool = ThreadPoolExecutor(min(_READERS, os.cpu_count() or 1))
    try:
        begun = {span: pool.submit(hashed, span) for span in sorted(set(spans))}
        return [begun[span].result() for span in spans]
    finally:
        pool.shutdown(cancel_futures=True)


def _place(key: str) -> Path:
    return state_folder() / "digests" / key


def _recalled(key: str) -> str | None:
    try:
        digest, _, check = _place(key).read_text(encoding="ascii").partition(" ")
    except (OSError, ValueError):
        return None
    return digest if check == _check(key, digest) else None


def _remember(key: str, digest: str) -> None:
    _known[key] = digest
    with contextlib.suppress(SaveError):
        write_atomically(_place(key), f"{digest} {_check(key, digest)}".encode(), durably=False)


def _check(key: str, digest: str) -> str:
    return hashlib.sha256(f"{key}:{digest}".encode()).hexdigest()
