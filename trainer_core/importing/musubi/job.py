"""The arguments of musubi-tuner's network trainings, as its `--config_file` has them."""

from __future__ import annotations

from typing import Any

from .. import models, shared
from ..arguments import table
from ..models import DTYPES
from ..rules import Outcome, Rule, Table, View, drop, each, number, one_of, shown, with_, word

NETWORKS = {"lora_wan", "lora_framepack", "lora_hv_1_5", "lora_kandinsky", "lora_qwen_image", "lora_zimage"}
NETWORKS |= {"lora_flux_2", "lora_hidream_o1", "lora_ideogram4", "lora_krea2"}
"""Modules of networks that sd-scripts has not."""


def _is_kontext(view: View) -> bool:
    return str(view["network_module"] or "").rpartition(".")[2] == "lora_flux"


def _network(value: Any, _: View) -> Outcome:
    last = word(value).rpartition(".")[2]
    if last in ("loha", "lokr"):
        return Outcome("taken", fields={"adapter.type": last})
    fields = {"adapter.type": "lora", "adapter.targets": "attention_mlp"}
    if last == "lora" or last.startswith("lora_"):
        return Outcome("taken", "attention and feed-forward", fields)
    return Outcome("converted", f"{shown(value)} is not there: a LoRA in its place", fields)


def _source(value: Any, view: View) -> Outcome:
    if view["dit_high_noise"]:
        say = "is the expert for low noise"
        return Outcome("converted", say, {"model.files.model_low_noise": word(value)})
    if _is_kontext(view):
        return Outcome("taken", fields={"model.source": word(value), "model.family": "flux1_kontext"})
    return models.through_comfyui("this model", {"model.source": word(value)})


def _high_noise(value: Any, _: View) -> Outcome:
    if not value:
        return Outcome("unused", "is empty")
    return models.through_comfyui("the expert for high noise", {"model.source": word(value)})


def _text_encoder(first: str, kontext: str) -> Rule:
    """The rule of a text encoder, whose place differs with Kontext, which has T5 first."""
    return lambda value, view: models.path(f"model.files.{kontext if _is_kontext(view) else first}")(value, view)


def _kind(kind: str, view: View) -> str | None:
    shifted = view.read("discrete_flow_shift", number, 1.0) != 1
    if kind == "sigma":
        return "sigmoid" if view["weighting_scheme"] == "logit_normal" else "shift" if shifted else "linear"
    if kind == "shift":
        return "shift" if shifted else "sigmoid"
    return "shift" if kind.endswith("_shift") else {"uniform": "linear", "sigmoid": "sigmoid"}.get(kind)


_OWN = "is this model's own, and has no counterpart"
_VAE = "pictures are encoded as large as they are, in parts where memory is short"
_DRAWN = "says how previews are drawn there; the base brings its own sampler"

TABLE: Table = {
    **table.TABLE,
    "network_module": _network,
    "dit": _source,
    "dit_high_noise": _high_noise,
    **each(drop("the two models say it"), "timestep_boundary"),
    **each(drop(shared.PLANNED), "offload_inactive_dit use_pinned_memory_for_block_swap block_swap_h2d_only"),
    "block_swap_ring_size": drop(shared.PLANNED, 2),
    **each(drop(shared.PLANNED), "img_in_txt_in_offloading disable_numpy_memmap gradient_checkpointing_cpu_offload"),
    **each(drop(shared.PLANNED), "offload_dit_during_sampling vae_cache_cpu"),
    **models.files({"t5": "text_encoder", "text_encoder": "text_encoder", "text_encoder_qwen": "text_encoder"}),
    **models.files({"byt5": "text_encoder_2", "text_encoder_clip": "text_encoder_2"}),
    "text_encoder1": _text_encoder("text_encoder", "text_encoder_2"),
    "text_encoder2": _text_encoder("text_encoder_2", "text_encoder"),
    **each(drop("ComfyUI's graph links an image encoder"), "clip image_encoder"),
    **each(with_("dit"), "task model_version"),
    **each(drop(shared.FROM_BASE), "num_layers dit_in_channels force_v2_1_time_embedding f1"),
    "discrete_flow_shift": with_("timestep_sampling"),
    "timestep_sampling": table.timesteps(_kind),
    "preserve_distribution_shape": drop(shared.LEVELS),
    "num_timestep_buckets": drop("noise levels are spread evenly by themselves"),
    "show_timesteps": drop("belongs to looking, not to training"),
    "fp8_scaled": shared.float8("model.quantization"),
    **each(shared.float8("model.text_encoder_quantization"), "fp8_t5 fp8_llm fp8_vl fp8_text_encoder"),
    "dit_dtype": one_of("model.dtype", DTYPES),
    "vae_dtype": one_of("model.vae_dtype", DTYPES),
    "text_encoder_dtype": one_of("model.text_encoder_dtype", DTYPES),
    "compile": table.compiled,
    **each(drop(shared.COMPILED, "inductor", "default"), "compile_backend compile_mode compile_dynamic"),
    **each(drop(shared.COMPILED), "compile_fullgraph compile_cache_size_limit"),
    **each(drop(shared.COMPILED), "dynamo_mode dynamo_fullgraph dynamo_dynamic"),
    **each(drop(shared.ATTENTION), "flash_attn flash3 sage_attn use_32bit_attention"),
    **each(drop("torch's own settings stay as they are"), "cuda_allow_tf32 cuda_cudnn_benchmark"),
    **each(drop(_VAE), "vae_tiling vae_chunk_size vae_spatial_tile_sample_min_size vae_enable_patch_conv"),
    "vae_sample_size": drop(_VAE, 128),
    "flow_shift": drop(_DRAWN, 7),
    **each(drop(_DRAWN), "turbo_dit turbo_dit_cache bulk_decode no_vae_load unconditional_dit sampler_preset"),
    "use_unconditional_dit_for_lora_sampling": drop(_DRAWN),
    "latent_window_size": drop(_OWN, 9),
    **each(drop(_OWN), "one_frame i2v_mode remove_first_image_from_target scheduler_scale override_dit"),
    **each(drop(_OWN), "force_nabla_attention nabla_P nabla_wT nabla_wH nabla_wW nabla_method nabla_add_sta"),
    **each(drop(_OWN), "noise_scale_start noise_scale_end noise_clip_std skip_t2i_visual_dummy dino_loss_weight"),
    **each(drop(_OWN), "dino_loss_backend dino_loss_model_type dino_loss_layer dino_loss_feature_mode"),
    **each(drop(_OWN), "dino_loss_resize dino_loss_use_gram dino_loss_use_norm dino_loss_every_n_steps"),
    **each(drop(_OWN), "initial_sigma log_loss_stats ideogram4_timestep_mu ideogram4_timestep_std"),
    **each(drop("`lora-foundry lint` looks at captions"), "validate_caption_structure warn_on_caption_issues"),
}
"""By argument; those of data sets are in a table of their own."""
