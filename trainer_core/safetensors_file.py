"""Safetensors files that are the same bytes for the same content, and reading that trusts nothing.

The safetensors library keeps metadata in a hash map, so its files differ from run to run; ours are sorted.

The format has no checksum, so metadata holds ours. `modelspec.hash_sha256` is for others, who write it with different
meanings (of the data, of each tensor, of the whole file); what we check on reading is a key of our own, which also says
of which layout the hash is: a program that converts, resizes or renames tensors copies metadata that no longer apply.
"""

from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import AdapterError
from .reading import check_regular

if TYPE_CHECKING:
    from torch import Tensor

_MAX_HEADER = 100_000_000
"""The format's own limit, in bytes."""
_MODELSPEC_HASH = "modelspec.hash_sha256"
_OWN_HASH = "lora_foundry.data_sha256"
"""`<digest of the header's entries>:<digest of the data>`."""


def serialize(tensors: dict[str, Tensor], metadata: dict[str, str]) -> bytes:
    """A safetensors file: u64 header length, JSON header, data. Names are sorted, tensors with larger items first.

    Metadata that speak the model spec (`modelspec.*`) get the data's hash.
    """
    from safetensors.torch import save

    # the library lays out and aligns the data; only its header's order is not fixed, so we write that anew
    raw = save({name: tensor.contiguous() for name, tensor in tensors.items()})
    (length,) = struct.unpack("<Q", raw[:8])
    entries: dict[str, Any] = json.loads(raw[8 : 8 + length])
    data = raw[8 + length :]
    if any(key.startswith("modelspec.") for key in metadata):
        digest = hashlib.sha256(data).hexdigest()
        metadata = {**metadata, _MODELSPEC_HASH: f"0x{digest}", _OWN_HASH: f"{_layout(entries)}:{digest}"}
    header = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    header |= dict(sorted(entries.items(), key=lambda entry: (entry[1]["data_offsets"], entry[0])))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + data


def read_header(path: Path) -> dict[str, Any]:
    """The header of a safetensors file, without its tensors.

    Raises:
        AdapterError: if it is missing, truncated, or not such a file.
    """
    try:
        check_regular(path)
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
        AdapterError: if it is missing, truncated, not such a file, or of ours and not what we wrote.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    header = read_header(path)
    try:
        content = path.read_bytes()
        tensors = load(content)
    except (OSError, SafetensorError) as error:
        raise AdapterError(f"{path}: is not a whole safetensors file ({error})") from None
    _check_hash(path, header, content)
    return tensors


def _check_hash(path: Path, header: dict[str, Any], content: bytes) -> None:
    layout, _, known = header.pop("__metadata__", {}).get(_OWN_HASH, "").partition(":")
    if layout != _layout(header):
        return  # no hash, or another program has laid out the tensors anew
    (length,) = struct.unpack("<Q", content[:8])
    if hashlib.sha256(memoryview(content)[8 + length :]).hexdigest() != known:
        raise AdapterError(
            f"{path}: is damaged: its data are not what was written (the hash differs). Use another copy; if a program "
            f"changed the numbers on purpose, remove {_OWN_HASH} from the file's metadata"
        )


def _layout(entries: dict[str, Any]) -> str:
    """Digest of the tensors' names, types, shapes and places."""
    return hashlib.sha256(json.dumps(entries, sort_keys=True).encode()).hexdigest()[:16]
