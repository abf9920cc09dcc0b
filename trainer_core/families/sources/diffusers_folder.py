"""One part of a model in diffusers layout: a folder with a configuration and safetensors files."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...content import whole_file
from ...errors import BaseModelError, FoundryError, first_line
from ...files import sha256_of
from ...memory.packing import pack_in_place
from ...reading import read_json
from ..names import Place
from ..parts.kl_names import vae_name_before_2023
from .loading import empty_model, fill
from .tensors import TensorFile
from .untrusted import check_part

if TYPE_CHECKING:
    import torch
    from torch import nn

    from ...memory.packing import Packing

_SCHEDULER = "scheduler_config.json"
LARGE = 64 << 20
"""Bytes above which a file of weights is worth remembering the digest of."""
_VARIANTS = ("fp16", "bf16", "non_ema")
_WHOLE = ("diffusion_pytorch_model", "model")
_TIED = {"encoder.embed_tokens.weight": "shared.weight", "shared.weight": "encoder.embed_tokens.weight"}
"""T5 keeps its embedding under two names, and files under one."""


@dataclass(frozen=True)
class FolderPart:
    """A part's folder, such as `unet/`."""

    folder: Path

    def config(self) -> dict[str, Any]:
        """The part's configuration.

        Raises:
            BaseModelError: if it is missing or is not JSON.
        """
        return read_object(self.folder / (_SCHEDULER if self.folder.name == "scheduler" else "config.json"))

    def load(self, kind: type, dtype: torch.dtype, device: torch.device, packing: Packing | None = None) -> nn.Module:
        """The part as a model of diffusers or transformers.

        Raises:
            BaseModelError: if it is truncated, incomplete or quantized, or asks for code of its own.
        """
        from diffusers import ModelMixin

        check_part(self.folder)
        config = self.config()
        files = [TensorFile(path) for path in self.weights()]
        with reading(self.folder):
            model = empty_model(kind, config)
        names = {name: _stored_name(name, files) for name in model.state_dict()}
        if None not in names.values():
            return fill(model, files, "", lambda name: Place(names[name] or name), dtype, device, packing)
        # weights that the library renames, or that are missing, which it tells
        precision = {"torch_dtype" if isinstance(model, ModelMixin) else "dtype": dtype}
        library = load_weights(kind, self.folder, **precision, **self._variant(self.weights())).to(device)
        for tensor in (*library.parameters(), *library.buffers()):
            tensor.data = tensor.data.clone()  # see `fill` for why not the mapped file
        if packing:
            pack_in_place(library, packing, packing.device or device, dtype)
        return library

    def check(self) -> None:
        """Whether it is complete, as far as its configuration and the headers of its files say; reads no weights.

        Raises:
            BaseModelError: if not.
        """
        check_part(self.folder)
        self.config()
        for path in self.weights():
            TensorFile(path)

    def digest(self, sampled: bool = False) -> str:
        """Changes with the content, not with the place; `sampled` as in `Source`."""
        check_part(self.folder)
        digest, of_large = hashlib.sha256(), mark_of_large if sampled else whole_file
        for path in sorted(path for path in self.folder.iterdir() if path.is_file()):
            small = path.suffix in {".json", ".txt", ".model"} or path.stat().st_size <= LARGE
            digest.update(f"{path.name}:{sha256_of(path) if small else of_large(path)}\n".encode())
        return digest.hexdigest()

    def file(self) -> Path:
        """The weights as one file.

        Raises:
            BaseModelError: if there are none, or several.
        """
        files = self.weights()
        if len(files) > 1:
            raise BaseModelError(
                f"{self.folder}: the denoiser is split over {len(files)} files, which ComfyUI cannot load as one. "
                "Use its single-file version in ComfyUI's models/diffusion_models"
            )
        return files[0]

    def weights(self) -> list[Path]:
        """The safetensors files that together are the part: one, or shards; of several variants the plain one.

        Raises:
            BaseModelError: if there are none.
        """
        files = sorted(path for path in self.folder.glob("*.safetensors") if path.is_file())
        if not files:
            raise BaseModelError(f"{self.folder}: holds no .safetensors file (other formats are not read)")
        variant = self._variant(files).get("variant")
        files = [path for path in files if _variant_of(path) == variant]
        whole = [path for path in files if path.name.split(".")[0] in _WHOLE]
        return whole or files

    def _variant(self, files: list[Path]) -> dict[str, str]:
        """What the libraries must be told where a folder holds its weights as a variant only."""
        found = [_variant_of(path) for path in files]
        return {} if None in found else {"variant": str(found[0])}


def _variant_of(path: Path) -> str | None:
    return next((name for name in _VARIANTS if f".{name}." in path.name or f".{name}-" in path.name), None)


def _stored_name(name: str, files: list[TensorFile]) -> str | None:
    """What a folder calls a weight: versions of the libraries differ, and files are older than they are."""
    plain = name.removeprefix("text_model.")
    for candidate in (name, plain, f"text_model.{plain}", _TIED.get(name, name), vae_name_before_2023(name)):
        if any(candidate in file.shapes for file in files):
            return candidate
    return None


@contextmanager
def reading(part: Path) -> Iterator[None]:
    """Turns what libraries raise for missing, truncated or foreign weights into one clear message.

    Raises:
        BaseModelError: naming the part's folder.
    """
    try:
        yield
    except FoundryError:
        raise
    except Exception as error:  # the libraries raise anything, down to Exception itself
        raise BaseModelError(f"{part}: cannot be loaded ({first_line(error)}). Download or copy it again") from error


def load_weights(kind: Any, folder: Path, **settings: Any) -> Any:
    """A diffusers or transformers model of a kind from its folder, with every weight from its safetensors files.

    Raises:
        BaseModelError: if the files cannot be read, or lack a weight (which the libraries fill in at random, and warn).
    """
    check_part(folder)
    with reading(folder):
        # without use_safetensors, transformers would take a pickle where there is nothing else
        model, loading = kind.from_pretrained(
            folder, output_loading_info=True, use_safetensors=True, local_files_only=True, **settings
        )
    if missing := sorted(loading["missing_keys"]):
        raise BaseModelError(f"{folder}: is incomplete: {missing[0]} and {len(missing) - 1} more weights are missing")
    return model


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        BaseModelError: if the file is missing, huge, or no such thing.
    """
    try:
        data = read_json(path)
    except (OSError, ValueError) as error:
        raise BaseModelError(f"{path}: cannot be read: {error}") from None
    if not isinstance(data, dict):
        raise BaseModelError(f"{path}: is not a configuration")
    return data


def mark_of_large(path: Path) -> str:
    """Size and 16 samples of 1 MB, evenly spread: what checkpoints of runs before November 2026 knew files by."""
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        for k in range(16):
            file.seek(k * (size - (1 << 20)) // 15)
            digest.update(file.read(1 << 20))
    return digest.hexdigest()
