"""Which models there are that look at a picture and write: folders as transformers saves them, found by their files."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ..data.walk import real
from ..reading import is_folder, read_json

KINDS = {
    "florence2": "Florence-2",
    "qwen2_vl": "Qwen2-VL",
    "qwen2_5_vl": "Qwen2.5-VL",
    "qwen3_vl": "Qwen3-VL",
    "qwen3_vl_moe": "Qwen3-VL",
    "qwen3_5": "Qwen3.5",
    "llava": "LLaVA",
    "llava_next": "LLaVA",
    "llava_onevision": "LLaVA",
    "blip": "BLIP",
    "blip-2": "BLIP-2",
    "instructblip": "InstructBLIP",
    "paligemma": "PaliGemma",
    "idefics3": "Idefics3",
    "smolvlm": "SmolVLM",
    "gemma3": "Gemma 3",
    "mllama": "Llama Vision",
    "internvl": "InternVL",
    "mistral3": "Mistral 3",
}
"""By `model_type` of the config.json. JoyCaption is a LLaVA."""
_DEEPEST = 3
"""Levels of folders below a place: `LLM/author/model` and one more."""
_MOST = 4000
"""Folders that are looked at below a place."""
_CONFIG_LIMIT = 4_000_000
_PROCESSORS = ("processor_config.json", "preprocessor_config.json")


@dataclass(frozen=True)
class CaptionModel:
    """A model's folder."""

    folder: Path
    name: str
    """As it is shown: its folder below the place, or its repository."""
    kind: str
    """One of `KINDS`."""
    problem: str | None
    """Why it cannot be used; None if nothing speaks against it."""

    @property
    def id(self) -> str:
        """By which requests name it."""
        return hashlib.sha256(real(self.folder).encode("utf-8", "surrogatepass")).hexdigest()[:16]


def find_models(places: Iterable[Path]) -> list[CaptionModel]:
    """The captioning models below some places and in Hugging Face's cache, each once, in the order of their names."""
    found: dict[str, CaptionModel] = {}
    for place in places:
        for folder in _folders(place, 0, [_MOST]):
            if model := _model(folder, folder.relative_to(place).as_posix()):
                found.setdefault(model.id, model)
    for folder, name in _cached():
        if model := _model(folder, name):
            found.setdefault(model.id, model)
    return sorted(found.values(), key=lambda model: (model.problem is not None, model.name.casefold()))


def _folders(folder: Path, depth: int, left: list[int]) -> Iterator[Path]:
    try:
        with os.scandir(folder) as entries:
            inside = sorted(entry.name for entry in entries if not entry.name.startswith(".") and entry.is_dir())
    except OSError:
        return
    for name in inside:
        left[0] -= 1
        if left[0] < 0:
            return
        yield folder / name
        if depth + 1 < _DEEPEST:
            yield from _folders(folder / name, depth + 1, left)


def _cached() -> Iterator[tuple[Path, str]]:
    """The newest snapshot of each repository in Hugging Face's cache."""
    from huggingface_hub.constants import HF_HUB_CACHE

    for repository in sorted(Path(HF_HUB_CACHE).glob("models--*")) if is_folder(Path(HF_HUB_CACHE)) else ():
        snapshots = sorted((repository / "snapshots").glob("*"), key=lambda path: path.stat().st_mtime)
        if snapshots:
            yield snapshots[-1], repository.name.removeprefix("models--").replace("--", "/", 1)


def _model(folder: Path, name: str) -> CaptionModel | None:
    """What a folder's files say; None if it is no captioning model."""
    try:
        config = read_json(folder / "config.json", _CONFIG_LIMIT)
    except (OSError, ValueError):
        return None
    kind = config.get("model_type") if isinstance(config, dict) else None
    if not isinstance(kind, str) or kind not in KINDS:
        return None
    return CaptionModel(folder, name, kind, _problem(folder))


def _problem(folder: Path) -> str | None:
    """What keeps a folder from being used."""
    if not any(folder.glob("*.safetensors")):
        return "it has no .safetensors file; other kinds of weights are not read"
    if not any((folder / name).is_file() for name in _PROCESSORS):
        return f"it has neither {' nor '.join(_PROCESSORS)}"
    return None
