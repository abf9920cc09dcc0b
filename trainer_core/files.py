"""Writing and checking files so that a reader sees the old content or the new one, and never half of it."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import sys
import time
import uuid
from pathlib import Path

import platformdirs

from .errors import SaveError

_FULL = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)}
_NOT_FOR_FOLDERS = {errno.EINVAL, errno.EBADF, errno.ENOTSUP}
"""What network file systems say that cannot wait for a folder; there is nothing to be done about it then."""
_PAUSES = (0.01, 0.05, 0.2, 0.5) if sys.platform == "win32" else ()
"""Seconds between attempts to replace a file."""


def state_folder() -> Path:
    """Where this user's queues and digests are: $LORA_FOUNDRY_STATE, or the system's place for such things."""
    given = os.environ.get("LORA_FOUNDRY_STATE")
    return Path(given) if given else platformdirs.user_state_path("lora_foundry", appauthor=False)


def sha256_of(path: Path) -> str:
    """Hex digest of a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def write_durably(path: Path, data: bytes) -> None:
    """Writes a new file and waits until it is on the disk.

    Raises:
        OSError: as the system says; the caller removes what was begun.
    """
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(path: Path) -> None:
    """Waits until a folder's entries are on the disk (Windows does that by itself and cannot be asked)."""
    if sys.platform == "win32":
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in _NOT_FOR_FOLDERS:
            raise
    finally:
        os.close(handle)


def make_folder(folder: Path, inside: Path | None = None) -> None:
    """Makes a folder and those above it; with `inside`, none from there upwards: what a user deleted stays away.

    Raises:
        OSError: as the system says; FileNotFoundError if `inside` is not there.
    """
    if inside is None:
        folder.mkdir(parents=True, exist_ok=True)
        return
    for part in folder.relative_to(inside).parts:
        inside = inside / part
        inside.mkdir(exist_ok=True)


def write_atomically(path: Path, data: bytes, durably: bool = True, inside: Path | None = None) -> None:
    """Replaces a file in one step.

    Args:
        durably: wait until it is on the disk; without it, a power cut may leave the file empty or half-written.
        inside: a folder above it that must be there already (`make_folder`).

    Raises:
        SaveError: if that fails; what was there before is intact and nothing half-written is left.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        make_folder(path.parent, inside)
        if durably:
            write_durably(temporary, data)
        else:
            temporary.write_bytes(data)
        _replace(temporary, path)
        if durably:
            sync_folder(path.parent)
    except OSError as error:
        raise save_error(path, error) from error
    finally:
        _discard(temporary)


def remove(path: Path) -> None:
    """Removes a file, if it is there.

    Raises:
        SaveError: if that fails.
    """
    try:
        path.unlink(missing_ok=True)
        sync_folder(path.parent)
    except OSError as error:
        raise save_error(path, error) from error


def append_line(path: Path, line: str) -> None:
    """Adds a line to a text file. If a crash has left half a line at its end, that one is ended first.

    Raises:
        SaveError: if that fails; then nothing of the line is there, so that the next one is not spoiled.
    """
    size: int | None = None
    try:
        with path.open("a+b") as file:
            size = file.seek(0, os.SEEK_END)
            if size:
                file.seek(-1, os.SEEK_END)
            cut = bool(size) and file.read(1) != b"\n"
            # names of files need not be text (os.fsdecode)
            file.write(b"\n" * cut + line.encode("utf-8", "backslashreplace") + b"\n")
    except OSError as error:
        if size is not None:
            with contextlib.suppress(OSError):
                os.truncate(path, size)
        raise save_error(path, error) from error


def _replace(source: Path, target: Path) -> None:
    """Renames over a file. Windows refuses that for the moment in which somebody reads it (a progress page, say)."""
    for pause in _PAUSES:
        try:
            os.replace(source, target)
            return
        except PermissionError:
            time.sleep(pause)
    os.replace(source, target)


def write_fresh(folder: Path, stem: str, suffix: str, data: bytes) -> Path:
    """Writes a file under a name that is not taken: `stem.suffix`, `stem_2.suffix` … and returns its path.

    The name is claimed by a hard link, which fails if another process was quicker; where the file system has no links,
    by an exclusive creation.

    Raises:
        SaveError: if that fails; nothing half-written is left.
    """
    temporary = folder / f".{stem}.{uuid.uuid4().hex[:8]}.tmp"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_durably(temporary, data)
        for number in range(1, 100_000):
            target = folder / (f"{stem}{suffix}" if number == 1 else f"{stem}_{number}{suffix}")
            try:
                _claim(temporary, target)
            except FileExistsError:
                continue
            sync_folder(folder)
            return target
        raise SaveError(f"{folder / stem}{suffix}: every name is taken")
    except OSError as error:
        raise save_error(folder / f"{stem}{suffix}", error) from error
    finally:
        _discard(temporary)


def _claim(temporary: Path, target: Path) -> None:
    """Gives a finished file its name, or raises FileExistsError."""
    try:
        os.link(temporary, target)
    except FileExistsError:
        raise
    except OSError:  # no hard links here (exFAT, some network shares)
        target.touch(exist_ok=False)
        try:
            os.replace(temporary, target)
        except OSError:
            _discard(target)
            raise


def _discard(path: Path) -> None:
    """Removes a file that may not be there, on the way out of an error that matters more."""
    with contextlib.suppress(OSError):
        path.unlink()


def save_error(path: Path, error: OSError) -> SaveError:
    """A message that tells the usual causes apart."""
    if error.errno in _FULL:
        return SaveError(f"{path}: the disk is full. Free some space and resume; what was saved before is intact")
    if error.errno == errno.EROFS:
        return SaveError(f"{path}: the disk is read-only. Make it writable or choose a folder elsewhere, then resume")
    if error.errno in {errno.EACCES, errno.EPERM}:
        return SaveError(
            f"{path}: may not be written ({error.strerror}). Check the folder's permissions, and whether another "
            "program has it open"
        )
    if error.errno == errno.ENOENT:
        return SaveError(f"{path}: cannot be written: its folder is not there (any more)")
    return SaveError(f"{path}: cannot be written: {error.strerror or error}")
