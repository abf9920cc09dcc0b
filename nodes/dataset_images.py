"""Dataset Images: a data set's pictures as a list of IMAGEs, for any node that captions, and their names."""

from __future__ import annotations

from comfy_api.latest import io

from ..trainer_core.api import first_picture
from ..trainer_core.config import DatasetConfig
from ..trainer_core.errors import DatasetError
from . import data_sets, host, pictures, sockets
from .node import Node

MISSING, ALL = "those without a caption", "all"


class DatasetImages(Node):
    """Pictures of a DATASET go out one by one, so that a captioner of any pack can look at them."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FoundryDatasetImages",
            display_name="Dataset Images (Foundry)",
            category=sockets.CATEGORY,
            description="Gives a data set's pictures one by one, for a node that captions them; link what that node "
            "says, and the names, to Caption Drafts.",
            search_aliases=["caption images", "batch caption", "image list", "captioning"],
            inputs=[
                sockets.Dataset.Input("dataset", tooltip="From Load Dataset."),
                io.Combo.Input(
                    "which",
                    options=[MISSING, ALL],
                    tooltip="Pictures that have no caption of their own yet, or all; of a clip the first frame.",
                ),
                io.Int.Input("first", default=0, min=0, max=1_000_000, tooltip="How many of them to pass over."),
                io.Int.Input(
                    "count", default=32, min=1, max=1000, tooltip="How many at most: all of them lie in memory at once."
                ),
                io.Int.Input(
                    "edge",
                    default=1024,
                    min=64,
                    max=4096,
                    advanced=True,
                    tooltip="Larger pictures are scaled down to this longer edge, in pixels.",
                ),
            ],
            outputs=[
                io.Image.Output("images", is_output_list=True, tooltip="The pictures, one by one."),
                io.String.Output("names", is_output_list=True, tooltip="Their files, for Caption Drafts."),
                io.String.Output("captions", is_output_list=True, tooltip="The captions that they have now."),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, **_: object) -> float:
        """Never the same: which pictures lack a caption is known by the folder alone."""
        return float("nan")

    @classmethod
    def execute(cls, dataset: DatasetConfig, which: str, first: int, count: int, edge: int) -> io.NodeOutput:
        opened = data_sets.opened(dataset)
        rows = [opened.row(item) for item in opened.keys]
        wanted = [row for row in rows if which == ALL or not row["own"]][first : first + count]
        if not wanted:
            raise DatasetError(f"{dataset.folder}: {len(rows)} pictures, and none of them is asked for here")
        bar, images = host.ProgressBar(), []
        for done, row in enumerate(wanted):
            bar.update(done, len(wanted))
            shown = pictures.shrunk(first_picture(opened.index.images[row["file"]]), edge)
            images.append(pictures.to_batch([shown]))
        return io.NodeOutput(images, [row["file"] for row in wanted], [row["caption"] for row in wanted])
