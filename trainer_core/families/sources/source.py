"""Where a model's parts come from, and how they are loaded, whatever they lie in.

A source is the embedded base, a folder in diffusers layout, a Hugging Face repository, or a single file as ComfyUI's
users have them (a checkpoint with all parts, or a diffusion model beside separate text encoders and VAE). Families name
parts as diffusers does ("unet", "transformer", "vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2",
"scheduler") and never ask where they lie.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ...config import SampleConfig, TrainConfig, validated
from ...errors import BaseModelError, ConfigError
from ...memory.packing import outline
from ...reading import is_file, is_folder
from .diffusers_folder import FolderPart, load_weights, read_object, reading
from .hub import INDEX, download
from .loading import empty_model, imitation
from .single_file import open_file, separate_parts
from .tokenizers import load_tokenizer, tokenizer_folder, tokenizer_mark

if TYPE_CHECKING:
    import torch
    from torch import nn

    from ...memory.packing import Packing
    from ..spec import FamilySpec
    from .layout import Layout

__all__ = [
    "EMBEDDED",
    "Source",
    "is_repository_id",
    "load_tokenizer",
    "load_weights",
    "open_source",
    "reading",
]

_FILES = {".safetensors", ".sft", ".ckpt", ".pt", ".pth", ".bin", ".gguf"}
EMBEDDED = Path(__file__).parents[2] / "embedded" / "base"


class Part(Protocol):
    """One part of a model, wherever it lies."""

    def config(self) -> dict[str, Any]:
        """Its configuration, as diffusers or transformers writes it."""

    def load(self, kind: type, dtype: torch.dtype, device: torch.device, packing: Packing | None = None) -> nn.Module:
        """It as a model of a class of diffusers or transformers; with `packing`, layers of its blocks are packed."""

    def check(self) -> None:
        """Raises a BaseModelError if it is not complete, as far as can be told without reading its weights."""

    def digest(self, sampled: bool = False) -> str:
        """Changes with its content, not with its place; `sampled` as in `Source`."""

    def file(self) -> Path:
        """Its weights as one safetensors file."""


@dataclass(frozen=True)
class Source:
    """A model's parts: those in `parts` from files of their own, the others from a folder in diffusers layout."""

    name: str
    """What the user called it; safe to write into metadata (a folder's or file's own name, not its path)."""
    folder: Path
    """Of the model in diffusers layout; the checkpoint's own path for single files."""
    profile: dict[str, Any]
    """Recommendations that lie beside the weights (`foundry.json`), such as the timestep type."""
    parts: Mapping[str, Part] = field(default_factory=dict)
    schedule: Mapping[str, Any] | None = None
    """The scheduler's configuration, where no folder holds it."""
    tokenizers: Path | None = None
    """Folder that the user named for tokenizers."""
    tokenizer_kinds: Mapping[str, str] = field(default_factory=dict)
    """"tokenizer" and "tokenizer_2" → "clip" or "t5": what to look for where the source holds none."""
    sampled: bool = False
    """Fingerprints are those of runs before November 2026, which looked at samples of large weights only."""

    def config(self, part: str) -> dict[str, Any]:
        """A part's configuration, as diffusers or transformers writes it; of "scheduler", the scheduler's.

        Raises:
            BaseModelError: if the part is not there, or its configuration is missing or unreadable.
        """
        if part == "scheduler" and self.schedule is not None:
            return dict(self.schedule)
        return self._part(part).config()

    def load(
        self, part: str, kind: type, dtype: torch.dtype, device: torch.device, packing: Packing | None = None
    ) -> nn.Module:
        """A part as a model of a class, on the device and in the precision, frozen and in evaluation mode.

        Args:
            part: "unet", "transformer", "vae", "text_encoder" or "text_encoder_2".
            kind: class of diffusers or transformers, such as UNet2DConditionModel.
            packing: how the weights of its blocks are packed; None: not.

        Raises:
            BaseModelError: if it is not there, truncated, incomplete, or is something else.
        """
        return self._part(part).load(kind, dtype, device, packing).eval().requires_grad_(False)

    def without_weights(self) -> Source:
        """The same source, whose parts load as models on the meta device: with modules and shapes, at no cost."""
        return _Outline(**{one.name: getattr(self, one.name) for one in fields(self)})

    def imitated(self) -> Source:
        """The same source, whose parts load as models of fake tensors (`memory.imitation`), to run at no cost."""
        return _Imitated(**{one.name: getattr(self, one.name) for one in fields(self)})

    def tokenizer(self, part: str) -> Any:
        """A tokenizer of transformers, "tokenizer" or "tokenizer_2".

        Raises:
            BaseModelError: if there is none on this machine; the message says where to get it.
        """
        return load_tokenizer(self._tokenizer_folder(part), self.tokenizer_kinds.get(part))

    def component(self, name: str) -> Path:
        """The folder of one part of a model in diffusers layout.

        Raises:
            BaseModelError: if it is not there.
        """
        folder = self.folder / name
        if not folder.is_dir():
            raise BaseModelError(
                f"{self.folder} has no folder `{name}`: it is not a complete model in diffusers layout"
            )
        return folder

    def check(self, *parts: str) -> None:
        """Whether parts and tokenizers are there and complete; reads no weights.

        Raises:
            BaseModelError: if not.
        """
        for part in parts:
            if part.startswith("tokenizer"):
                self._tokenizer_folder(part)
            else:
                self._part(part).check()

    def fingerprint(self, *parts: str) -> str:
        """A digest of the parts' contents: configuration, tokenizer files, and weights.

        Large weights are read whole the first time, which takes as long as the disk takes (`content`).

        Raises:
            BaseModelError: if a part is not there, or a file cannot be read.
        """
        digest = hashlib.sha256()
        for part in parts:
            try:
                if part.startswith("tokenizer"):
                    mark = tokenizer_mark(self._tokenizer_folder(part))
                else:
                    mark = self._part(part).digest(self.sampled)
            except OSError as error:
                raise BaseModelError(f"{self.folder}: cannot be read ({error})") from None
            digest.update(f"{part}:{mark}\n".encode())
        return digest.hexdigest()

    def file(self, part: str) -> Path:
        """A part's weights as one safetensors file that ComfyUI loads.

        Raises:
            BaseModelError: if they are spread over several.
        """
        return self._part(part).file()

    def _part(self, name: str) -> Part:
        return self.parts[name] if name in self.parts else FolderPart(self.component(name))

    def _tokenizer_folder(self, part: str) -> Path:
        own = self.folder / part
        kind = self.tokenizer_kinds.get(part)
        return tokenizer_folder(part, kind, self.tokenizers, own if own.is_dir() else None, str(self.folder))


