"""Caption Drafts: what a node of the graph has written of pictures, kept for a review in the page."""

from __future__ import annotations

from comfy_api.latest import io

from ..trainer_core.config import DatasetConfig
from ..trainer_core.errors import DatasetError
from . import data_sets, host, sockets
from .node import Node


class CaptionDrafts(Node):
    """Texts become drafts of a DATASET's captions. No caption changes until somebody accepts them."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FoundryCaptionDrafts",
            display_name="Caption Drafts (Foundry)",
            category=sockets.CATEGORY,
            description="Keeps captions that another node has written as drafts: review them in the sidebar, LoRA "
            "Foundry → Data sets. The caption files do not change before that.",
            search_aliases=["save captions", "write captions", "captioning"],
            is_input_list=True,
            is_output_node=True,
            inputs=[
                sockets.Dataset.Input("dataset", tooltip="From Load Dataset, the same as for Dataset Images."),
                io.String.Input("captions", force_input=True, tooltip="What a captioner wrote, one for each name."),
                io.String.Input("names", force_input=True, tooltip="From Dataset Images: which picture each is of."),
            ],
            outputs=[],
        )

    @classmethod
    def execute(cls, dataset: list[DatasetConfig], captions: list[str], names: list[str]) -> io.NodeOutput:
        if len(captions) != len(names):
            raise DatasetError(
                f"Caption Drafts: {len(captions)} captions for {len(names)} names. Link the names of the same Dataset "
                "Images that the captioner looks at"
            )
        opened = data_sets.opened(dataset[0])
        unknown = [name for name in names if name not in opened.index.images]
        if unknown:
            raise DatasetError(f"Caption Drafts: {dataset[0].folder} holds no {unknown[0]!r:.200}")
        texts = dict(zip(names, map(str, captions), strict=True))
        data_sets.LIBRARY.drafts.add(opened.id, texts, "a node of a graph")
        data_sets.tell({"id": opened.id, "drafts": True})
        written = sum(bool(text.strip()) for text in texts.values())
        return io.NodeOutput(ui=host.shown_text(f"{written} drafts wait for a review: sidebar, Data sets"))
