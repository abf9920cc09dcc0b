"""The types of our links. All are small handles: validated settings of the job, or a folder's path."""

from __future__ import annotations

from comfy_api.latest import io

CATEGORY = "LoRA Foundry"
LOW_NOISE = (
    "Of models with two experts (Wan 2.2): the LoRA for low noise, where the other output is that for high noise. "
    "Nodes behind it do not run if there is none."
)

Dataset = io.Custom("FOUNDRY_DATASET")
"""A `DatasetConfig`."""
Base = io.Custom("FOUNDRY_BASE")
"""A `ModelConfig`."""
LoraConfig = io.Custom("FOUNDRY_LORA_CONFIG")
"""An `AdapterConfig`."""
TrainingOptions = io.Custom("FOUNDRY_TRAINING_OPTIONS")
"""Settings of `TrainConfig`, `ValidationConfig` and `CacheConfig`, as `settings.Values`."""
Regularization = io.Custom("FOUNDRY_REGULARIZATION")
"""Settings of `RegularizationConfig`, as `settings.Values`."""
SampleSettings = io.Custom("FOUNDRY_SAMPLE_SETTINGS")
"""Settings of `SampleConfig`, as `settings.Values`."""
Run = io.Custom("FOUNDRY_RUN")
"""The path of a run folder, as a string."""
