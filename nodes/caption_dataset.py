"""Caption Dataset: a captioning model on this machine writes drafts for a data set's pictures."""

from __future__ import annotations

from comfy_api.latest import io

from ..trainer_core.api import draft_captions
from ..trainer_core.config import DatasetConfig
from ..trainer_core.errors import ConfigError
from . import data_sets, host, sockets
from .dataset_images import ALL, MISSING
from .node import Node

_NONE = "none is installed"


class CaptionDataset(Node):
    """Florence-2, Qwen-VL, LLaVA (JoyCaption) or BLIP look at the pictures; what they write is reviewed in the page."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        names = [model.name for model in data_sets.captioners() if not model.problem]
        return io.Schema(
            node_id="FoundryCaptionDataset",
            display_name="Caption Dataset (Foundry)",
            category=sockets.CATEGORY,
            description="A captioning model writes drafts for a data set's pictures: review them in the sidebar, LoRA "
            "Foundry → Data sets. The caption files do not change before that.",
            search_aliases=["auto caption", "florence", "joycaption", "qwen vl", "llava", "blip", "captioning"],
            is_output_node=True,
            inputs=[
                io.Combo.Input(
                    "captioner",
                    options=names or [_NONE],
                    tooltip="A model's folder below models/LLM, models/VLM, models/prompt_generator or "
                    "models/diffusers, or in Hugging Face's cache. Nothing is downloaded.",
                ),
                io.Combo.Input("which", options=[MISSING, ALL], tooltip="Which pictures get a draft."),
                io.String.Input(
                    "question",
                    default="",
                    multiline=True,
                    tooltip="What the model is asked. Empty: what its kind usually is; of Florence-2 a task such as "
                    "`<CAPTION>`.",
                ),
                sockets.Dataset.Input("dataset", optional=True, tooltip="From Load Dataset."),
                io.String.Input(
                    "data_set",
                    default="",
                    optional=True,
                    advanced=True,
                    tooltip="A data set of the sidebar by its id, where none is linked: for the sidebar's own prompts.",
                ),
                io.String.Input(
                    "items",
                    default="",
                    optional=True,
                    advanced=True,
                    tooltip="Pictures of it by their ids, separated by blanks: these alone.",
                ),
            ],
            outputs=[],
        )

    @classmethod
    def fingerprint_inputs(cls, **_: object) -> float:
        """Never the same: which pictures lack a caption is known by the folder alone."""
        return float("nan")

    @classmethod
    def execute(
        cls,
        captioner: str,
        which: str,
        question: str,
        dataset: DatasetConfig | None = None,
        data_set: str = "",
        items: str = "",
    ) -> io.NodeOutput:
        if dataset is None and not data_set:
            raise ConfigError("Caption Dataset: link a `dataset`")
        opened = data_sets.opened(dataset) if dataset is not None else data_sets.LIBRARY.open(data_set)
        chosen = [item for item in items.split() if item in opened.keys]
        if not items.strip():
            chosen = [item for item in opened.keys if which == ALL or not opened.row(item)["own"]]
        bar = host.ProgressBar()

        def progress(done: int, of: int) -> None:
            data_sets.tell({"id": opened.id, "captioning": {"done": done, "of": of}, "drafts": done % 10 == 0})
            bar.update(done, of)

        host.free_vram()
        try:
            model, drafts = data_sets.captioner(captioner), data_sets.LIBRARY.drafts
            count, unreadable = draft_captions(opened, chosen, model, host.device(), drafts, question, progress)
        except Exception as error:
            data_sets.tell({"id": opened.id, "captioning": {"done": 0, "of": 0, "error": str(error)}, "drafts": True})
            raise
        finally:
            host.free_vram()
        data_sets.tell({"id": opened.id, "captioning": {"done": count, "of": count}, "drafts": True})
        lines = [f"{count} drafts wait for a review: sidebar, Data sets", *unreadable[:5]]
        return io.NodeOutput(ui=host.shown_text("\n".join(lines)))
