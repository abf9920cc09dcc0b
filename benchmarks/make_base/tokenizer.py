"""Stage `tokenizer`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from trainer_core.embedded.shapes import WORDS

from .common import TOKENS


def build_tokenizer(out: Path) -> None:
    """WordPiece over the world's words, consonant-vowel syllables and letters; the same file for CLIP and for T5."""
    from tokenizers import Tokenizer, normalizers, pre_tokenizers, processors
    from tokenizers.models import WordPiece
    from transformers import PreTrainedTokenizerFast

    letters = "abcdefghijklmnopqrstuvwxyz"
    syllables = [c + v for c in letters if c not in "aeiou" for v in "aeiou"]
    pieces = [*letters, *"0123456789", *"-_.,", *syllables]
    vocabulary = ["<pad>", "</s>", "<unk>", *WORDS]
    vocabulary += [word for word in [*pieces, *("##" + piece for piece in pieces)] if word not in vocabulary]
    tokenizer = Tokenizer(
        WordPiece({word: k for k, word in enumerate(vocabulary)}, unk_token="<unk>", max_input_chars_per_word=100)
    )
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=TOKENS,
        padding_side="right",
    )
    for folder in ("tokenizer", "tokenizer_2"):
        fast.save_pretrained(out / folder)
        # transformers 5 writes a class name here that 4 does not know; this one both do
        path = out / folder / "tokenizer_config.json"
        config = json.loads(path.read_text(encoding="utf-8"))
        path.write_text(json.dumps(config | {"tokenizer_class": "PreTrainedTokenizerFast"}, indent=2), encoding="utf-8")


def tokenizer_of(out: Path) -> Any:
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast.from_pretrained(out / "tokenizer_2")
