"""LoRA files as users meet them: given a fresh name, described, handed to ComfyUI."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config import plain_name
from ..errors import AdapterError, ConfigError
from ..files import write_fresh

if TYPE_CHECKING:
    from torch import Tensor

_DOWN = (
    ".lora_A.weight",
    ".lora_A.default.weight",
    ".lora_A",
    ".lora_down.weight",
    ".lora.down.weight",
    "_lora.down.weight",
    ".lora_linear_layer.down.weight",
)
_OTHER_KINDS = {
    "LoKr": re.compile(r"\.lokr_w[12](_[ab])?$"),
    "LoHa": re.compile(r"\.hada_w[12]_[ab]$"),
    "OFT": re.compile(r"\.oft_(blocks|diag)$"),
    "DoRA": re.compile(r"\.dora_scale$"),
    "full difference": re.compile(r"\.diff(_b)?$"),
}
_PREFIX = re.compile(r"lora_unet|lora_te\d?|lora_transformer|lycoris|base_model|[^.]+")


def export_lora(source: Path, folder: Path, name: str, metadata: dict[str, str] | None = None) -> Path:
    """Copies a LoRA file to `folder` under a name that was never used there: `name.safetensors`, `name_2` …

    ComfyUI's LoraLoader caches by path, so a file name must not be used again. `metadata` is added to the file's own.

    Raises:
        ConfigError: for a name that is no plain file name.
        AdapterError: if the source is no whole safetensors file.
        SaveError: if it cannot be written.
    """
    try:
        stem = plain_name(name.removesuffix(".safetensors"))
    except ValueError as error:
        raise ConfigError(f"name: {error}") from None
    from .safetensors_file import read_header, read_tensors, serialize

    tensors, header = read_tensors(source), read_header(source)
    data = serialize(tensors, header.get("__metadata__", {}) | metadata) if metadata else source.read_bytes()
    return write_fresh(folder, stem, ".safetensors", data)


def read_lora_tensors(path: Path) -> dict[str, Tensor]:
    """A file's tensors on the CPU, in memory of their own: what a LORA_MODEL socket carries.

    Raises:
        AdapterError: if it is no whole safetensors file.
    """
    from .safetensors_file import read_tensors

    return read_tensors(path)


def describe_lora(path: Path) -> dict[str, Any]:
    """What a LoRA file holds, whoever wrote it.

    Raises:
        AdapterError: if it is no whole safetensors file, or holds no LoRA.
    """
    from .safetensors_file import read_header, read_tensors

    header = read_header(path)
    tensors = read_tensors(path)
    metadata = header.get("__metadata__", {})
    down = {key: value for key, value in tensors.items() if key.endswith(_DOWN)}
    kinds = sorted(kind for kind, name in _OTHER_KINDS.items() if any(name.search(key) for key in tensors))
    if not down and not kinds:
        raise AdapterError(f"{path}: holds no LoRA layers ({len(tensors)} tensors of another kind)")
    alphas = {key: value for key, value in tensors.items() if key.endswith(".alpha")}
    for key, value in [*down.items(), *alphas.items()]:
        if value.dim() == 0 if key in down else value.numel() != 1:
            raise AdapterError(f"{path}: {key} has shape {tuple(value.shape)}, which no LoRA has")
    prefixes = {match[0] for key in tensors if (match := _PREFIX.match(key))}
    return {
        "path": str(path),
        "format": ", ".join(sorted(prefixes)[:3]) + (f" ({', '.join(kinds)})" if kinds else " (LoRA)"),
        "keys": len(tensors),
        "modules": len(down),
        "rank": sorted({int(value.shape[0]) for value in down.values()}),
        "alpha": sorted({float(value) for value in alphas.values()}),
        "dtype": ", ".join(sorted({str(value.dtype).removeprefix("torch.") for value in down.values()})),
        "size_bytes": path.stat().st_size,
        "trigger": metadata.get("modelspec.trigger_phrase"),
        "base_model": metadata.get("ss_sd_model_name") or metadata.get("ss_base_model_version"),
        "metadata": metadata,
    }
