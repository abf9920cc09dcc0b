"""Safetensors files that are the same bytes for the same content, and reading that trusts nothing.

The safetensors library keeps metadata in a hash map, so its files differ from run to run; ours are sorted.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import AdapterError

if TYPE_CHECKING:
    from torch import Tensor

_MAX_HEADER = 100_000_000
"""The format's own limit, in bytes."""


def serialize(tensors: dict[str, Tensor], metadata: dict[str, str]) -> bytes:
    """A safetensors file: u64 header length, JSON header, data. Names are sorted, tensors with larger items first."""
    from safetensors.torch import save

    # the library lays out and aligns the data; only its header's order is not fixed, so we write that anew
    raw = save({name: tensor.contiguous() for name, tensor in tensors.items()})
    (length,) = struct.unpack("<Q", raw[:8])
    entries: dict[str, Any] = json.loads(raw[8 : 8 + length])
    header = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    header |= dict(sorted(entries.items(), key=lambda entry: (entry[1]["data_offsets"], entry[0])))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + raw[8 + length :]


def read_header(path: Path) -> dict[str, Any]:
    """The header of a safetensors file, without its tensors.

    Raises:
        AdapterError: if it is missing, truncated, or not such a file.
    """
    try:
        with path.open("rb") as file:
            prefix = file.read(8)
            size = path.stat().st_size
            (length,) = struct.unpack("<Q", prefix) if len(prefix) == 8 else (0,)
            if not 2 <= length <= min(_MAX_HEADER, size - 8):
                raise AdapterError(f"{path}: is not a safetensors file, or it is truncated")
            header = json.loads(file.read(length))
    except FileNotFoundError:
        raise AdapterError(f"{path}: no such file") from None
    except (OSError, ValueError, RecursionError) as error:
        raise AdapterError(f"{path}: is not a safetensors file ({error})") from None
    if not isinstance(header, dict):
        raise AdapterError(f"{path}: is not a safetensors file")
    return header


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors, on the CPU and in memory of their own (the file may be replaced afterwards).

    Raises:
        AdapterError: if it is missing, truncated, or not such a file.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    read_header(path)
    try:
        return load(path.read_bytes())
    except (OSError, SafetensorError) as error:
        raise AdapterError(f"{path}: is not a whole safetensors file ({error})") from None
