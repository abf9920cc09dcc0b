"""Which widget of which node sets which field of a job: tables, read in both directions. Nothing here is of ComfyUI.

Every field has one widget on one node. A node's widgets stand in the order of its table, the advanced ones last.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from ..trainer_core.config import (
    AdapterConfig,
    CacheConfig,
    DatasetConfig,
    MemoryConfig,
    ModelConfig,
    RegularizationConfig,
    SampleConfig,
    SaveConfig,
    Section,
    TrainConfig,
    ValidationConfig,
    validated,
)
from ..trainer_core.config.train import OPTIMIZERS
from ..trainer_core.errors import ConfigError
from .text_fields import ARGUMENTS, FILES, FLOATS, LINES, WHOLE_NUMBERS, TextForm

PARTS: dict[type[Section], str] = {
    ModelConfig: "model",
    AdapterConfig: "adapter",
    DatasetConfig: "dataset",
    TrainConfig: "train",
    RegularizationConfig: "regularization",
    ValidationConfig: "validation",
    SaveConfig: "save",
    SampleConfig: "sample",
    CacheConfig: "cache",
    MemoryConfig: "memory",
}
"""Where a section is found in a job."""

Values = dict[str, dict[str, Any]]
"""Values of fields, by the part of the job and the field's name."""


@dataclasses.dataclass(frozen=True)
class Setting:
    """A widget and the field that it sets."""

    section: type[Section]
    field: str
    name: str = ""
    """The widget's name, where the field's own would be ambiguous on the node."""
    empty: Any = None
    """The value that stands for an empty field, because a number's widget always holds one."""
    text: TextForm | None = None
    """How a field that holds several values is written in a box of text."""
    advanced: bool = False
    """Rarely changed: shown on demand."""
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """What differs from the field in the widget (`step`, `options` to choose from, …)."""

    @property
    def widget(self) -> str:
        """The widget's name."""
        return self.name or self.field

    @property
    def default(self) -> Any:
        """What the widget shows until it is changed."""
        return self.shown(self.section.model_fields[self.field].default)

    def value(self, shown: Any) -> Any:
        """The field's value for what the widget shows.

        Raises:
            ConfigError: for a text that says nothing.
        """
        if self.text is not None:
            try:
                return self.text.read(str(shown))
            except ValueError as error:
                raise ConfigError(f"{self.widget}: {error}") from None
        return None if self.empty is not None and shown == self.empty else shown

    def shown(self, value: Any) -> Any:
        """What the widget shows for the field's value: the inverse of `value`."""
        if self.text is not None:
            return self.text.show(value)
        if value is None:
            return "" if self.empty is None else self.empty
        return value


def main(table: Iterable[Setting]) -> list[Setting]:
    """What every user looks at."""
    return [setting for setting in table if not setting.advanced]


def advanced(table: Iterable[Setting]) -> list[Setting]:
    """What is shown on demand."""
    return [setting for setting in table if setting.advanced]


def values(table: Iterable[Setting], shown: Mapping[str, Any]) -> Values:
    """The fields' values, by part, of a node's widgets; prompts of before a widget came leave it out.

    Raises:
        ConfigError: for a text that says nothing.
    """
    found: Values = {}
    for setting in table:
        found.setdefault(PARTS[setting.section], {})[setting.field] = setting.value(
            shown.get(setting.widget, setting.default)
        )
    return found


def checked(table: Iterable[Setting], shown: Mapping[str, Any]) -> Values:
    """`values` of sections whose fields may all be left out, refused at once if they are wrong or do not fit together.

    Raises:
        ConfigError: with one line for each thing that is wrong.
    """
    table = tuple(table)
    found = values(table, shown)
    for section in {setting.section: None for setting in table}:
        validated(section, found[PARTS[section]])
    return found


_TORCH_OPTIMIZERS = ("ASGD", "Adadelta", "Adagrad", "Adam", "Adamax", "NAdam", "RAdam", "RMSprop", "Rprop", "SGD")
"""What every torch that we run on has."""

_LATER = {"optional": True}
"""A widget that came to its node later: ComfyUI puts required ones before those that are not, and workflows keep values
by position."""

