"""A cache on disk, addressed by content: what a picture or a caption becomes once an encoder has seen it.

A key is a digest of everything the entry depends on (the file's bytes, the transform, the encoder's weights and
precision, the caption's text), so an entry is never stale and may be shared between runs. Its last bits also depend on
who encoded, so an entry says in which environment it was made. Entries appear by one rename; two runs that write the
same one in the same environment write the same bytes. A damaged entry counts as absent. A file's modification time says
when it was last used, so that `prune` knows what nobody needs.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import struct
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import SaveError
from ..files import write_atomically

if TYPE_CHECKING:
    from torch import Tensor

CACHE_FOLDER = ".cache"
"""Below a runs folder; all runs there share it."""
_ENTRY = re.compile(r"[0-9a-f]{64}\.safetensors")
_UNFINISHED = re.compile(r"\.[0-9a-f]{64}\.safetensors\.[0-9a-f]{8}\.tmp")
"""What a killed run leaves of an entry (see `files.write_atomically`)."""
_DAY = 86_400.0
_MARK_AFTER = 3600.0
"""Seconds after which another use of an entry is worth writing down."""


def key_of(*parts: object) -> str:
    """The key for what an entry depends on."""
    return hashlib.sha256("\x1f".join(str(part) for part in parts).encode()).hexdigest()


@dataclass(frozen=True)
class CacheUsage:
    """How much a cache holds."""

    entries: int
    bytes: int


@dataclass(frozen=True)
class _File:
    path: Path
    bytes: int
    used: float
    entry: bool


class TensorCache:
    """Named tensors under keys, each entry one safetensors file."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._found_intact: set[str] = set()
        self._made_by: dict[str, str] = {}
        """Of the entries that were read or written here."""

    def get(self, key: str) -> dict[str, Tensor] | None:
        """The entry, in memory of its own, or None. It counts as used now.

        The first time in a process its values are hashed; drawing a batch again and again would mostly be hashing.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load

        path = self._path(key)
        try:
            data = path.read_bytes()
            tensors = load(data)
            (length,) = struct.unpack("<Q", data[:8])
            metadata = json.loads(data[8 : 8 + length])["__metadata__"]
            known, made_by = metadata["sha256"], sys.intern(metadata.get("made_by", ""))
        except (OSError, SafetensorError, KeyError):
            return None
        if key not in self._found_intact:
            if known != _sum(tensors):
                return None
            self._found_intact.add(key)
        self._made_by[key] = made_by
        _mark_used(path)
        return tensors

    def made_by(self, key: str) -> str:
        """The environment that an entry was made in, as `get` found it last or `put` was told; empty if unknown."""
        return self._made_by.get(key, "")

    def put(self, key: str, tensors: dict[str, Tensor], made_by: str = "") -> None:
        """Stores an entry.

        Args:
            made_by: what its last bits depend on beside the key; whoever wants to know asks `made_by`.

        Raises:
            SaveError: if it cannot be written.
        """
        from safetensors.torch import save

        own = {name: value.contiguous() for name, value in tensors.items()}
        try:
            # waiting for the disk would take longer than encoding; what a power cut damages is made again
            data = save(own, {"sha256": _sum(own), **({"made_by": made_by} if made_by else {})})
            write_atomically(self._path(key), data, durably=False)
            self._made_by[key] = sys.intern(made_by)
        except SaveError as error:
            # Windows does not replace a file that another run is just reading: then the entry is there already
            if not isinstance(error.__cause__, PermissionError) or self.get(key) is None:
                raise

    def usage(self) -> CacheUsage:
        """Number and size of the entries."""
        sizes = [file.bytes for file in self._files() if file.entry]
        return CacheUsage(len(sizes), sum(sizes))

    def prune(self, limit_bytes: int, spare: float = _DAY) -> tuple[int, int]:
        """Deletes what was not used for longest until the cache is within a limit; gives number and size of it.

        What was used or written within the last `spare` seconds stays, even beyond the limit: another run may need it.
        Files that are not the cache's own are left alone and do not count.
        """
        files, newest = list(self._files()), time.time() - spare
        over = sum(file.bytes for file in files if file.entry) - limit_bytes
        entries = freed = 0
        for file in sorted(files, key=lambda file: file.used):
            if file.used > newest:
                break
            if (over > 0 or not file.entry) and _remove_unused(file.path, newest):
                over -= file.bytes * file.entry
                entries, freed = entries + file.entry, freed + file.bytes * file.entry
        return entries, freed

    def clear(self) -> CacheUsage:
        """Deletes all entries, those in use too (a run that needs one makes it again); says what was deleted."""
        removed = [file for file in self._files() if _remove_unused(file.path, float("inf")) and file.entry]
        return CacheUsage(len(removed), sum(file.bytes for file in removed))

    def _files(self) -> Iterator[_File]:
        """The cache's own files: entries, and what killed runs left half-written."""
        for folder in _listed(self.root):
            if len(folder.name) != 2 or not folder.is_dir(follow_symlinks=False):
                continue
            for file in _listed(Path(folder.path)):
                entry = _ENTRY.fullmatch(file.name) is not None
                if not entry and not _UNFINISHED.fullmatch(file.name):
                    continue
                with contextlib.suppress(OSError):  # deleted by another run just now
                    if file.is_file(follow_symlinks=False):
                        status = file.stat(follow_symlinks=False)
                        yield _File(Path(file.path), status.st_size, status.st_mtime, entry)

    def _path(self, key: str) -> Path:
        return self.root / key[:2] / f"{key}.safetensors"


