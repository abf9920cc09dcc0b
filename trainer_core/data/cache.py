"""A cache on disk, addressed by content: what a picture or a caption becomes once an encoder has seen it.

A key is a digest of everything the entry depends on (the file's bytes, the transform, the encoder's weights and
precision, the caption's text), so an entry is never stale and may be shared between runs. Entries appear by one rename;
two runs that write the same one write the same bytes. A damaged entry counts as absent.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

from ..files import write_atomically

if TYPE_CHECKING:
    from torch import Tensor


def key_of(*parts: object) -> str:
    """The key for what an entry depends on."""
    return hashlib.sha256("\x1f".join(str(part) for part in parts).encode()).hexdigest()


class TensorCache:
    """Named tensors under keys, each entry one safetensors file."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def get(self, key: str) -> dict[str, Tensor] | None:
        """The entry, in memory of its own, or None."""
        from safetensors import SafetensorError
        from safetensors.torch import load

        try:
            return load(self._path(key).read_bytes())
        except (FileNotFoundError, SafetensorError):
            return None

    def put(self, key: str, tensors: dict[str, Tensor]) -> None:
        """Stores an entry.

        Raises:
            SaveError: if it cannot be written.
        """
        from safetensors.torch import save

        write_atomically(self._path(key), save({name: value.contiguous() for name, value in tensors.items()}))

    def _path(self, key: str) -> Path:
        return self.root / key[:2] / f"{key}.safetensors"
