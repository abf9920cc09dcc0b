"""Load Dataset: a folder of images with captions, or images from the graph."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
from comfy_api.latest import io, ui

from ..trainer_core.config import DatasetConfig, validated
from ..trainer_core.data.images import png_bytes
from ..trainer_core.data.summary import DatasetSummary, digest, summarize
from ..trainer_core.errors import ConfigError, DatasetError, FoundryError
from ..trainer_core.files import write_atomically
from . import host, pictures, sockets
from .widgets import widget

_SHOWN_SIZES, _SHOWN_WARNINGS = 8, 3


class LoadDataset(io.ComfyNode):
    """A folder becomes a DATASET; the node shows what is in it."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        folder = (
            "Folder of images; each caption lies beside its image as a text file of the same name. A relative folder "
            "is looked for in ComfyUI's input folder. `demo` is the small data set that ships with LoRA Foundry."
        )
        resolutions = DatasetConfig.model_fields["resolutions"]
        return io.Schema(
            node_id="FoundryLoadDataset",
            display_name="Load Dataset (Foundry)",
            category=sockets.CATEGORY,
            description="Loads a folder of images with captions for training, and shows what is in it.",
            search_aliases=["training data", "dataset", "lora dataset", "image folder"],
            is_input_list=True,  # LoadImageTextDataSetFromFolder and others give lists, which belong together
            is_output_node=True,  # so that it can be run alone, to look at the data
            inputs=[
                io.String.Input("folder", default="demo", tooltip=folder),
                io.String.Input(
                    "resolutions",
                    default=", ".join(map(str, resolutions.default)),
                    tooltip=f"{resolutions.description} Several are separated by commas.",
                ),
                widget(DatasetConfig, "default_caption"),
                widget(DatasetConfig, "flip_x"),
                widget(DatasetConfig, "weight", advanced=True, step=0.1),
                widget(DatasetConfig, "caption_extension", advanced=True),
                io.Image.Input("images", optional=True, tooltip="Images from the graph, instead of a folder."),
                io.String.Input(
                    "captions",
                    optional=True,
                    force_input=True,
                    tooltip="Captions of the linked images: one for each, or one for all.",
                ),
            ],
            outputs=[
                sockets.Dataset.Output("dataset", tooltip="The data set, for Caption with Trigger or Train LoRA.")
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, **inputs: Any) -> str:
        """Changes when a file of the folder does. What comes over links counts through its own node."""
        try:
            return digest(_config(**_first(inputs)))
        except FoundryError as error:
            return str(error)

    @classmethod
    def execute(
        cls,
        folder: list[str],
        resolutions: list[str],
        default_caption: list[str],
        flip_x: list[bool],
        weight: list[float],
        caption_extension: list[str],
        images: list[torch.Tensor] | None = None,
        captions: list[str] | None = None,
    ) -> io.NodeOutput:
        settings: dict[str, Any] = _first(
            {
                "folder": folder,
                "resolutions": resolutions,
                "default_caption": default_caption,
                "flip_x": flip_x,
                "weight": weight,
                "caption_extension": caption_extension,
            }
        )
        if images is not None:
            settings |= {"folder": str(_collect(images, captions or [])), "caption_extension": "txt"}
        elif captions is not None:
            raise DatasetError(
                "Load Dataset: `captions` are linked but `images` are not; a folder brings its own captions"
            )
        dataset = _config(**settings)
        summary = summarize(dataset)
        thumbnails = [pictures.to_tensor(pictures.thumbnail(path)) for path in summary.thumbnails]
        shown = ui.PreviewImage(thumbnails).as_dict()
        return io.NodeOutput(dataset, ui={**shown, **host.shown_text(summary_text(summary))})


def summary_text(summary: DatasetSummary) -> str:
    """What is in a data set, in a few lines."""
    sizes = [f"{size}: {count}" for size, count in summary.buckets.items()]
    lines = [f"{summary.count} images; {', '.join(sizes[:_SHOWN_SIZES])}{' …' if len(sizes) > _SHOWN_SIZES else ''}"]
    if summary.missing_captions:
        lines.append(f"without caption: {len(summary.missing_captions)} ({summary.missing_captions[0]} …)")
    lines += [f"⚠ {warning}" for warning in summary.warnings[:_SHOWN_WARNINGS]]
    return "\n".join(lines)


def _first(inputs: dict[str, list[Any] | None]) -> dict[str, Any]:
    """Widgets' values out of the lists that a node with list inputs gets."""
    return {name: values[0] for name, values in inputs.items() if values and name not in ("images", "captions")}


def _config(**settings: Any) -> DatasetConfig:
    try:
        resolutions = [int(part) for part in str(settings["resolutions"]).replace(";", ",").split(",") if part.strip()]
    except ValueError:
        raise ConfigError(
            f"Load Dataset: resolutions {settings['resolutions']!r} are not whole numbers separated by commas, such as "
            "`512, 768, 1024`"
        ) from None
    folder = str(host.dataset_folder(settings["folder"]))
    return validated(DatasetConfig, {**settings, "folder": folder, "resolutions": resolutions})


def _collect(images: list[torch.Tensor], captions: list[str]) -> Path:
    """Writes images and captions into a folder that is named after their content.

    Raises:
        DatasetError: if the captions do not fit the images.
        SaveError: if the folder cannot be written.
    """
    found = pictures.from_batches(images)
    if len(captions) not in (0, 1, len(found)):
        raise DatasetError(
            f"Load Dataset: {len(captions)} captions are linked for {len(found)} images; link one for each, or one "
            "for all"
        )
    texts = captions * len(found) if len(captions) == 1 else captions
    content = hashlib.sha256()
    for picture in found:
        content.update(f"{picture.size}{picture.mode}".encode() + picture.tobytes())
    content.update(repr(texts).encode())
    folder = host.collected_datasets_root() / content.hexdigest()[:16]
    width = len(str(len(found)))
    for k, picture in enumerate(found):
        write_atomically(folder / f"{k:0{width}}.png", png_bytes(picture))
        if texts:
            write_atomically(folder / f"{k:0{width}}.txt", texts[k].encode())
    return folder
