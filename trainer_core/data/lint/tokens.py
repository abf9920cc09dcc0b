"""How the encoders cut texts into tokens, by the tokenizers of a base on this machine; none is downloaded."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ...config import ModelConfig
from ...errors import BaseModelError, FoundryError
from ...families.registry import spec_of
from ...families.sources.source import is_repository_id, load_tokenizer, open_source
from ...families.sources.tokenizers import tokenizer_folder
from ...families.spec import FamilySpec
from ...reading import is_file, is_folder

_NO_LIMIT = 1_000_000
"""transformers writes an astronomic `model_max_length` where a tokenizer does not know it."""
_BATCH = 1000


class TextTokenizer(Protocol):
    """What lint asks of a tokenizer."""

    @property
    def name(self) -> str:
        """The part of the base that it is, such as `tokenizer_2`."""

    @property
    def limit(self) -> int | None:
        """Tokens that the encoder reads, its own marks included; None if it does not say."""

    def lengths(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text, the encoder's own marks included."""

    def is_known(self, word: str) -> bool:
        """Whether a word is one token of the vocabulary: the encoder has learned a meaning for it."""

    def is_unreadable(self, word: str) -> bool:
        """Whether all or part of a word is the unknown token, as which all such words read alike."""


@dataclass(frozen=True)
class BaseTokenizer:
    """A tokenizer of transformers."""

    name: str
    limit: int | None
    tokenizer: Any

    def lengths(self, texts: Sequence[str]) -> list[int]:
        lengths: list[int] = []
        for start in range(0, len(texts), _BATCH):  # in parts: the ids of 10,000 long captions need not lie in memory
            ids = self.tokenizer(list(texts[start : start + _BATCH]), verbose=False).input_ids
            lengths += [len(one) for one in ids]
        return lengths

    def is_known(self, word: str) -> bool:
        ids = self._ids(word)
        return len(ids) == 1 and not self.is_unreadable(word)

    def is_unreadable(self, word: str) -> bool:
        unknown = self.tokenizer.unk_token_id
        return unknown is not None and unknown in self._ids(word)

    def _ids(self, word: str) -> list[int]:
        ids: list[int] = self.tokenizer(word, add_special_tokens=False, verbose=False).input_ids
        return ids


def find_tokenizers(model: ModelConfig) -> tuple[BaseTokenizer, ...]:
    """The tokenizers of a base that lies on this machine: the embedded one, a folder, or a repository that was
    downloaded before. A single file brings none: then those of its kind that are on this machine.

    Raises:
        ConfigError: for an unknown family.
        BaseModelError: if the base is not on this machine, or a tokenizer of it cannot be read.
    """
    spec, named = spec_of(model, download=False), Path(model.tokenizers) if model.tokenizers else None
    if spec.tokenizers and (named or is_file(Path(model.source).expanduser())):
        kinds = spec.tokenizers.items()
        return tuple(_read(tokenizer_folder(part, kind, named, None), part, kind) for part, kind in kinds)
    folder = _folder(model.source, spec)
    found = tuple(_read(part, part.name) for part in sorted(folder.glob("tokenizer*")) if part.is_dir())
    if not found:
        raise BaseModelError(f"{folder}: holds no tokenizer")
    return found


def too_long(texts: Sequence[str], tokenizers: Iterable[TextTokenizer]) -> tuple[list[tuple[int, int, int]], list[int]]:
    """Which texts are longer than encoders read.

    Returns:
        (position, tokens, limit) of those of which every encoder misses the end, by the encoder that reads most; and
        the positions of those that another encoder reads whole (FLUX.1's CLIP reads 77 tokens, its T5 512).
    """
    by_reach = [(one.limit, one.lengths(texts)) for one in tokenizers if one.limit]
    if not by_reach:
        return [], []
    by_reach.sort(key=lambda reach: reach[0])
    reach, most = by_reach[-1]
    cut = [(k, tokens, reach) for k, tokens in enumerate(most) if tokens > reach]
    gone = {k for k, _, _ in cut}
    partly = {k for limit, lengths in by_reach[:-1] for k, tokens in enumerate(lengths) if tokens > limit} - gone
    return cut, sorted(partly)


def _folder(source: str, spec: FamilySpec) -> Path:
    if source == "embedded" or not is_repository_id(source) or is_folder(Path(source)):
        return open_source(source, spec).folder
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(source, allow_patterns=["tokenizer*/*"], local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError, OSError, ValueError):
        raise BaseModelError(f"{source} is not on this machine") from None


def _read(folder: Path, name: str, kind: str | None = None) -> BaseTokenizer:
    tokenizer = load_tokenizer(folder, kind)
    limit = tokenizer.model_max_length
    return BaseTokenizer(name, int(limit) if limit and limit < _NO_LIMIT else None, tokenizer)


def tokenizers_or_reason(model: ModelConfig) -> tuple[Sequence[TextTokenizer], str | None]:
    """The tokenizers, or none and why there are none."""
    try:
        return find_tokenizers(model), None
    except FoundryError as error:
        return (), str(error)
