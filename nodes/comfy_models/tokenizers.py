"""The tokenizers that ComfyUI brings along, for bases in single files."""

from __future__ import annotations

from pathlib import Path

from ...trainer_core.api import register_tokenizers


def register(comfy: Path) -> None:
    """Tells the trainer where they are.

    Args:
        comfy: ComfyUI's package of that name.
    """
    register_tokenizers("clip", comfy / "sd1_tokenizer")
    register_tokenizers("t5", comfy / "text_encoders" / "t5_tokenizer")
