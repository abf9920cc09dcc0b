"""Captioning asked for by the page: one node on ComfyUI's queue, so that no training or drawing is disturbed."""

from __future__ import annotations

from .. import data_sets, host
from ..dataset_images import ALL
from .datasets import Captioners


def _queue(model: str, data_set: str, items: list[str], question: str) -> str:
    inputs = {"captioner": model, "which": ALL, "question": question, "data_set": data_set, "items": " ".join(items)}
    return host.queue_prompt("FoundryCaptionDataset", inputs)


CAPTIONERS = Captioners(
    data_sets.captioners,
    (*(f"models/{name}" for name in data_sets.CAPTIONER_FOLDERS[:4]), "Hugging Face: ~/.cache/huggingface/hub"),
    _queue,
)
