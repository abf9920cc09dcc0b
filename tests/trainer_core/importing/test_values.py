"""What the configurations become, worked out by hand from the documentation of their tools."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from trainer_core.api import Imported, import_config
from trainer_core.config import JobConfig

from .configurations import FOLDER, MAIN

EXPECTED: dict[str, dict[str, Any]] = {
    "ai_toolkit/flux_character.yaml": {
        "name": "harbour cat v1",
        "trigger": "h4rb0ur",
        "model": {"family": "flux1", "source": "black-forest-labs/FLUX.1-dev", "quantization": "float8"},
        # alpha counts for UNets only; every linear layer of the blocks is adapted
        "adapter": {"type": "lora", "rank": 24, "alpha": None, "targets": "all"},
        "datasets": [{"folder": "/data/harbour_cat", "caption_dropout": 0.05, "resolutions": (512, 768)}],
        "train": {"steps": 1800, "batch_size": 2, "learning_rate": 2e-4, "optimizer": "adamw8bit", "ema_decay": 0.995}
        | {"timestep_type": "sigmoid", "epsilon": 1e-6, "weight_decay": 0.01},
        "save": {"every": 200, "keep": 6, "dtype": "bfloat16"},
        "sample": {"width": 896, "height": 1152, "seed": 11, "guidance": 4, "steps": 24, "every": 200}
        | {"prompts": ("[trigger] on a pier at dawn", "[trigger] asleep in a rowing boat")},
    },
    "ai_toolkit/flux_schnell_dop.yaml": {
        "datasets": [
            {"weight": 3, "flip_x": True, "default_caption": "a clay figure", "trigger": "cl4yf0x"},
            {"role": "regularization", "regularization_target": "base", "loss_weight": 0.5, "trigger": None},
        ],
        "train": {"gradient_accumulation": 2, "timestep_type": "weighted", "timestep_bias": "high_noise"}
        | {"weight_decay": 1e-4, "ema_decay": None, "log_every": 5},
        "regularization": {"output_preservation": True, "output_preservation_weight": 0.75}
        | {"output_preservation_class": "fox"},
        "sample": {
            "before_training": False,
            "walk_seed": False,
            "prompts": ("[trigger] in the snow", "a fox in the snow"),
        },
    },
    "ai_toolkit/kontext_edit.yaml": {
        "model": {"family": "flux1_kontext"},
        "datasets": [{"control_folders": ("/data/paint/sketches",), "caption_extension": "txt"}],
        "sample": {"controls": (("/data/paint/a.png",), ("/data/paint/b.png",))},
    },
    "ai_toolkit/qwen_edit_plus.yaml": {
        "model": {"family": "auto", "source": "Qwen/Qwen-Image-Edit-2509", "quantization": "uint3"}
        | {"recovery_adapter": "ostris/adapters/edit_uint3.safetensors", "text_encoder_quantization": "float8"},
        "datasets": [{"control_folders": ("/data/outfit/person", "/data/outfit/clothes", "/data/outfit/pose")}],
        "sample": {"controls": (("/data/outfit/p.png", "/data/outfit/c.png"),)},
    },
    "ai_toolkit/wan22_video.yaml": {
        # its limits are counted from pure noise downwards
        "train": {"stages": "high_noise", "stage_switch_every": 10, "timestep_min": 0.1, "timestep_type": "linear"},
        "datasets": [{"frames": (41,), "fps": 16, "clip_part": "random"}, {"resolutions": (512,)}],
        "sample": {"frames": 41, "negative_prompt": "blurry", "width": 832, "height": 480},
    },
    "ai_toolkit/sdxl_conv_text.yaml": {
        "model": {"family": "sdxl", "files": {"vae": "/models/sdxl_vae.safetensors"}},
        "adapter": {"type": "lora", "rank": 16, "alpha": 8, "conv_rank": 8, "conv_alpha": 4, "dropout": 0.1}
        | {"text_encoders": True},
        "train": {"warmup_steps": 50, "lr_scheduler": "constant", "min_snr_gamma": 5, "noise_offset": 0.03}
        | {"beta1": 0.9, "beta2": 0.98, "weight_decay": 0.05, "max_grad_norm": 0.5, "text_encoder_lr": 2e-5}
        | {"timestep_type": "auto"},
        "datasets": [{"shuffle_tags": True, "keep_tags": 2, "crop": "random", "alpha_mask": True, "invert_mask": True}],
    },
    "ai_toolkit/lokr_full_rank.yaml": {
        "adapter": {"type": "lokr", "rank": 1024, "alpha": None, "factor": 8},
        "train": {"timestep_type": "shift", "optimizer": "adamw"},
        "datasets": [{"weight": 2}, {"adapter_strength": 0.5}],
        "regularization": {"blank_preservation": True, "blank_preservation_weight": 0.3},
    },
    "ai_toolkit/prodigy_dora.json": {
        "adapter": {"type": "dora", "rank": 12},
        "train": {"optimizer": "prodigy", "learning_rate": 1, "weight_decay": 0.01, "lr_scheduler": "cosine"}
        | {"optimizer_options": {"decouple": True, "use_bias_correction": True}}
        # √(d² + c²) - c has the slope of |d| and d² / 2c near 0, as smooth_l1 with c
        | {"loss_type": "smooth_l1", "huber_delta": 0.01},
        "regularization": {"differential_guidance": True, "differential_guidance_scale": 2}
        | {"contrastive_guidance": True, "contrastive_guidance_scale": 3.5, "contrastive_guidance_schedule": "sigma"},
        "save": {"dtype": "float32"},
    },
    "ai_toolkit/two_processes.yaml": {
        # the tool counts passes: 400 of them are 100 steps
        "train": {"steps": 100, "gradient_accumulation": 4, "timestep_min": 0, "timestep_max": 0.9},
        "datasets": [{"folder": "/data/one", "default_caption": "pair picture"}],
        "sample": {"prompts": ()},
    },
    "ai_toolkit/bare_sd15.yaml": {
        "model": {"source": "stable-diffusion-v1-5/stable-diffusion-v1-5"},
        "adapter": {"rank": 6},
        "train": {"steps": 1000, "learning_rate": 5e-5, "optimizer": "adamw", "weight_decay": 0.01},
        "save": {"every": 1000, "keep": 5, "dtype": "float16"},
        "datasets": [{"resolutions": (512,)}],
    },
    "sd_scripts/sd15_folders.toml": {
        "name": "lamp_v2",
        "adapter": {"rank": 32, "alpha": 16, "conv_rank": 8, "conv_alpha": 4, "text_encoders": True},
        # a square as large as 512 × 768
        "datasets": [
            {"folder": "/data/lamp/img", "kohya_folders": True, "resolutions": (627,), "keep_tags": 1, "flip_x": True},
            {"folder": "/data/lamp/reg", "kohya_folders": True, "role": "regularization", "loss_weight": 0.8},
        ],
        "train": {"steps": 1500, "batch_size": 3, "learning_rate": 8e-5, "text_encoder_lr": 4e-5, "seed": 1337}
        | {"lr_scheduler": "cosine_with_restarts", "lr_cycles": 3, "warmup_steps": 150, "noise_offset": 0.05},
        "model": {"dtype": "float16", "family": "auto"},
        "save": {"every": 500, "dtype": "float16"},
    },
    "sd_scripts/sdxl_dataset.toml": {
        "name": "paper cut_ 3",
        "model": {"vae_dtype": "float32", "files": {"vae": "/models/sdxl_vae.safetensors"}},
        "adapter": {"rank": 16, "alpha": 8, "text_encoders": False},
        "train": {"optimizer": "adafactor", "optimizer_options": {}, "warmup_steps": 100, "batch_size": 4}
        | {"gradient_accumulation": 2, "weight_decay": 0},
        "datasets": [
            {"folder": "/data/paper/art", "weight": 5, "keep_tags": 2, "default_caption": "paper cut"},
            {"folder": "/data/paper/reg", "role": "regularization", "keep_tags": 0, "default_caption": "a drawing"},
            {"folder": "small", "keep_tags": 0, "trigger": "pc", "caption_per_line": True, "caption_dropout": 0.1}
            | {"dropped_caption": "blank", "resolutions": (627,)},
        ],
        "save": {"every": 400, "keep": 2},
        "sample": {"prompts": ("a paper cut of a lighthouse", "a paper cut of a whale"), "seed": 5, "steps": 24}
        | {"width": 1024, "height": 768, "guidance": 6.5, "negative_prompt": "photo, blurry"},
    },
    "sd_scripts/flux.toml": {
        "model": {"family": "flux1", "source": "/models/flux1-dev.safetensors", "quantization": "float8"}
        | {
            "files": {
                "text_encoder": "/models/clip_l.safetensors",
                "text_encoder_2": "/models/t5xxl_fp16.safetensors",
                "vae": "/models/ae.safetensors",
            }
        },
        "adapter": {"rank": 4, "alpha": 4, "targets": "all", "text_encoders": False},
        "train": {"timestep_type": "shift", "loss_type": "mse", "weight_decay": 0.01, "seed": 42},
        "datasets": [{"weight": 3, "resolutions": (512,)}],
    },
    "sd_scripts/lycoris_lokr.toml": {
        "model": {"source": "stabilityai/stable-diffusion-xl-base-1.0"},
        "adapter": {"type": "lokr", "rank": 1024, "alpha": 1, "factor": 8, "targets": "attention_mlp"},
        "train": {"optimizer": "lion", "weight_decay": 0.05, "beta1": 0.9, "beta2": 0.95, "lr_scheduler": "linear"},
    },
    "sd_scripts/lycoris_dora.toml": {
        "adapter": {"type": "dora", "rank": 16, "conv_rank": 8, "conv_alpha": 1, "targets": "all"},
        "train": {"optimizer": "prodigy", "learning_rate": 1, "weight_decay": 0.01}
        | {
            "optimizer_options": {
                "decouple": True,
                "d_coef": 2,
                "use_bias_correction": True,
                "safeguard_warmup": True,
            }
        },
    },
    "sd_scripts/huber_polynomial.toml": {
        "adapter": {"dropout": 0.2, "text_encoders": True},
        "train": {"loss_type": "smooth_l1", "huber_delta": 0.2, "lr_power": 1, "warmup_steps": 20, "epsilon": 1e-7}
        | {"text_encoder_lr": 2e-5, "max_grad_norm": 0, "timestep_min": 0.1, "timestep_max": 0.9},
    },
    "sd_scripts/masked_validation.toml": {
        "datasets": [{"mask_folder": "/data/masked/mask", "mask_minimum": 0, "crop": "random"}],
        "validation": {"share": 0.2, "every": 50},
        "memory": {"compile": True},
    },
    "sd_scripts/gui_dump.toml": {
        "adapter": {"rank": 8, "alpha": 1, "text_encoders": False, "conv_rank": None},
        "train": {"learning_rate": 1e-4, "warmup_steps": 0, "min_snr_gamma": None, "lr_scheduler": "cosine"},
    },
    "sd_scripts/dataset_only.toml": {
        "name": "dataset_only",
        "datasets": [{"folder": "/data/only", "weight": 2, "resolutions": (640,)}],
        "train": {"batch_size": 2},
    },
    "sd_scripts/sd3_defaults.toml": {
        "model": {"family": "auto"},
        "adapter": {"rank": 4, "alpha": 1, "targets": "all", "text_encoders": False},
        "train": {"steps": 1600, "learning_rate": 2e-6, "timestep_type": "sigmoid", "optimizer": "adamw"},
    },
    "musubi_tuner/wan_clips.toml": {
        "name": "crane_dance",
        "model": {
            "source": "/models/wan2.2_t2v_high_noise_14B_fp16.safetensors",
            "files": {
                "model_low_noise": "/models/wan2.2_t2v_low_noise_14B_fp16.safetensors",
                "text_encoder": "/models/umt5-xxl-enc-bf16.safetensors",
                "vae": "/models/wan_2.1_vae.safetensors",
            },
            "quantization": "float8",
            "text_encoder_quantization": "float8",
            "dtype": "bfloat16",
        },
        "adapter": {"type": "lora", "rank": 32, "alpha": 16, "targets": "attention_mlp"},
        # a square as large as 960 × 544
        "datasets": [
            {"folder": "/data/crane/short", "frames": (1, 25, 45), "clip_part": "start", "resolutions": (723,)},
            {"folder": "/data/crane/whole", "frames": (81,), "clip_part": "start", "weight": 2},
            {"folder": "/data/crane/parts", "frames": (25,), "clip_part": "uniform", "resolutions": (512,)},
            {"folder": "/data/crane/stills", "weight": 1, "caption_extension": "txt"},
        ],
        "train": {"optimizer": "adamw8bit", "learning_rate": 2e-4, "warmup_steps": 100, "timestep_type": "shift"},
        "sample": {"prompts": ("a crane dances in the fog", "a crane lands on a roof"), "frames": 45, "seed": 7}
        | {"width": 832, "height": 480, "steps": 20, "guidance": 5, "before_training": True},
    },
    "musubi_tuner/kontext.toml": {
        "model": {
            "family": "flux1_kontext",
            "source": "/models/flux1-kontext-dev.safetensors",
            # T5 is its first text encoder, and CLIP ours
            "files": {
                "text_encoder": "/models/clip_l.safetensors",
                "text_encoder_2": "/models/t5xxl_fp16.safetensors",
                "vae": "/models/ae.safetensors",
            },
        },
        "adapter": {"rank": 16, "alpha": 1, "dropout": 0.05, "targets": "attention_mlp"},
        "datasets": [{"control_folders": ("/data/paint/sketches",), "caption_extension": "caption"}],
        "train": {"steps": 900, "batch_size": 2, "timestep_type": "shift", "max_grad_norm": 0.7}
        | {"weight_decay": 0.02, "beta1": 0.9, "beta2": 0.98},
        "save": {"every": 300},
    },
    "musubi_tuner/qwen_edit.toml": {
        "name": "change of coats",
        "train": {"steps": 1200, "warmup_steps": 60, "optimizer": "prodigy", "gradient_accumulation": 2}
        | {"timestep_min": 0.1, "timestep_max": 0.9, "timestep_type": "shift", "lr_scheduler": "cosine"},
        "datasets": [{"resolutions": (1328,), "weight": 3}, {"resolutions": (768,), "control_folders": ()}],
        "memory": {"compile": True},
        "save": {"dtype": "bfloat16"},
    },
    "musubi_tuner/z_image_lokr.toml": {
        "adapter": {"type": "lokr", "rank": 1024, "alpha": 1, "factor": 8},
        "model": {"dtype": "bfloat16", "vae_dtype": "float32", "text_encoder_quantization": "float8"},
        "train": {"timestep_type": "sigmoid", "optimizer": "adamw", "weight_decay": 0.01, "steps": 500},
    },
    "musubi_tuner/hunyuan_data.toml": {
        "datasets": [
            {"frames": (13, 25), "clip_part": "uniform", "resolutions": (588,)},
            {"frames": (33,), "clip_part": "random"},
            {"weight": 2, "folder": "/data/kites/stills"},
        ],
        "train": {"batch_size": 4},
    },
    "diffusion_pipe/flux.toml": {
        "name": "velvet_moth",
        "model": {"family": "flux1", "source": "/models/FLUX.1-dev", "dtype": "bfloat16", "quantization": "float8"},
        "adapter": {"rank": 32, "alpha": None, "targets": "all"},
        "datasets": [{"resolutions": (512, 768), "weight": 5, "shuffle_tags": True, "trigger": "moth"}],
        "train": {"batch_size": 2, "gradient_accumulation": 2, "max_grad_norm": 0.8, "warmup_steps": 5}
        | {"beta2": 0.99, "weight_decay": 0.02, "epsilon": 1e-8, "timestep_type": "shift"},
    },
    "diffusion_pipe/sdxl.toml": {
        "model": {"family": "sdxl", "source": "/models/sd_xl_base_1.0.safetensors"},
        "adapter": {"text_encoders": True, "dropout": 0.05},
        "train": {"steps": 700, "batch_size": 1, "learning_rate": 4e-5, "text_encoder_lr": 2e-5, "min_snr_gamma": 5}
        | {"optimizer": "adamw8bit", "lr_scheduler": "linear"},
        # a square as large as 1280 × 720
        "datasets": [
            {"mask_folder": "/data/xl_masks", "resolutions": (960,)},
            {"resolutions": (1024,), "weight": 2, "shuffle_tags": True},
        ],
    },
    "diffusion_pipe/wan_low_noise.toml": {
        "model": {"source": "/models/wan2.2_t2v_low_noise_14B_fp16.safetensors"}
        | {"files": {"text_encoder": "/models/umt5_xxl_fp16.safetensors"}},
        "train": {"timestep_min": 0, "timestep_max": 0.875, "timestep_type": "sigmoid", "steps": 3000},
        "datasets": [
            {"frames": (33, 65), "clip_part": "middle", "caption_dropout": 0.1, "dropped_caption": "blank"},
            {"weight": 3},
        ],
        # 400 pictures at 1 × 4 a step
        "save": {"every": 100},
    },
    "diffusion_pipe/kontext.toml": {
        "model": {"family": "flux1_kontext", "source": "/models/flux1-kontext-dev.safetensors"},
        "datasets": [
            {"weight": 2, "control_folders": ("/data/kontext/control",)},
            {"role": "validation", "folder": "/data/kontext/held_out"},
        ],
        "validation": {"every": 100},
        "train": {"optimizer": "prodigy", "learning_rate": 1, "loss_type": "smooth_l1", "huber_delta": 0.5}
        | {"timestep_type": "linear"},
    },
    "diffusion_pipe/lokr.toml": {
        "name": "lokr runs",
        "adapter": {"type": "lokr", "rank": 1024, "factor": 4},
        "train": {"learning_rate": 3e-5, "lr_scheduler": "constant", "timestep_type": "shift"},
        "datasets": [{"folder": "pictures"}],
    },
    "diffusion_pipe/z_image.toml": {
        "model": {
            "files": {
                "vae": "/models/flux_vae.safetensors",
                "text_encoder": "/models/qwen_3_4b.safetensors",
                "training_adapter": "/models/turbo_training_adapter.safetensors",
            }
        },
        "adapter": {"warm_start": "/runs/z/epoch5"},
        "memory": {"compile": True},
    },
    "diffusion_pipe/hunyuan15_many_encoders.toml": {
        "datasets": [{"frames": (33,), "resolutions": (822, 960), "weight": 10}],
        # cosine ends at 1e-6 there
        "train": {"lr_scheduler": "cosine", "lr_final_share": pytest.approx(0.01), "timestep_type": "shift"},
    },
    "diffusion_pipe/ltx_first_frame.toml": {
        "model": {"source": "/models/ltx-video-2b-v0.9.1.safetensors"},
        "datasets": [{"frames": (49,), "first_frame": True}],
    },
    "diffusion_pipe/qwen_folder.toml": {
        "adapter": {"rank": 64},
        "train": {"optimizer": "SGD", "optimizer_options": {"momentum": 0.9}, "learning_rate": 0.1},
    },
    "diffusion_pipe/full_finetune.toml": {
        "model": {
            "files": {"vae": "/models/wan_2.1_vae.safetensors", "text_encoder": "/models/oldt5_xxl_fp16.safetensors"}
        },
        "train": {"steps": 50, "optimizer": "adamw8bit"},
    },
}


def test_each_configuration_is_expected_something_of() -> None:
    assert EXPECTED.keys() == {str(path.relative_to(FOLDER).as_posix()) for path in MAIN}


@pytest.fixture(scope="module")
def imported() -> dict[str, Imported]:
    return {str(path.relative_to(FOLDER).as_posix()): import_config(path) for path in MAIN}


@pytest.mark.parametrize("name", EXPECTED)
def test_its_job_says_the_same(name: str, imported: dict[str, Imported]) -> None:
    assert found_in(imported[name].job, EXPECTED[name]) == EXPECTED[name]


def found_in(job: JobConfig, expected: dict[str, Any]) -> dict[str, Any]:
    """What a job has where something is expected."""
    found: dict[str, Any] = {}
    for name, value in expected.items():
        given = getattr(job, name)
        if name == "datasets":
            assert len(given) == len(value)
            found[name] = [{key: getattr(one, key) for key in want} for one, want in zip(given, value, strict=True)]
        elif isinstance(value, dict):
            found[name] = {key: getattr(given, key) for key in value}
        else:
            found[name] = given
    return found


@pytest.mark.parametrize(
    ("name", "steps", "save"),
    # 4 pictures: 6 epochs of 4 · 3 in batches of 2; 10 epochs of 4 · 5 in batches of 2 · 2
    [("sd_scripts/flux.toml", 36, 12), ("diffusion_pipe/flux.toml", 50, 10)],
)
def test_epochs_are_steps_where_the_pictures_are_there(
    name: str, steps: int, save: int, tmp_path: Path, pictures: Path
) -> None:
    file = FOLDER / name
    for path in (file, file.with_suffix(".data.toml")):
        shutil.copy(path, tmp_path)
    shutil.copytree(pictures, tmp_path / "pictures")
    job = import_config(tmp_path / file.name).job
    assert (job.train.steps, job.save.every) == (steps, save)


def test_epochs_of_unknown_pictures_are_told(imported: dict[str, Imported]) -> None:
    made = imported["sd_scripts/flux.toml"]
    told = {note.key: note for note in made.notes if note.kind == "missing"}
    assert "6 epochs" in told["flux.toml: max_train_epochs"].text
    assert made.job.train.steps == JobConfig(name="x", datasets=made.job.datasets).train.steps