class CacheMiss(Exception):
    """An entry that was there is gone or damaged: another run may have cleared the cache. Encode again."""


class RecentEntries:
    """A cache whose recently used entries are kept in memory as well; any thread may ask."""

    def __init__(self, cache: TensorCache, limit: int) -> None:
        """`limit` is in bytes; the last entry is kept even if it is larger."""
        self._cache, self._limit, self._used = cache, limit, 0
        self._entries: OrderedDict[str, dict[str, Tensor]] = OrderedDict()
        self._lock = threading.Lock()  # batches are drawn by a thread of their own, while previews read as well

    def get(self, key: str) -> dict[str, Tensor] | None:
        """The entry or None."""
        with self._lock:
            if key in self._entries:
                self._entries.move_to_end(key)
                return self._entries[key]
        entry = self._cache.get(key)
        if entry is not None:
            self._remember(key, entry)
        return entry

    def entry(self, key: str) -> dict[str, Tensor]:
        """The entry.

        Raises:
            CacheMiss: if it is gone or damaged.
        """
        found = self.get(key)
        if found is None:
            raise CacheMiss(key)
        return found

    def put(self, key: str, entry: dict[str, Tensor], made_by: str = "") -> None:
        """As `TensorCache.put`.

        Raises:
            SaveError: if it cannot be written.
        """
        self._cache.put(key, entry, made_by)
        self._remember(key, entry)

    def forget(self) -> None:
        """Keeps nothing in memory, so that what is there is on the disk as well."""
        with self._lock:
            self._entries.clear()
            self._used = 0

    def made_by(self, key: str) -> str:
        """As `TensorCache.made_by`."""
        return self._cache.made_by(key)

    def _remember(self, key: str, entry: dict[str, Tensor]) -> None:
        with self._lock:
            self._used -= _bytes(self._entries.pop(key, {}))
            self._entries[key] = entry
            self._used += _bytes(entry)
            while self._used > self._limit and len(self._entries) > 1:
                self._used -= _bytes(self._entries.popitem(last=False)[1])


def _bytes(entry: dict[str, Tensor]) -> int:
    return sum(value.nbytes for value in entry.values())


def _sum(tensors: dict[str, Tensor]) -> str:
    """Digest of names and values: safetensors files have no checksum of their own."""
    import torch

    digest = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        digest.update(f"{name}:{value.dtype}:{tuple(value.shape)}:".encode())
        digest.update(value.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _mark_used(path: Path) -> None:
    with contextlib.suppress(OSError):  # a cache that may only be read, or another run has just deleted it
        if time.time() - path.stat().st_mtime > _MARK_AFTER:
            os.utime(path)


def _remove_unused(path: Path, since: float) -> bool:
    """Deletes a file unless it was used after a time; whether it is gone by our hand."""
    try:
        if path.stat().st_mtime > since:  # since it was listed
            return False
        path.unlink()
    except OSError:
        return False
    return True


def _listed(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError:
        return []