class _Outline(Source):
    """See `Source.without_weights`."""

    def load(
        self,
        part: str,
        kind: type,
        dtype: torch.dtype,
        device: torch.device,  # noqa: ARG002
        packing: Packing | None = None,
    ) -> nn.Module:
        with reading(self.folder):
            made = empty_model(kind, self.config(part)).eval().requires_grad_(False)
        if packing:
            outline(made, packing, dtype)
        return made


class _Imitated(Source):
    """See `Source.imitated`."""

    def load(
        self,
        part: str,
        kind: type,
        dtype: torch.dtype,
        device: torch.device,  # noqa: ARG002
        packing: Packing | None = None,
    ) -> nn.Module:
        with reading(self.folder):
            return imitation(kind, self.config(part), dtype, packing).eval().requires_grad_(False)


def open_source(
    name: str,
    spec: FamilySpec,
    layout: Layout | None = None,
    files: Mapping[str, str] | None = None,
    tokenizers: str | None = None,
) -> Source:
    """Finds a model by what the user wrote. A repository is downloaded (or found in Hugging Face's cache).

    Args:
        name: `embedded`, a safetensors file, a folder in diffusers layout, or a repository id.
        spec: of the family: what parts there are, and an example to give.
        layout: how the family's parts lie in single files; None for a family that reads folders only.
        files: files that replace or complete parts, by part.
        tokenizers: folder with tokenizers.

    Raises:
        BaseModelError: if it is not there, gated, or no such model.
    """
    given = {part: _path(f"model.files.{part}", file) for part, file in (files or {}).items()}
    folder = _path("model.tokenizers", tokenizers) if tokenizers else None
    if folder is not None and not is_folder(folder):
        raise BaseModelError(f"model.tokenizers {tokenizers!r}: there is no such folder")
    if given and name == "embedded":
        raise BaseModelError(f"model.files.{next(iter(given))}: the embedded base has all its parts. Leave it empty")
    found = find_source(name, spec.default_repo)
    if isinstance(found, Path) and not is_folder(found):
        parts, schedule = open_file(layout, found, given)
        return Source(found.name, found, {}, parts, schedule, folder, spec.tokenizers)
    if isinstance(found, str):
        source = _source_of_folder(name, download(name, components_of(spec)))
    else:
        source = _source_of_folder(name if found == EMBEDDED else found.name, found)
    return replace(source, parts=separate_parts(layout, given), tokenizers=folder, tokenizer_kinds=spec.tokenizers)


