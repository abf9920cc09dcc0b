"""Which widget of which node sets which field of a job: tables. Nothing here is of ComfyUI.

Every field has one widget on one node. A node's widgets stand in the order of its table, and that never changes:
workflows keep values by position.
"""

from __future__ import annotations

from ..trainer_core.config import (
    AdapterConfig,
    CacheConfig,
    DatasetConfig,
    MemoryConfig,
    ModelConfig,
    RegularizationConfig,
    SampleConfig,
    SaveConfig,
    TrainConfig,
    ValidationConfig,
)
from ..trainer_core.config.train import OPTIMIZERS
from .setting import ON, Setting, choices
from .text_fields import ARGUMENTS, FILES, FLOATS, LINES, WHOLE_NUMBERS

_TORCH_OPTIMIZERS = ("ASGD", "Adadelta", "Adagrad", "Adam", "Adamax", "NAdam", "RAdam", "RMSprop", "Rprop", "SGD")
"""What every torch that we run on has."""

_LATER = {"optional": True}
"""A widget that came to its node later: ComfyUI puts required ones before those that are not, and workflows keep values
by position."""
_FALLING = [name for name in choices(TrainConfig, "lr_scheduler") if name != "constant"]
_RECOMPUTES = {"memory": ["manual"], "gradient_checkpointing": ON}
_CONTRASTIVE = {"contrastive_guidance": ON}
QUANTIZED = [name for name in choices(ModelConfig, "quantization") if name != "none"]
"""What `quantization` shows of a base that is quantized."""

