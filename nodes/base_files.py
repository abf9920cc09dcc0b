"""Which files of ComfyUI's models folders a base is made of, and the one that a MODEL was loaded from.

Nothing here is of ComfyUI: names and objects come from the nodes.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..trainer_core.api import file_parts
from ..trainer_core.errors import ConfigError

EMBEDDED = "embedded"
SOURCES = ("checkpoints", "diffusion_models")
"""Models folders that a base's source may lie in. ComfyUI keeps `unet` as an older name of the second."""
_FOLDERS = {"text_encoder": "text_encoders", "vae": "vae", "denoiser": "diffusion_models", "adapter": "loras"}
"""Role of a part → models folder. ComfyUI keeps `clip` as a name of the first."""
_FIRST = ("text_encoder", "text_encoder_2", "vae")
PARTS = {part: _FOLDERS[role] for part, role in file_parts().items()}
"""Parts of a base that may be a file of their own → models folder."""
OPTIONAL = tuple(part for part in PARTS if part not in _FIRST)
"""Those that graphs of before November 2026 have no widget for."""
FROM_SOURCE = "from the source"
"""What a part's list says where the part is not a file of its own."""
NO_ADAPTER = "[none]"
"""What the list of training adapters says where there is none."""


def source_names(listed: Callable[[str], list[str]]) -> list[str]:
    """What the source can be: the embedded base, or a listed file with its folder before it.

    Args:
        listed: gives the names of a models folder.
    """
    return [EMBEDDED, *(f"{folder}/{name}" for folder in SOURCES for name in listed(folder))]


def named_source(name: str) -> tuple[str, str]:
    """The models folder and the name in it of a choice of `source_names`.

    Raises:
        ConfigError: if it begins with none of the folders.
    """
    folder, _, inner = name.partition("/")
    if folder not in SOURCES or not inner:
        raise ConfigError(
            f"source: {name!r:.300} is in no list of models. Write folders and repositories into folder_or_repo"
        )
    return folder, inner


def file_of(model: Any) -> Path:
    """The file that ComfyUI loaded a MODEL from. It is not looked up.

    ComfyUI's own loaders note the call that loads it again, the path first; the note is internal, so everything about
    it may be otherwise.

    Raises:
        ConfigError: if the MODEL does not tell, or is more than its file: training would not see it.
    """
    if getattr(model, "patches", None) or getattr(model, "injections", None):
        raise ConfigError(
            "model: a LoRA or other patch is on this MODEL, and training reads the file alone. Link the loader "
            "itself, or set family to auto and link clip and vae_model too: then the MODEL is trained as it is"
        )
    try:
        path = model.cached_patcher_init[1][0]
    except (AttributeError, IndexError, KeyError, TypeError):
        path = None
    if not isinstance(path, str) or not path:
        raise ConfigError(
            "model: this MODEL does not tell which file it was loaded from: only Load Checkpoint and Load Diffusion "
            "Model do, and loaders of GGUF and other quantized files do not. Choose the file in source, or "
            "set family to auto and link clip and vae_model too: then the MODEL is trained as it is"
        )
    return Path(path)