def find_source(name: str, example: str) -> Path | str:
    """The folder or file that a model's source names, or the repository's id if it names one.

    Raises:
        BaseModelError: if it is none of these; `example` is the repository that the message gives.
    """
    if name == "embedded":
        return EMBEDDED
    path = _path("model.source", name)
    if is_folder(path):
        return path.resolve()
    if is_file(path):
        return path.absolute()  # not where a link leads: Hugging Face's cache names files by their hash
    if path.suffix.lower() in _FILES:
        raise BaseModelError(f"model.source {name!r}: there is no such file or folder")
    if is_repository_id(name):
        return name
    raise BaseModelError(
        f"model.source {name!r}: there is no such file or folder, and it is no Hugging Face repository id (such as "
        f"`{example}`)"
    )


def _path(field: str, text: str) -> Path:
    try:
        return Path(text).expanduser()
    except RuntimeError as error:  # the home of a user that there is not
        raise BaseModelError(f"{field} {text!r}: {error}") from None


def components_of(spec: FamilySpec) -> tuple[str, ...]:
    """The folders of a model in diffusers layout."""
    return ("scheduler", *spec.tokenizers, *(part.name for part in spec.parts))


def is_repository_id(name: str) -> bool:
    """Whether a text can be a Hugging Face repository's id: owner and name."""
    return re.fullmatch(r"[A-Za-z0-9][\w.\-]*/[\w\-][\w.\-]*", name) is not None and ".." not in name


def check_folder(folder: Path) -> None:
    """Whether a folder is a model in diffusers layout.

    Raises:
        BaseModelError: if not.
    """
    if not (folder / INDEX).is_file():
        raise BaseModelError(f"model.source: {folder}: is not a model in diffusers layout (it has no {INDEX})")


def _source_of_folder(name: str, folder: Path) -> Source:
    check_folder(folder)
    profile = folder / "foundry.json"
    return Source(name, folder, _checked_profile(profile) if profile.is_file() else {})


def _checked_profile(path: Path) -> dict[str, Any]:
    """Recommendations, within the bounds of what a job may say.

    Raises:
        BaseModelError: for others.
    """
    profile = read_object(path)
    sampling = profile.get("sampling", {})
    try:
        if "timestep_type" in profile:
            validated(TrainConfig, {"timestep_type": profile["timestep_type"]})
        validated(SampleConfig, sampling)
    except ConfigError as error:
        raise BaseModelError(f"{path}: {error}") from None
    if not {"width", "height", "steps", "guidance"} >= sampling.keys() or None in sampling.values():
        raise BaseModelError(f"{path}: sampling: says more than width, height, steps and guidance")
    return profile
