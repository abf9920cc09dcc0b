"""The types of our links. All are small handles: a validated section of the job's configuration, or a folder's path."""

from __future__ import annotations

from comfy_api.latest import io

CATEGORY = "LoRA Foundry"

Dataset = io.Custom("FOUNDRY_DATASET")
"""A `DatasetConfig`."""
Base = io.Custom("FOUNDRY_BASE")
"""A `ModelConfig`."""
LoraConfig = io.Custom("FOUNDRY_LORA_CONFIG")
"""An `AdapterConfig`."""
Run = io.Custom("FOUNDRY_RUN")
"""The path of a run folder, as a string."""
