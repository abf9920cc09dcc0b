"""LoRA files as users meet them: given a fresh name, described, handed to ComfyUI."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config import plain_name
from ..errors import AdapterError, ConfigError
from ..files import write_fresh
from .key_names import OTHER_KINDS, split_key, split_text, style

if TYPE_CHECKING:
    from torch import Tensor

_KINDS = {
    "LoKr": re.compile(r"\.lokr_w[12](_[ab])?$"),
    "LoHa": re.compile(r"\.hada_w[12]_[ab]$"),
    "DoRA": re.compile(r"\.(dora_scale|lora_magnitude_vector(\.weight)?)$"),
    **OTHER_KINDS,
}
_RANKED = ("down", "hada_w1_b", "lokr_w1_b", "lokr_w2_b")
"""Parts of a delta whose first dimension is the rank."""
_CONVOLUTION = re.compile(
    r"resnets[._]\d+[._]conv[12]$|samplers[._]\d+[._]conv$|blocks[._]\d+[._]\d+[._](in_layers[._]2|out_layers[._]3|op|conv)$"
)
"""Layers of UNets whose kernels are larger than 1x1: LoKr and LoHa keep factors in which kernels are not to be seen."""
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
    from ..safetensors_file import read_header, read_tensors, serialize

    tensors, header = read_tensors(source), read_header(source)
    data = serialize(tensors, header.get("__metadata__", {}) | metadata) if metadata else source.read_bytes()
    return write_fresh(folder, stem, ".safetensors", data)


def read_lora_tensors(path: Path) -> dict[str, Tensor]:
    """A file's tensors on the CPU, in memory of their own: what a LORA_MODEL socket carries.

    Raises:
        AdapterError: if it is no whole safetensors file.
    """
    from ..safetensors_file import read_tensors

    return read_tensors(path)


def describe_lora(path: Path) -> dict[str, Any]:
    """What a LoRA file holds, whoever wrote it.

    Raises:
        AdapterError: if it is no whole safetensors file, or holds no LoRA.
    """
    from ..safetensors_file import read_header, read_tensors

    header = read_header(path)
    tensors = read_tensors(path)
    metadata = header.get("__metadata__", {})
    split = {key: found for key in tensors if (found := split_key(key))}
    weights = {key: tensors[key] for key, (_, part) in split.items() if part != "alpha"}
    ranked = {key: value for key, value in weights.items() if split[key][1] in _RANKED}
    kinds = sorted(kind for kind, name in _KINDS.items() if any(name.search(key) for key in tensors))
    if not weights and not kinds:
        raise AdapterError(f"{path}: holds no LoRA layers ({len(tensors)} tensors of another kind)")
    alphas = {key: value for key, value in tensors.items() if key.endswith(".alpha")}
    for key, value in [*ranked.items(), *alphas.items()]:
        if value.dim() == 0 if key in ranked else value.numel() != 1:
            raise AdapterError(f"{path}: {key} has shape {tuple(value.shape)}, which no LoRA has")
    layers = {split[key][0]: None for key in weights}
    kernels = {split[key][0] for key, value in weights.items() if any(size > 1 for size in value.shape[2:])}
    convolutions = kernels | {name for name in layers if _CONVOLUTION.search(name)}
    prefixes = {match[0] for key in tensors if (match := _PREFIX.match(key))}
    return {
        "path": str(path),
        "format": ", ".join(sorted(prefixes)[:3]) + (f" ({', '.join(kinds)})" if kinds else " (LoRA)"),
        "names": ", ".join(sorted({style(name) for name in layers})),
        "keys": len(tensors),
        "modules": len(layers),
        "text_encoder_modules": len(split_text(layers)[1]),
        "convolutions": len(convolutions),
        "rank": sorted({int(value.shape[0]) for value in ranked.values()}),
        "alpha": sorted({float(value) for value in alphas.values()}),
        "dtype": ", ".join(sorted({str(value.dtype).removeprefix("torch.") for value in (ranked or weights).values()})),
        "size_bytes": path.stat().st_size,
        "trigger": metadata.get("modelspec.trigger_phrase"),
        "base_model": metadata.get("ss_sd_model_name") or metadata.get("ss_base_model_version"),
        "metadata": metadata,
    }