LOAD_DATASET = (
    Setting(DatasetConfig, "resolutions", text=WHOLE_NUMBERS),
    Setting(DatasetConfig, "default_caption"),
    Setting(DatasetConfig, "flip_x"),
    Setting(DatasetConfig, "role"),
    Setting(DatasetConfig, "weight", advanced=True, options={"step": 0.1}),
    Setting(DatasetConfig, "loss_weight", advanced=True, options={"step": 0.1}),
    Setting(DatasetConfig, "adapter_strength", advanced=True, options={"step": 0.05}),
    Setting(DatasetConfig, "regularization_target", advanced=True),
    Setting(DatasetConfig, "kohya_folders", advanced=True),
    Setting(DatasetConfig, "caption_extension", advanced=True),
    Setting(DatasetConfig, "caption_column", advanced=True),
    Setting(DatasetConfig, "caption_per_line", advanced=True),
    Setting(DatasetConfig, "flip_y", advanced=True),
    Setting(DatasetConfig, "crop", advanced=True),
    Setting(DatasetConfig, "background", advanced=True),
    Setting(DatasetConfig, "mask_folder", advanced=True),
    Setting(DatasetConfig, "alpha_mask", advanced=True),
    Setting(DatasetConfig, "invert_mask", advanced=True),
    Setting(DatasetConfig, "mask_minimum", advanced=True),
    Setting(DatasetConfig, "control_folders", text=LINES, advanced=True),
    Setting(DatasetConfig, "frames", text=WHOLE_NUMBERS, advanced=True),
    Setting(DatasetConfig, "fps", empty=0.0, options={"step": 0.001}, advanced=True),
    Setting(DatasetConfig, "clip_part", advanced=True),
    Setting(DatasetConfig, "first_frame", advanced=True),
)
CAPTION_WITH_TRIGGER = (
    Setting(DatasetConfig, "trigger"),
    Setting(DatasetConfig, "trigger_placement"),
    Setting(DatasetConfig, "caption_dropout"),
    Setting(DatasetConfig, "dropped_caption"),
    Setting(DatasetConfig, "shuffle_tags"),
    Setting(DatasetConfig, "keep_tags", advanced=True),
)
CONFIGURE_LORA = (
    Setting(AdapterConfig, "type"),
    Setting(AdapterConfig, "rank"),
    Setting(AdapterConfig, "alpha", empty=0.0, options={"step": 0.5}),
    Setting(AdapterConfig, "dropout"),
    Setting(AdapterConfig, "targets"),
    Setting(AdapterConfig, "conv_rank", empty=0, advanced=True),
    Setting(AdapterConfig, "conv_alpha", empty=0.0, options={"step": 0.5}, advanced=True),
    Setting(AdapterConfig, "factor", advanced=True),
    Setting(AdapterConfig, "text_encoders", advanced=True),
)
QUANTIZE_BASE = (
    Setting(ModelConfig, "dtype", options={"display_name": "precision"}),
    Setting(ModelConfig, "text_encoder_dtype", options={"display_name": "text encoder precision"}),
    Setting(ModelConfig, "vae_dtype", options={"display_name": "VAE precision"}, advanced=True),
)
QUANTIZATION = (
    Setting(ModelConfig, "quantization", options=_LATER),
    Setting(ModelConfig, "text_encoder_quantization", options=_LATER),
    Setting(ModelConfig, "low_rank", advanced=True, options=_LATER),
)
TRAIN_LORA = (
    Setting(TrainConfig, "steps"),
    Setting(TrainConfig, "learning_rate", options={"step": 1e-6}),
    Setting(TrainConfig, "batch_size"),
    Setting(TrainConfig, "gradient_accumulation"),
    Setting(TrainConfig, "seed"),
    Setting(SaveConfig, "every", "save_every"),
    Setting(SampleConfig, "every", "sample_every"),
    Setting(SaveConfig, "keep", "keep_checkpoints", advanced=True),
    Setting(SaveConfig, "dtype", "save_dtype", advanced=True),
    Setting(SaveConfig, "weights", "save_weights", advanced=True),
    Setting(SaveConfig, "keep_best", advanced=True),
)
TRAINING_OPTIONS = (
    Setting(TrainConfig, "optimizer", options={"options": [*OPTIMIZERS, *_TORCH_OPTIMIZERS]}),
    Setting(TrainConfig, "lr_scheduler"),
    Setting(TrainConfig, "warmup_steps"),
    Setting(TrainConfig, "weight_decay", options={"step": 1e-5}),
    Setting(TrainConfig, "timestep_type"),
    Setting(TrainConfig, "timestep_bias"),
    Setting(TrainConfig, "loss_type"),
    Setting(TrainConfig, "ema_decay", empty=0.0, options={"step": 1e-4}),
    Setting(TrainConfig, "gradient_checkpointing"),
    Setting(ValidationConfig, "every", "validation_every"),
    Setting(ValidationConfig, "share", "validation_share"),
    Setting(ValidationConfig, "draws", "validation_draws", advanced=True),
    Setting(TrainConfig, "beta1", empty=-1.0, advanced=True, options={"step": 1e-3}),
    Setting(TrainConfig, "beta2", empty=-1.0, advanced=True, options={"step": 1e-4}),
    Setting(TrainConfig, "epsilon", empty=0.0, advanced=True, options={"step": 1e-9}),
    Setting(TrainConfig, "max_grad_norm", advanced=True),
    Setting(TrainConfig, "lr_cycles", advanced=True),
    Setting(TrainConfig, "lr_power", advanced=True),
    Setting(TrainConfig, "lr_final_share", advanced=True),
    Setting(TrainConfig, "timestep_min", advanced=True, options={"step": 1e-3}),
    Setting(TrainConfig, "timestep_max", advanced=True, options={"step": 1e-3}),
    Setting(TrainConfig, "stage_boundaries", text=FLOATS, advanced=True),
    Setting(TrainConfig, "stages", advanced=True),
    Setting(TrainConfig, "stage_switch_every", advanced=True),
    Setting(TrainConfig, "min_snr_gamma", empty=0.0, options={"step": 0.5}, advanced=True),
    Setting(TrainConfig, "huber_delta", advanced=True),
    Setting(TrainConfig, "ema_warmup", advanced=True),
    Setting(TrainConfig, "log_every", advanced=True),
    Setting(CacheConfig, "limit_gb", "cache_limit_gb", options={"step": 1.0}, advanced=True),
    Setting(TrainConfig, "optimizer_options", text=ARGUMENTS, advanced=True),
    Setting(TrainConfig, "skip_limit", advanced=True),
    Setting(TrainConfig, "deterministic", advanced=True),
    Setting(TrainConfig, "noise_offset", advanced=True),
    Setting(TrainConfig, "text_encoder_lr", empty=0.0, options={"step": 1e-6}, advanced=True),
    Setting(MemoryConfig, "plan", "memory", advanced=True, options=_LATER),
    Setting(MemoryConfig, "limit_gb", "memory_limit_gb", empty=0.0, advanced=True, options={"step": 0.5, **_LATER}),
    Setting(MemoryConfig, "layer_offloading", advanced=True, options=_LATER),
    Setting(MemoryConfig, "checkpoint_every", advanced=True, options=_LATER),
    Setting(MemoryConfig, "keep_attention", advanced=True, options=_LATER),
    Setting(MemoryConfig, "offload_inputs", advanced=True, options=_LATER),
    Setting(MemoryConfig, "compile", advanced=True, options=_LATER),
    Setting(MemoryConfig, "attention", advanced=True, options=_LATER),
)
REGULARIZATION = (
    Setting(RegularizationConfig, "output_preservation"),
    Setting(RegularizationConfig, "output_preservation_class"),
    Setting(RegularizationConfig, "output_preservation_weight"),
    Setting(RegularizationConfig, "blank_preservation"),
    Setting(RegularizationConfig, "blank_preservation_weight"),
    Setting(RegularizationConfig, "preservation_every"),
    Setting(RegularizationConfig, "ratio", "regularization_set_ratio"),
    Setting(RegularizationConfig, "differential_guidance"),
    Setting(RegularizationConfig, "differential_guidance_scale", options={"step": 0.1}),
    Setting(RegularizationConfig, "contrastive_guidance", advanced=True),
    Setting(RegularizationConfig, "contrastive_guidance_scale", advanced=True, options={"step": 0.1}),
    Setting(RegularizationConfig, "contrastive_guidance_schedule", advanced=True),
    Setting(RegularizationConfig, "contrastive_guidance_projection", advanced=True),
)
SAMPLE_SETTINGS = (
    Setting(SampleConfig, "width", empty=0, options={"step": 16}),
    Setting(SampleConfig, "height", empty=0, options={"step": 16}),
    Setting(SampleConfig, "steps", empty=0),
    Setting(SampleConfig, "guidance", empty=-1.0, options={"step": 0.1}),
    Setting(SampleConfig, "negative_prompt"),
    Setting(SampleConfig, "seed"),
    Setting(SampleConfig, "walk_seed"),
    Setting(SampleConfig, "before_training"),
    Setting(SampleConfig, "weights"),
    Setting(SampleConfig, "controls", text=FILES, advanced=True),
    Setting(SampleConfig, "frames", empty=0, advanced=True),
)

BY_NODE: dict[str, tuple[Setting, ...]] = {
    "FoundryLoadDataset": LOAD_DATASET,
    "FoundryCaptionWithTrigger": CAPTION_WITH_TRIGGER,
    "FoundryQuantizeBase": (*QUANTIZE_BASE, *QUANTIZATION),
    "FoundryConfigureLoRA": CONFIGURE_LORA,
    "FoundryTrainLoRA": TRAIN_LORA,
    "FoundryTrainingOptions": TRAINING_OPTIONS,
    "FoundryRegularization": REGULARIZATION,
    "FoundrySampleSettings": SAMPLE_SETTINGS,
}
"""All tables, by node."""
