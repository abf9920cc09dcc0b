"""One safetensors file: its tensors' names, shapes and bytes, read through a memory map that is given back in portions.

A mapped page counts as the process's memory until its map is closed. Loading a checkpoint through one map would so take
the file's size on top of the model's; opened anew after every portion, it takes a portion.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...content import spans_of_file
from ...errors import AdapterError, BaseModelError, first_line
from ...safetensors_file import read_header
from .recognise import refuse_foreign
from .stored import Stored

if TYPE_CHECKING:
    from torch import Tensor

_PORTION = 128 << 20
"""Bytes that are read through one map."""
_SAMPLE = 4096
"""Bytes at either end of a tensor that count in its digest."""
FLOATS = {"F64", "F32", "F16", "BF16"}
FLOAT8 = {"F8_E4M3", "F8_E5M2"}
SCALES = ("scale_weight", "weight_scale")
"""What ComfyUI's fp8 files call the factor of a layer's weight, before and since version 0.4 of its format."""
_INT8 = "int8_tensorwise"
QUANTIZATION_KEYS = (*SCALES, "scale_input", "input_scale", "comfy_quant", "scaled_fp8")


class TensorFile:
    """A safetensors file."""

    def __init__(self, path: Path) -> None:
        """Reads the header.

        Raises:
            BaseModelError: if it is missing, truncated, of another format, or quantized in a way that is not read.
        """
        refuse_foreign(path)
        try:
            header = read_header(path)
        except AdapterError as error:
            raise BaseModelError(f"{error}. Download or copy it again") from None
        self.path = path
        metadata = header.pop("__metadata__", {})
        self.metadata: dict[str, str] = metadata if isinstance(metadata, dict) else {}
        self._check(header)
        self.shapes = {name: tuple(int(size) for size in entry["shape"]) for name, entry in header.items()}
        self.dtypes = {name: str(entry["dtype"]) for name, entry in header.items()}
        self._offsets = {name: tuple(entry["data_offsets"]) for name, entry in header.items()}
        self.int8 = self._read_quantization()
        """Name of a weight that is kept in int8 → the number of columns that were rotated together; 1: none."""

    def _check(self, header: dict[str, Any]) -> None:
        """Lets the library check the whole header: offsets, sizes, and that the file is not cut off."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(self.path, "pt") as file:
                known = set(file.keys())
        except (OSError, ValueError, SafetensorError) as error:
            raise BaseModelError(
                f"{self.path}: is truncated, or no safetensors file ({first_line(error)}). Download or copy it again"
            ) from None
        assert known == set(header)

    def tensors(self, names: Iterable[str]) -> Iterator[tuple[str, Tensor]]:
        """Each tensor as it lies in the file: copy what you keep, and hold no view of it when you ask for the next.

        Raises:
            BaseModelError: if the file cannot be read any more.
        """
        from safetensors import SafetensorError, safe_open

        mapped, file = _PORTION, None
        try:
            for name in sorted(names, key=self._offsets.__getitem__):
                if mapped >= _PORTION:
                    mapped, file = 0, safe_open(self.path, "pt").__enter__()
                assert file is not None
                yield name, file.get_tensor(name)
                start, stop = self._offsets[name]
                mapped += stop - start
        except (OSError, SafetensorError) as error:
            raise BaseModelError(f"{self.path}: cannot be read any more ({first_line(error)})") from None

    def stored(self, name: str, values: Tensor) -> Stored:
        """A tensor of the file with what turns it back, if it is kept in 8 bits.

        Raises:
            BaseModelError: if its scale is neither one number nor one for each row.
        """
        if self.dtypes[name] not in FLOAT8 and name not in self.int8:
            return Stored(values)
        stem = name.removesuffix("weight")
        key = next((stem + scale for scale in SCALES if stem + scale in self.shapes), None)
        if key is None or key == name:
            return Stored(values)
        ((_, scale),) = self.tensors([key])
        if scale.numel() not in (1, len(values)) or values.shape[-1] % self.int8.get(name, 1):
            raise BaseModelError(f"{self.path}: {key} does not fit the weight's rows: such a quantization is not read")
        return Stored(values, scale.float().clone(), self.int8.get(name, 1))

    def digest(self, names: Iterable[str]) -> str:
        """Changes with the tensors' names, types, shapes and contents, but not with their order in the file.

        Raises:
            OSError: as the system says.
        """
        prefix, ordered = self._data_begins(), sorted(names)
        spans = [(prefix + self._offsets[name][0], prefix + self._offsets[name][1]) for name in ordered]
        titles = [f"{name}:{self.dtypes[name]}:{self.shapes[name]}" for name in ordered]
        return spans_of_file(self.path, spans, titles)

    def sampled_digest(self, names: Iterable[str]) -> str:
        """The same as checkpoints of runs before November 2026 have it: of large tensors only both ends count."""
        digest = hashlib.sha256()
        prefix = self._data_begins()
        with self.path.open("rb") as file:
            for name in sorted(names):
                start, stop = self._offsets[name]
                digest.update(f"{name}:{self.dtypes[name]}:{self.shapes[name]}\n".encode())
                file.seek(prefix + start)
                if stop - start <= 2 * _SAMPLE:
                    digest.update(file.read(stop - start))
                    continue
                digest.update(file.read(_SAMPLE))
                file.seek(prefix + stop - _SAMPLE)
                digest.update(file.read(_SAMPLE))
        return digest.hexdigest()

    def _data_begins(self) -> int:
        with self.path.open("rb") as file:
            return 8 + int.from_bytes(file.read(8), "little")

    def _read_quantization(self) -> dict[str, int]:
        """The weights that are kept in int8, with the number of columns that were rotated together.

        Those in fp8 tell it by their type. Others (nf4, nvfp4 …) are not read: a LoRA should see the base as it is.

        Raises:
            BaseModelError: if there are others.
        """
        formats: dict[str, Any] = {}
        if any(".quant_state." in name or name.endswith(".absmax") for name in self.shapes):
            formats[""] = {"format": "bitsandbytes (nf4 or fp4)"}
        layers = _json(self.metadata.get("_quantization_metadata", "{}")).get("layers")
        formats |= layers if isinstance(layers, dict) else {}
        for name, mark in self.tensors(name for name in self.shapes if name.endswith(".comfy_quant")):
            formats[name.removesuffix(".comfy_quant")] = _json(bytes(mark.flatten().tolist()))
        known = {"float8_e4m3fn", "float8_e5m2", _INT8}
        if unknown := sorted({_format(layer) for layer in formats.values()} - known):
            raise BaseModelError(
                f"{self.path}: is quantized ({', '.join(unknown)}), which LoRA Foundry cannot read. Use the fp16, "
                "bf16, int8 or fp8 version"
            )
        return {f"{name}.weight": _rotation(layer) for name, layer in formats.items() if _format(layer) == _INT8}


def _json(text: str | bytes) -> dict[str, Any]:
    try:
        data = json.loads(text)
    except (ValueError, RecursionError):
        return {"format": "unknown"}
    return data if isinstance(data, dict) else {"format": "unknown"}


def _format(layer: Any) -> str:
    return str(layer.get("format", "unknown")) if isinstance(layer, dict) else "unknown"


def _rotation(layer: dict[str, Any]) -> int:
    """What ComfyUI's loader reads of it."""
    more = layer.get("params")
    said = {**(more if isinstance(more, dict) else {}), **layer}
    size = said.get("convrot_groupsize", 256)
    return size if said.get("convrot") and isinstance(size, int) else 1
