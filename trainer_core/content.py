"""What files hold, read once, and afterwards known by their place, size, times and inode.

Digests of large files are kept in the user's state folder, a small file for each, so that processes do not overwrite
one another's. An entry that is damaged, or cannot be written, costs reading the file again and nothing else. What is
read of small files (`read_once`) is kept by the process alone: looking it up on the disk would take as long.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import wraps
from pathlib import Path
from typing import Concatenate, ParamSpec, TypeVar

from .errors import SaveError
from .files import sha256_of, state_folder, write_atomically

_P = ParamSpec("_P")
_T = TypeVar("_T")
_Identity = tuple[int, int, int, int, int]
"""Of a file: size, time of the last writing, time of the last change of any kind, device, inode."""

_READ = 4 << 20
"""Bytes that are read at a time: enough that a disk with heads spends its time reading, though several threads ask."""
_BLOCK = 64 << 20
_READERS = 4
"""One core hashes 0.5 to 2 GB a second, where a disk gives more."""
_SETTLED = 2.0
"""Seconds after which another change of a file is sure to give it another time, on every file system (FAT: 2)."""
_MOST = 1 << 17
"""Files of which a process keeps what it has read: some hundred bytes each."""
_known: dict[str, str] = {}
"""What this process has found, for when the state folder cannot be written."""


def read_once(read: Callable[Concatenate[Path, _P], _T]) -> Callable[Concatenate[Path, _P], _T]:
    """Makes a function read a file again only when the file, or what else it is given, has changed.

    For use on any thread; callers must not change what they get. Nothing is kept of what is raised.
    """
    kept: dict[object, tuple[_Identity, _T]] = {}

    @wraps(read)
    def known(path: Path, /, *args: _P.args, **kwargs: _P.kwargs) -> _T:
        try:
            now = _identity(path)
        except (OSError, ValueError):
            return read(path, *args, **kwargs)  # which tells it in its own words
        place = (path, args, *kwargs.items())
        before = kept.get(place)
        if before is not None and before[0] == now:
            return before[1]
        settled = _settled(now)
        value = read(path, *args, **kwargs)
        if settled:
            if len(kept) >= _MOST:
                kept.clear()
            kept[place] = now, value
        return value

    return known


sha256_once = read_once(sha256_of)


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
    place = ":".join(map(str, (path.resolve(), *before)))
    key = hashlib.sha256("\n".join([place, *titles, *map(str, spans)]).encode("utf-8", "surrogatepass")).hexdigest()
    if found := _known.get(key) or _recalled(key):
        return found
    digest = hashlib.sha256()
    for number, part in enumerate(_hashed(path, spans)):
        digest.update(f"{titles[number] if titles else number}:{part}\n".encode())
    found = digest.hexdigest()
    if before == _identity(path) and _settled(before):
        _remember(key, found)
    return found


def _identity(path: Path) -> _Identity:
    """Changes with a file's content. The time of a file's last change of any kind (ctime) cannot be set by hand."""
    status = path.stat()
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_dev, status.st_ino


def _settled(identity: _Identity) -> bool:
    """Whether the file was not written just now, when another change might leave it the same times."""
    return abs(time.time() - identity[1] / 1e9) > _SETTLED


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
