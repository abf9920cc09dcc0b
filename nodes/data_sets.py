"""The data sets that pages and nodes of this ComfyUI see, and the models that can caption them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..trainer_core.api import CaptionModel, Library, OpenSet, Places, find_models, folder_id
from ..trainer_core.config import DatasetConfig
from ..trainer_core.errors import ConfigError
from . import host

_HIDDEN = frozenset({"3d", "clipspace", "painter", "pasted", "threed", "webcam"})
"""Folders below ComfyUI's input folder that its own nodes fill."""
CAPTIONER_FOLDERS = ("LLM", "VLM", "prompt_generator", "diffusers", "llm", "vlm", "blip", "florence2", "joycaption")
"""Below the models folder: where packs that caption put their models."""


def may_be_shown(path: Path) -> bool:
    """Whether a path lies in a root, links resolved."""
    return host.roots().holds(path)


def _places() -> Places:
    roots = host.roots()
    return Places(
        own=host.input_root(),
        others=(*roots.listed, host.collected_datasets_root()),
        demo=host.SHIPPED_DATASET,
        runs=host.runs_root(),
        drafts=roots.list_file.parent / "drafts",
        hidden=_HIDDEN,
    )


LIBRARY = Library(_places, may_be_shown)


def tell(news: dict[str, Any]) -> None:
    """Tells all pages what is new of a data set."""
    host.send_to_pages("dataset", news)


def opened(dataset: DatasetConfig) -> OpenSet:
    """The data set that a link brings, with its pictures.

    Raises:
        DatasetError: if it cannot be read.
    """
    host.roots().check_links(dataset)
    folder = Path(dataset.folder)
    LIBRARY.note(folder)  # drafts that a node writes are reviewed in the page
    return OpenSet.of(folder_id(folder), folder.name, dataset)


def captioners() -> list[CaptionModel]:
    """The captioning models on this machine."""
    return find_models(host.models_root() / name for name in CAPTIONER_FOLDERS)


def captioner(name: str) -> CaptionModel:
    """One of them by its name.

    Raises:
        ConfigError: if there is none of this name.
    """
    found = next((model for model in captioners() if model.name == name), None)
    if found is None:
        raise ConfigError(f"no captioning model {name!r:.200} is installed; {where_captioners_go()}")
    return found


def where_captioners_go() -> str:
    """What a user is told who has none."""
    folders = ", ".join(f"models/{name}" for name in CAPTIONER_FOLDERS[:4])
    return (
        "put the folder of one (Florence-2, Qwen-VL, JoyCaption or another LLaVA, BLIP; with config.json and "
        f".safetensors) into {folders}, or download it into Hugging Face's cache"
    )
