"""Tokenizers for sources that may hold none: a single file brings weights only.

They are looked for in the folder that the user named, in the source, in the host's own files (ComfyUI ships them), and
in Hugging Face's cache; none is downloaded unasked.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ...errors import BaseModelError
from ...files import sha256_of
from .diffusers_folder import reading
from .tokenizer_kinds import KINDS
from .untrusted import check_part

FILES = ("tokenizer.json", "vocab.json", "spiece.model")
"""A folder that holds one of these is a tokenizer."""
_host: dict[str, Path] = {}


def register_tokenizers(kind: str, folder: Path) -> None:
    """Tells of a tokenizer that the host brings along.

    Args:
        kind: "clip" or "t5".
        folder: with its files; it need not exist (another version of the host may keep it elsewhere).
    """
    _host[kind] = folder


def load_tokenizer(folder: Path, kind: str | None = None) -> Any:
    """A tokenizer of transformers from its folder.

    Args:
        folder: with its files.
        kind: "clip" or "t5": a tokenizer reads no more tokens than the encoders of its kind do.

    Raises:
        BaseModelError: if its files cannot be read.
    """
    from transformers import AutoTokenizer

    check_part(folder)
    with reading(folder):
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    if kind is not None:  # some do not know their limit, and ComfyUI's CLIP gives a larger one
        tokenizer.model_max_length = min(tokenizer.model_max_length, KINDS[kind].limit)
    return tokenizer


def tokenizer_folder(part: str, kind: str | None, named: Path | None, own: Path | None, source: str = "") -> Path:
    """The folder of a tokenizer.

    Args:
        part: "tokenizer" or "tokenizer_2".
        kind: "clip" or "t5"; None for families that say nothing: then only the folder named and the source count.
        named: folder that the user named for tokenizers, if any.
        own: the source's own, if it has one.
        source: what a message calls the source.

    Raises:
        BaseModelError: if there is none on this machine; the message says where to get it.
    """
    for folder in _candidates(part, kind, named, own):
        if any((folder / file).is_file() for file in FILES):
            return folder
    if kind is None:
        raise BaseModelError(f"{source or 'the model'} holds no `{part}`: name a folder with it in model.tokenizers")
    repo = KINDS[kind].repositories[0][0]
    if named is not None:
        raise BaseModelError(
            f"model.tokenizers: {named} holds no {KINDS[kind].title} tokenizer ({' or '.join(FILES)}, in it or in a "
            f"folder `{part}`), and there is none elsewhere on this machine. Download it: "
            f"`hf download {repo} {' '.join(KINDS[kind].files)}`"
        )
    raise BaseModelError(
        f"{source or 'the model'} holds no `{part}`, and there is no {KINDS[kind].title} tokenizer elsewhere on this "
        f"machine. Run inside ComfyUI, which brings it along, or download it "
        f"(`hf download {repo} {' '.join(KINDS[kind].files)}`), or name a folder with it in model.tokenizers"
    )


def tokenizer_mark(folder: Path) -> str:
    """Changes whenever a tokenizer would cut a text otherwise."""
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.suffix in {".json", ".txt", ".model"}:
            digest.update(f"{path.name}:{sha256_of(path)}\n".encode())
    return digest.hexdigest()


def _candidates(part: str, kind: str | None, named: Path | None, own: Path | None) -> Iterator[Path]:
    if named is not None:
        yield named / part
        if kind is not None:
            yield named / kind
            if kind == "clip":  # all CLIPs cut texts alike
                yield named / "tokenizer"
            if (named / "merges.txt").is_file() == (kind == "clip"):  # the folder is itself a tokenizer, of this kind
                yield named
    if own is not None:
        yield own
    if kind is not None:
        if kind in _host:
            yield _host[kind]
        yield from _cached(kind)


def _cached(kind: str) -> Iterator[Path]:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    for repo, subfolder in KINDS[kind].repositories:
        wanted = [f"{subfolder}/{file}".lstrip("/") for file in KINDS[kind].files]
        try:
            yield Path(snapshot_download(repo, allow_patterns=wanted, local_files_only=True)) / subfolder
        except (LocalEntryNotFoundError, HfHubHTTPError, OSError, ValueError):
            continue
