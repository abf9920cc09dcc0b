"""The kinds of tokenizers that parts name: where to find one on this machine, and what it is called."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TokenizerKind:
    """One kind."""

    title: str
    limit: int
    """Tokens that the encoders read."""
    kind: str
    """Its class in transformers, without `Fast`."""
    repositories: tuple[tuple[str, str], ...]
    """Those that may be in Hugging Face's cache, and the folder in them; the first is where to get it."""
    files: tuple[str, ...]
    """What it is made of."""


KINDS = {
    "clip": TokenizerKind(
        title="CLIP",
        limit=77,
        kind="CLIPTokenizer",
        repositories=(
            ("openai/clip-vit-large-patch14", ""),
            ("stable-diffusion-v1-5/stable-diffusion-v1-5", "tokenizer"),
        ),
        files=("vocab.json", "merges.txt", "tokenizer_config.json"),
    ),
    "t5": TokenizerKind(
        title="T5",
        limit=512,
        kind="T5Tokenizer",
        repositories=(("google/t5-v1_1-xxl", ""), ("black-forest-labs/FLUX.1-schnell", "tokenizer_2")),
        files=("spiece.model", "tokenizer_config.json"),
    ),
}
"""By the name that parts have for it; a family from outside may add its own."""
