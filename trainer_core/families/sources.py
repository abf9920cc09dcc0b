"""Where a model's files are: the embedded base, a folder in diffusers layout, or a Hugging Face repository."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..config import SampleConfig, TrainConfig, validated
from ..errors import BaseModelError, ConfigError, FoundryError, first_line
from ..files import sha256_of
from ..reading import is_folder, read_json
from .strangers import check_part

EMBEDDED = Path(__file__).parents[1] / "embedded" / "base"
COMPONENTS = ("scheduler", "tokenizer", "tokenizer_2", "text_encoder", "text_encoder_2", "transformer", "vae")


@dataclass(frozen=True)
class Source:
    """A folder in diffusers layout."""

    name: str
    """What the user called it; safe to write into metadata (a folder's own name, not its path)."""
    folder: Path
    profile: dict[str, Any]
    """Recommendations that lie beside the weights (`foundry.json`), such as the timestep type."""

    def component(self, name: str) -> Path:
        """The folder of one part.

        Raises:
            BaseModelError: if it is not there.
        """
        folder = self.folder / name
        if not folder.is_dir():
            raise BaseModelError(
                f"{self.folder} has no folder `{name}`: it is not a complete model in diffusers layout"
            )
        return folder

    def config(self, component: str, file: str = "config.json") -> dict[str, Any]:
        """A part's configuration.

        Raises:
            BaseModelError: if it is missing or is not JSON.
        """
        return _read_json(self.component(component) / file)

    def weights(self, component: str) -> list[Path]:
        """The safetensors files of a part.

        Raises:
            BaseModelError: if there are none.
        """
        files = sorted(path for path in self.component(component).glob("*.safetensors") if path.is_file())
        if not files:
            raise BaseModelError(
                f"{self.component(component)}: holds no .safetensors file (other formats are not read)"
            )
        return files

    def fingerprint(self, *components: str) -> str:
        """A digest of the parts' contents: configuration and tokenizer files, and weights.

        Weights over 64 MB count by size and samples, because hashing 24 GB would take minutes.

        Raises:
            BaseModelError: if a file cannot be read.
        """
        digest = hashlib.sha256()
        for component in components:
            folder = self.component(component)
            check_part(folder)
            for path in sorted(path for path in folder.iterdir() if path.is_file()):
                if path.suffix in {".json", ".txt", ".model"} or path.stat().st_size <= 64 << 20:
                    mark = sha256_of(path)
                else:
                    mark = _mark_of_large(path)
                digest.update(f"{component}/{path.name}:{mark}\n".encode())
        return digest.hexdigest()


def open_source(name: str, default_repo: str) -> Source:
    """Finds a model by what the user wrote. A repository is downloaded (or found in Hugging Face's cache).

    Raises:
        BaseModelError: if it is not there, gated, or no diffusers folder.
    """
    if name == "embedded":
        return _source_of_folder("embedded", EMBEDDED)
    try:
        folder = Path(name).expanduser()
    except RuntimeError as error:
        raise BaseModelError(f"model.source {name!r}: {error}") from None
    if is_folder(folder):
        return _source_of_folder(folder.resolve().name, folder.resolve())
    if is_repository_id(name):
        return _source_of_folder(name, _download(name))
    raise BaseModelError(
        f"model.source {name!r}: there is no such folder, and it is no Hugging Face repository id (such as "
        f"`{default_repo}`)"
    )


def is_repository_id(name: str) -> bool:
    """Whether a text can be a Hugging Face repository's id: owner and name."""
    return re.fullmatch(r"[A-Za-z0-9][\w.\-]*/[\w\-][\w.\-]*", name) is not None and ".." not in name


def _source_of_folder(name: str, folder: Path) -> Source:
    if not (folder / "model_index.json").is_file():
        raise BaseModelError(f"{folder}: is not a model in diffusers layout (it has no model_index.json)")
    profile = folder / "foundry.json"
    return Source(name, folder, _checked_profile(profile) if profile.is_file() else {})


def _checked_profile(path: Path) -> dict[str, Any]:
    """Recommendations, within the bounds of what a job may say.

    Raises:
        BaseModelError: for others.
    """
    profile = _read_json(path)
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


def _download(repo: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    patterns = ["model_index.json", *(f"{part}/*.{end}" for part in COMPONENTS for end in ("json", "txt", "model"))]
    patterns += [f"{part}/*.safetensors" for part in COMPONENTS]
    try:
        return Path(snapshot_download(repo, allow_patterns=patterns))
    except GatedRepoError:
        page = f"https://huggingface.co/{repo}"
        raise BaseModelError(
            f"{repo} is gated: accept its licence at {page}, then set HF_TOKEN or run `hf auth login`"
        ) from None
    except RepositoryNotFoundError:
        raise BaseModelError(f"{repo}: there is no such repository on Hugging Face, or it needs HF_TOKEN") from None
    except (LocalEntryNotFoundError, HfHubHTTPError, HFValidationError, OSError) as error:
        raise BaseModelError(f"{repo}: cannot be downloaded, and is not in the local cache: {error}") from None


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
    """A diffusers or transformers model of a kind from its folder, with every weight from its files.

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


def load_tokenizer(folder: Path) -> Any:
    """A tokenizer of transformers from its folder.

    Raises:
        BaseModelError: if its files cannot be read.
    """
    from transformers import AutoTokenizer

    check_part(folder)
    with reading(folder):
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        data = read_json(path)
    except (OSError, ValueError) as error:
        raise BaseModelError(f"{path}: cannot be read: {error}") from None
    if not isinstance(data, dict):
        raise BaseModelError(f"{path}: is not a configuration")
    return data


def _mark_of_large(path: Path) -> str:
    """Size and 16 samples of 1 MB, evenly spread: another checkpoint differs in all of them."""
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        for k in range(16):
            file.seek(k * (size - (1 << 20)) // 15)
            digest.update(file.read(1 << 20))
    return digest.hexdigest()
