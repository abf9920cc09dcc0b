"""Hugging Face: repositories that the user asked for, and nothing else. Only safe formats are downloaded."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from ...errors import BaseModelError

VARIANTS = ("*.fp16.*", "*.fp16-*", "*.bf16.*", "*.bf16-*", "*.non_ema.*", "*.non_ema-*")
"""Second copies of the weights that many repositories hold beside the first; some hold nothing else."""


INDEX = "model_index.json"
"""What says of a folder that it is a model in diffusers layout, and which pipeline is made of it."""


def download(repo: str, components: Sequence[str]) -> Path:
    """The folder of a repository, from Hugging Face's cache or downloaded: its `components`, and nothing else.

    Raises:
        BaseModelError: if it is gated, not there, or cannot be reached.
    """
    endings = ("json", "txt", "model", "safetensors")
    patterns = [INDEX, *(f"{part}/*.{end}" for part in components for end in endings)]
    folder = _snapshot(repo, allow_patterns=patterns, ignore_patterns=list(VARIANTS))
    if any(folder.glob("*/*.safetensors")) or not (folder / INDEX).is_file():
        return folder
    return _snapshot(repo, allow_patterns=patterns, ignore_patterns=[])


def configurations(repo: str, parts: Iterable[str], fetch: bool) -> Path:
    """The folder of a repository with what says which model it is: its index and the configurations of some parts.

    Args:
        fetch: download them if they are not in Hugging Face's cache.

    Raises:
        BaseModelError: as `download`.
    """
    wanted = [INDEX, *(f"{part}/config.json" for part in parts)]
    with suppress(BaseModelError):
        folder = _snapshot(repo, allow_patterns=wanted, local_files_only=True)
        if (folder / INDEX).is_file():
            return folder
    if not fetch:
        raise BaseModelError(f"{repo} is not on this machine")
    return _snapshot(repo, allow_patterns=wanted)


def _snapshot(repo: str, **options: Any) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    try:
        return Path(snapshot_download(repo, **options))
    except GatedRepoError:
        page = f"https://huggingface.co/{repo}"
        raise BaseModelError(
            f"{repo} is gated: accept its licence at {page}, then set HF_TOKEN or run `hf auth login`"
        ) from None
    except RepositoryNotFoundError:
        raise BaseModelError(f"{repo}: there is no such repository on Hugging Face, or it needs HF_TOKEN") from None
    except (LocalEntryNotFoundError, HfHubHTTPError, HFValidationError, OSError) as error:
        raise BaseModelError(f"{repo}: cannot be downloaded, and is not in the local cache: {error}") from None
