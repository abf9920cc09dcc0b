"""Load Dataset: a folder of images or clips with captions, or images from the graph."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from comfy_api.latest import io, ui

from ..trainer_core.api import dataset_digest, first_picture, inspect_dataset, keep_images, lint_dataset
from ..trainer_core.config import DatasetConfig, validated
from ..trainer_core.errors import ConfigError, DatasetError, FoundryError
from . import host, pictures, sockets
from .dataset_text import findings_text, summary_text
from .node import Node
from .setting import NOT_LINKED, UNLINKED, advanced, main, values
from .settings import LOAD_DATASET
from .text_fields import WHOLE_NUMBERS
from .widgets import widgets

_LINKED = ("images", "captions", "masks")


class LoadDataset(Node):
    """A folder becomes a DATASET; the node shows what is in it."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        folder = (
            "Folder of images or clips; captions lie beside them as text files of the same name. A relative folder is "
            "looked for in ComfyUI's input folder; one outside of ComfyUI's folders has to be allowed first (see "
            "the help). `demo` is the small data set that ships with LoRA Foundry."
        )
        captions = "Captions of the linked images: one for each, or one for all."
        masks = "Masks of the linked images: one for each, or one for all. White is trained on, black is not."
        check = "Look for what often goes wrong (captions, duplicates, broken or odd images), and show it here."
        return io.Schema(
            node_id="FoundryLoadDataset",
            display_name="Load Dataset (Foundry)",
            category=sockets.CATEGORY,
            description="Loads a folder of images or clips with captions for training, and shows what is in it.",
            search_aliases=[
                "training data",
                "dataset",
                "lora dataset",
                "image folder",
                "lint",
                "regularization images",
                "video dataset",
            ],
            is_input_list=True,  # LoadImageTextDataSetFromFolder and others give lists, which belong together
            is_output_node=True,  # so that it can be run alone, to look at the data
            inputs=[
                io.String.Input("folder", default="demo", tooltip=folder, extra_dict={UNLINKED: ["images"]}),
                *widgets(main(LOAD_DATASET)),
                io.Boolean.Input("check", default=False, tooltip=check),
                *widgets(advanced(LOAD_DATASET)),
                io.Image.Input("images", optional=True, tooltip="Images from the graph, instead of a folder."),
                io.String.Input("captions", optional=True, force_input=True, tooltip=captions),
                io.Mask.Input("masks", optional=True, tooltip=masks),
            ],
            outputs=[
                sockets.Dataset.Output("dataset", tooltip="The data set, for Caption with Trigger or Train LoRA.")
            ],
        )

    @classmethod
    def validate_inputs(
        cls, folder: list[str | None], resolutions: list[str | None] | None = None, images: Any = NOT_LINKED
    ) -> bool | str:
        """Refuses a folder that is not there, and resolutions that say nothing, before anything runs."""
        (place,), (sizes,) = folder, resolutions or (None,)
        try:
            if images is NOT_LINKED and place is not None:
                host.dataset_folder(place, there=True)
            if sizes is not None:
                validated(DatasetConfig, {"folder": "x", "resolutions": WHOLE_NUMBERS.read(sizes)})
        except ValueError as error:
            return f"resolutions: {error}"
        except ConfigError as error:
            return str(error)
        return True

    @classmethod
    def fingerprint_inputs(cls, **inputs: Any) -> str | float:
        """Changes when a file of the folder does. What comes over links is None here; it counts through its own node,
        but which files it leads to is not known, so that a linked folder is always read again.
        """
        constants = {name: value for name, value in _first(inputs).items() if value is not None}
        if "folder" not in constants:
            return float("nan")
        try:
            return dataset_digest(_config({**{one.widget: one.default for one in LOAD_DATASET}, **constants}))
        except FoundryError as error:
            return str(error)

    @classmethod
    def execute(
        cls,
        check: list[bool],
        images: list[torch.Tensor] | None = None,
        captions: list[str] | None = None,
        masks: list[torch.Tensor] | None = None,
        **settings: list[Any],
    ) -> io.NodeOutput:
        shown = _first(settings)
        if images is not None:
            shown |= _linked(shown, images, captions or [], masks or [])
        elif captions is not None or masks is not None:
            raise DatasetError(
                "Load Dataset: `captions` or `masks` are linked but `images` are not; a folder brings its own captions "
                "and masks"
            )
        dataset = _config(shown)
        host.roots().check_links(dataset)
        findings = _checked(dataset) if check[0] else ""
        summary = inspect_dataset(dataset)
        thumbnails = [pictures.to_tensor(pictures.shrunk(first_picture(path))) for path in summary.thumbnails]
        text = "\n".join(part for part in (summary_text(summary, dataset.resolutions), findings) if part)
        return io.NodeOutput(dataset, ui={**ui.PreviewImage(thumbnails).as_dict(), **host.shown_text(text)})


def _first(inputs: Mapping[str, list[Any] | None]) -> dict[str, Any]:
    """Widgets' values out of the lists that a node with list inputs gets."""
    return {name: given[0] for name, given in inputs.items() if given and name not in _LINKED}


def _config(shown: dict[str, Any]) -> DatasetConfig:
    fields = values(LOAD_DATASET, shown)["dataset"]
    fields["folder"] = str(host.dataset_folder(shown["folder"]))
    if fields["mask_folder"].strip():
        fields["mask_folder"] = str(host.input_folder(fields["mask_folder"], "mask_folder"))
    fields["control_folders"] = [str(host.input_folder(name, "control_folders")) for name in fields["control_folders"]]
    return validated(DatasetConfig, fields)


def _linked(
    shown: dict[str, Any], images: list[torch.Tensor], captions: list[str], masks: list[torch.Tensor]
) -> dict[str, Any]:
    """What the widgets would say of a folder with the linked images.

    Raises:
        ConfigError: if the masks would come from two places.
        DatasetError: if captions or masks do not fit the images.
        SaveError: if the images cannot be kept.
    """
    if masks and shown["mask_folder"].strip():
        raise ConfigError("Load Dataset: `masks` are linked and `mask_folder` is set; use one of them")
    try:
        folder, mask_folder = keep_images(
            host.collected_datasets_root(), pictures.from_batches(images), captions, pictures.from_masks(masks)
        )
    except DatasetError as error:
        raise DatasetError(
            f"Load Dataset: {error}. (Load Image gives an empty mask of 64x64 for an image without transparency.)"
        ) from None
    kept = {"folder": str(folder), "caption_extension": "txt", "kohya_folders": False}
    return {**kept, "mask_folder": str(mask_folder)} if mask_folder else kept


def _checked(dataset: DatasetConfig) -> str:
    """What the checks find. It is shown at once, because what they find may be why the node fails a moment later."""
    bar = host.ProgressBar()

    def progress(_what: str, done: int, total: int) -> None:
        bar.update(done, total)

    report = lint_dataset(dataset, tokenizers=(), progress=progress)  # this node knows neither the base
    own = tuple(finding for finding in report.findings if finding.check != "missing-trigger")  # nor the trigger
    text = findings_text(replace(report, findings=own))
    host.progress_text(text)
    return text
