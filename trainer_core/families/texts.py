"""Texts of a batch, for the families: tokens, embeddings side by side, and whether an encoder is the denoiser's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..errors import BaseModelError
from .conditioning import TextEmbedding
from .device import upload
from .sources.source import Source

if TYPE_CHECKING:
    import torch
    from torch import Tensor


def check_width(source: Source, part: str, given: object, expected: object) -> None:
    """Whether a text encoder is as wide as the denoiser asks for.

    Raises:
        BaseModelError: if not: it belongs to another model.
    """
    if isinstance(expected, int) and given != expected:  # configurations may leave out what is as usual
        raise BaseModelError(
            f"model.files.{part}: texts come out as {given or 'no'} numbers where the denoiser of {source.name} reads "
            f"{expected}: a text encoder belongs to another model"
        )


def stack_text(embeddings: list[TextEmbedding], device: torch.device) -> dict[str, Tensor]:
    """One batch of text embeddings, on the device.

    Raises:
        BaseModelError: if they differ in length, which a family must prevent by padding.
    """
    import torch

    try:
        return {name: upload(torch.stack([e[name] for e in embeddings]), device) for name in embeddings[0]}
    except RuntimeError as error:
        raise BaseModelError(f"text embeddings of different lengths cannot be batched: {error}") from error


def token_ids(tokenizer: Any, prompts: Sequence[str], limit: int, device: torch.device) -> Tensor:
    """Tokens (N, L) of prompts, padded and cut to the tokenizer's own limit and at most `limit`."""
    length = min(limit, tokenizer.model_max_length)
    encoded = tokenizer(list(prompts), padding="max_length", max_length=length, truncation=True, return_tensors="pt")
    return upload(encoded.input_ids, device)
