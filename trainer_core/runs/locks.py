"""Locks between processes: the kernel's, which it frees at once when their process dies, however it dies."""

from __future__ import annotations

import errno
import inspect
from pathlib import Path
from typing import Any

from filelock import BaseFileLock, FileLock, SoftFileLock, Timeout

_LACKING = {getattr(errno, name, None) for name in ("ENOSYS", "ENOTSUP", "EOPNOTSUPP", "ENOLCK")}
# Where there are no locks, filelock may use a marker file instead, which would outlive a killed process.
_NO_MARKER: dict[str, Any] = {"fallback_to_soft": False}
_OPTIONS = _NO_MARKER if _NO_MARKER.keys() <= inspect.signature(FileLock.__init__).parameters.keys() else {}


class NoLocks(Exception):
    """The file system has no locks (some network shares and FUSE mounts)."""


def try_lock(path: Path, patience: float = 0.0) -> BaseFileLock | None:
    """Locks a file, which is made if need be; None if someone else has it for all of `patience` (seconds).

    Any thread may release the lock. A second lock of the same file is refused in the same process too.

    Raises:
        NoLocks: if the file system cannot lock.
        OSError: if the file can be neither opened nor made.
    """
    lock: BaseFileLock = FileLock(path, thread_local=False, **_OPTIONS)
    try:
        lock.acquire(timeout=patience)
    except Timeout:
        if isinstance(lock, SoftFileLock):
            raise NoLocks from None
        return None
    except NotImplementedError:
        raise NoLocks from None
    except OSError as error:
        if error.errno in _LACKING:
            raise NoLocks from None
        raise
    if isinstance(lock, SoftFileLock):  # versions between know no option, and put the marker there
        lock.release()
        raise NoLocks
    return lock
