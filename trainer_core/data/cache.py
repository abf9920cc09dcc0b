"""A cache on disk, addressed by content: what a picture or a caption becomes once an encoder has seen it.

A key is a digest of everything the entry depends on (the file's bytes, the transform, the encoder's weights and
precision, the caption's text), so an entry is never stale and may be shared between runs. Entries appear by one rename;
two runs that write the same one write the same bytes. A damaged entry counts as absent.
"""

from __future__ import annotations

import hashlib
import json
import struct
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
            data = self._path(key).read_bytes()
            tensors = load(data)
            (length,) = struct.unpack("<Q", data[:8])
            intact = json.loads(data[8 : 8 + length])["__metadata__"]["sha256"] == _sum(tensors)
        except (OSError, SafetensorError, KeyError):
            return None
        return tensors if intact else None

    def put(self, key: str, tensors: dict[str, Tensor]) -> None:
        """Stores an entry.

        Raises:
            SaveError: if it cannot be written.
        """
        from safetensors.torch import save

        own = {name: value.contiguous() for name, value in tensors.items()}
        write_atomically(self._path(key), save(own, {"sha256": _sum(own)}))

    def _path(self, key: str) -> Path:
        return self.root / key[:2] / f"{key}.safetensors"


def _sum(tensors: dict[str, Tensor]) -> str:
    """Digest of names and values: safetensors files have no checksum of their own."""
    import torch

    digest = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        digest.update(f"{name}:{value.dtype}:{tuple(value.shape)}:".encode())
        digest.update(value.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