LOAD_DATASET = (
    Setting(DatasetConfig, "resolutions", text=WHOLE_NUMBERS),
    Setting(DatasetConfig, "default_caption"),
    Setting(DatasetConfig, "flip_x"),
    Setting(DatasetConfig, "role"),
    Setting(DatasetConfig, "weight", advanced=True, options={"step": 0.1}),
    Setting(DatasetConfig, "loss_weight", advanced=True, options={"step": 0.1}),
    Setting(DatasetConfig, "adapter_strength", advanced=True, options={"step": 0.05}),
    Setting(DatasetConfig, "regularization_target", advanced=True, needs={"role": ["regularization"]}),
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
    Setting(DatasetConfig, "trigger_placement", needs={"trigger": ON}),
    Setting(DatasetConfig, "caption_dropout"),
    Setting(DatasetConfig, "dropped_caption", needs={"caption_dropout": ON}),
    Setting(DatasetConfig, "shuffle_tags"),
    Setting(DatasetConfig, "keep_tags", advanced=True, needs={"shuffle_tags": ON}),
)
CONFIGURE_LORA = (
    Setting(AdapterConfig, "type"),
    Setting(AdapterConfig, "rank"),
    Setting(AdapterConfig, "alpha", empty=0.0, options={"step": 0.5}),
    Setting(AdapterConfig, "dropout"),
    Setting(AdapterConfig, "targets"),
    Setting(AdapterConfig, "conv_rank", empty=0, advanced=True),
    Setting(AdapterConfig, "conv_alpha", empty=0.0, options={"step": 0.5}, advanced=True, needs={"conv_rank": ON}),
    Setting(AdapterConfig, "factor", advanced=True, needs={"type": ["lokr"]}),
    Setting(AdapterConfig, "text_encoders", advanced=True),
)
BASE_MODEL = (
    Setting(ModelConfig, "dtype", options={"display_name": "precision"}),
    Setting(ModelConfig, "text_encoder_dtype", options={"display_name": "text encoder precision"}),
    Setting(ModelConfig, "vae_dtype", options={"display_name": "VAE precision"}, advanced=True),
)
QUANTIZATION = (
    Setting(ModelConfig, "quantization", options=_LATER),
    Setting(ModelConfig, "text_encoder_quantization", options=_LATER),
    Setting(ModelConfig, "low_rank", advanced=True, options=_LATER, needs={"quantization": QUANTIZED}),
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
    Setting(TrainConfig, "weight_decay", options={"step": 1e-5}, advanced=True),
    Setting(TrainConfig, "timestep_type"),
    Setting(TrainConfig, "timestep_bias"),
    Setting(TrainConfig, "loss_type"),
    Setting(TrainConfig, "ema_decay", empty=0.0, options={"step": 1e-4}),
    Setting(TrainConfig, "gradient_checkpointing"),
    Setting(ValidationConfig, "every", "validation_every"),
    Setting(ValidationConfig, "share", "validation_share", needs={"validation_every": ON}),
    Setting(ValidationConfig, "draws", "validation_draws", advanced=True, needs={"validation_every": ON}),
    Setting(TrainConfig, "beta1", empty=-1.0, advanced=True, options={"step": 1e-3}),
    Setting(TrainConfig, "beta2", empty=-1.0, advanced=True, options={"step": 1e-4}),
    Setting(TrainConfig, "epsilon", empty=0.0, advanced=True, options={"step": 1e-9}),
    Setting(TrainConfig, "max_grad_norm", advanced=True),
    Setting(TrainConfig, "lr_cycles", advanced=True, needs={"lr_scheduler": ["cosine_with_restarts"]}),
    Setting(TrainConfig, "lr_power", advanced=True, needs={"lr_scheduler": ["polynomial"]}),
    Setting(TrainConfig, "lr_final_share", advanced=True, needs={"lr_scheduler": _FALLING}),
    Setting(TrainConfig, "timestep_min", advanced=True, options={"step": 1e-3}),
    Setting(TrainConfig, "timestep_max", advanced=True, options={"step": 1e-3}),
    Setting(TrainConfig, "stage_boundaries", text=FLOATS, advanced=True),
    Setting(TrainConfig, "stages", advanced=True),
    Setting(TrainConfig, "stage_switch_every", advanced=True),
    Setting(TrainConfig, "min_snr_gamma", empty=0.0, options={"step": 0.5}, advanced=True),
    Setting(TrainConfig, "huber_delta", advanced=True, needs={"loss_type": ["huber", "smooth_l1"]}),
    Setting(TrainConfig, "ema_warmup", advanced=True, needs={"ema_decay": ON}),
    Setting(TrainConfig, "log_every", advanced=True),
    Setting(CacheConfig, "limit_gb", "cache_limit_gb", options={"step": 1.0}, advanced=True),
    Setting(TrainConfig, "optimizer_options", text=ARGUMENTS, advanced=True),
    Setting(TrainConfig, "skip_limit", advanced=True),
    Setting(TrainConfig, "deterministic", advanced=True),
    Setting(TrainConfig, "noise_offset", advanced=True),
    Setting(TrainConfig, "text_encoder_lr", empty=0.0, options={"step": 1e-6}, advanced=True),
    Setting(MemoryConfig, "plan", "memory", advanced=True, options=_LATER),
    Setting(MemoryConfig, "limit_gb", "memory_limit_gb", empty=0.0, advanced=True, options={"step": 0.5, **_LATER}),
    Setting(MemoryConfig, "layer_offloading", advanced=True, options=_LATER, needs={"memory": ["manual"]}),
    Setting(MemoryConfig, "checkpoint_every", advanced=True, options=_LATER, needs=_RECOMPUTES),
    Setting(MemoryConfig, "keep_attention", advanced=True, options=_LATER, needs=_RECOMPUTES),
    Setting(MemoryConfig, "offload_inputs", advanced=True, options=_LATER, needs=_RECOMPUTES),
    Setting(MemoryConfig, "compile", advanced=True, options=_LATER),
    Setting(MemoryConfig, "attention", advanced=True, options=_LATER),
)
REGULARIZATION = (
    Setting(RegularizationConfig, "output_preservation"),
    Setting(RegularizationConfig, "output_preservation_class", needs={"output_preservation": ON}),
    Setting(RegularizationConfig, "output_preservation_weight", needs={"output_preservation": ON}),
    Setting(RegularizationConfig, "blank_preservation"),
    Setting(RegularizationConfig, "blank_preservation_weight", needs={"blank_preservation": ON}),
    Setting(RegularizationConfig, "preservation_every"),
    Setting(RegularizationConfig, "ratio", "regularization_set_ratio"),
    Setting(RegularizationConfig, "differential_guidance"),
    Setting(
        RegularizationConfig, "differential_guidance_scale", options={"step": 0.1}, needs={"differential_guidance": ON}
    ),
    Setting(RegularizationConfig, "contrastive_guidance", advanced=True),
    Setting(
        RegularizationConfig, "contrastive_guidance_scale", advanced=True, options={"step": 0.1}, needs=_CONTRASTIVE
    ),
    Setting(RegularizationConfig, "contrastive_guidance_schedule", advanced=True, needs=_CONTRASTIVE),
    Setting(RegularizationConfig, "contrastive_guidance_projection", advanced=True, needs=_CONTRASTIVE),
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
    "FoundryQuantizeBase": (*BASE_MODEL, *QUANTIZATION),
    "FoundryConfigureLoRA": CONFIGURE_LORA,
    "FoundryTrainLoRA": TRAIN_LORA,
    "FoundryTrainingOptions": TRAINING_OPTIONS,
    "FoundryRegularization": REGULARIZATION,
    "FoundrySampleSettings": SAMPLE_SETTINGS,
}
"""All tables, by node."""
