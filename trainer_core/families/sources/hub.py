"""Hugging Face: repositories that the user asked for, and nothing else. Only safe formats are downloaded."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ...errors import BaseModelError

VARIANTS = ("*.fp16.*", "*.fp16-*", "*.bf16.*", "*.bf16-*", "*.non_ema.*", "*.non_ema-*")
"""Second copies of the weights that many repositories hold beside the first; some hold nothing else."""


def download(repo: str, components: Sequence[str]) -> Path:
    """The folder of a repository, from Hugging Face's cache or downloaded: its `components`, and nothing else.

    Raises:
        BaseModelError: if it is gated, not there, or cannot be reached.
    """
    folder = _snapshot(repo, components, VARIANTS)
    if any(folder.glob("*/*.safetensors")) or not (folder / "model_index.json").is_file():
        return folder
    return _snapshot(repo, components, ())


def _snapshot(repo: str, components: Sequence[str], ignored: tuple[str, ...]) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    endings = ("json", "txt", "model", "safetensors")
    patterns = ["model_index.json", *(f"{part}/*.{end}" for part in components for end in endings)]
    try:
        return Path(snapshot_download(repo, allow_patterns=patterns, ignore_patterns=list(ignored)))
    except GatedRepoError:
        page = f"https://huggingface.co/{repo}"
        raise BaseModelError(
            f"{repo} is gated: accept its licence at {page}, then set HF_TOKEN or run `hf auth login`"
        ) from None
    except RepositoryNotFoundError:
        raise BaseModelError(f"{repo}: there is no such repository on Hugging Face, or it needs HF_TOKEN") from None
    except (LocalEntryNotFoundError, HfHubHTTPError, HFValidationError, OSError) as error:
        raise BaseModelError(f"{repo}: cannot be downloaded, and is not in the local cache: {error}") from None
