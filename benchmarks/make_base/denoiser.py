"""Stage `denoiser`: transformer and text encoders, trained together."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer_core.embedded.judge import load_judge
from trainer_core.embedded.shapes import Scene, random_scene, training_caption
from trainer_core.families.flux1.model import pack, position_ids, unpack

from .common import DEVICE, LATENT_SCALE, LATENT_SHIFT, TOKENS, Clock, pictures, save, to_pixels
from .tokenizer import tokenizer_of


def text_models(vocabulary: int) -> tuple[nn.Module, nn.Module]:
    """An untrained CLIP text model (pooled output) and T5 encoder (token embeddings), both 64 wide."""
    from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

    clip = CLIPTextConfig(
        vocab_size=vocabulary,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=TOKENS,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=1,
    )
    t5 = T5Config(
        vocab_size=vocabulary,
        d_model=64,
        d_kv=16,
        d_ff=192,
        num_layers=3,
        num_heads=4,
        dropout_rate=0.0,
        pad_token_id=0,
        eos_token_id=1,
    )
    return CLIPTextModel(clip), T5EncoderModel(t5)


def untrained_transformer() -> Any:
    """FLUX.1's architecture at its smallest: one head of 128, two double and four single blocks, no guidance input."""
    from diffusers import FluxTransformer2DModel

    return FluxTransformer2DModel(
        patch_size=1,
        in_channels=64,
        num_layers=2,
        num_single_layers=4,
        attention_head_dim=128,
        num_attention_heads=1,
        joint_attention_dim=64,
        pooled_projection_dim=64,
        guidance_embeds=False,
        axes_dims_rope=(16, 56, 56),
    )


class Painter(nn.Module):
    """Text encoders and transformer as one module, for training them together."""

    def __init__(self, clip: nn.Module, t5: nn.Module, transformer: nn.Module) -> None:
        super().__init__()
        self.clip, self.t5, self.transformer = clip, t5, transformer
        self.register_buffer("image_ids", position_ids(4, 4, torch.device("cpu")))
        self.register_buffer("text_ids", torch.zeros(TOKENS, 3))

    def forward(self, packed: Tensor, t: Tensor, tokens: Tensor) -> Tensor:
        """Velocity for packed latents (N, 16, 64) at t in [0, 1] and captions (N, TOKENS) of token ids."""
        return self.transformer(
            hidden_states=packed,
            encoder_hidden_states=self.t5(input_ids=tokens).last_hidden_state,
            pooled_projections=self.clip(input_ids=tokens).pooler_output,
            timestep=t,
            img_ids=self.image_ids,
            txt_ids=self.text_ids,
            return_dict=False,
        )[0]


@torch.no_grad()
def paint(painter: nn.Module, vae: Any, tokens: Tensor, seed: int, steps: int = 16) -> Tensor:
    """Draws captions with Euler steps on the shift-3 schedule; pictures (N, 3, 64, 64) in [-1, 1]."""
    x = torch.randn(len(tokens), 16, 64, generator=torch.Generator().manual_seed(seed)).to(tokens.device)
    u = torch.linspace(1, 0, steps + 1)
    sigmas = 3 * u / (1 + 2 * u)
    for here, there in pairwise(sigmas):
        x = x + (there - here) * painter(x, here.expand(len(x)).to(x.device), tokens)
    return vae.decode(unpack(x, 8, 8) / LATENT_SCALE + LATENT_SHIFT).sample.clamp(-1, 1)


def build_denoiser(out: Path, steps: int = 11000, batch: int = 64, pictures_drawn: int = 24000) -> None:
    """Trains transformer and text encoders together by flow matching, timesteps pushed towards high noise.

    With logit-normal timesteps a model of this size learns colours and no shapes: at 64 px a picture's layout is
    decided at high noise. Hence t = 3u / (1 + 2u), the same shift that sampling uses.
    """
    from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler

    torch.manual_seed(3)
    rng = random.Random(3)
    clock = Clock("denoiser")
    write_index(out)
    tokenizer = tokenizer_of(out)
    vae = AutoencoderKL.from_pretrained(out / "vae", torch_dtype=torch.float32).to(DEVICE).requires_grad_(False)
    scheduler: Any = FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.save_pretrained(out / "scheduler")

    def tokens_of(captions: list[str]) -> Tensor:
        return torch.tensor(
            tokenizer(captions, padding="max_length", max_length=TOKENS, truncation=True).input_ids, device=DEVICE
        )

    scenes: list[Scene] = []
    while len(scenes) < pictures_drawn:
        scene = random_scene(rng)
        if not scene.held_out:
            scenes.append(scene)
    means, spreads = [], []
    with torch.no_grad():
        for start in range(0, len(scenes), 100):
            posterior = vae.encode(to_pixels(pictures(scenes[start : start + 100], rng)).to(DEVICE)).latent_dist
            means.append(pack((posterior.mean - LATENT_SHIFT) * LATENT_SCALE))
            spreads.append(pack(posterior.std * LATENT_SCALE))
    mean, spread = torch.cat(means), torch.cat(spreads)
    tokens = torch.stack([tokens_of([training_caption(s, rng) for s in scenes]) for _ in range(6)])
    clock(drawn=len(scenes), latent_std=f"{mean.std().item():.3f}", latent_mean=f"{mean.mean().item():.3f}")

    painter = Painter(*text_models(len(tokenizer)), untrained_transformer()).to(DEVICE)
    average = torch.optim.swa_utils.AveragedModel(
        painter, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.999)
    )
    clock(parameters=f"{sum(p.numel() for p in painter.parameters()) / 1e6:.2f}M")
    optimizer = torch.optim.AdamW(painter.parameters(), lr=1.5e-3, weight_decay=0.01, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1.5e-3, total_steps=steps, pct_start=0.05)
    compiled = torch.compile(painter)  # a fifth faster on a CPU
    running = 1.0
    for step in range(1, steps + 1):
        chosen = torch.randint(0, len(scenes), (batch,), device=DEVICE)
        clean = mean[chosen] + spread[chosen] * torch.randn_like(mean[chosen])
        noise = torch.randn_like(clean)
        u = torch.rand(batch, device=DEVICE)
        t = 3 * u / (1 + 2 * u)
        noisy = clean + t[:, None, None] * (noise - clean)
        predicted = compiled(noisy, t, tokens[torch.randint(0, len(tokens), (batch,), device=DEVICE), chosen])
        loss = F.mse_loss(predicted, noise - clean)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(painter.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        average.update_parameters(painter)
        running = 0.99 * running + 0.01 * loss.item()
        if step % 200 == 0:
            clock(step=step, loss=f"{running:.4f}")
        if step % 1000 == 0 or step == steps:
            trained: Any = average.module
            for name in ("transformer", "text_encoder", "text_encoder_2"):
                part = {"transformer": trained.transformer, "text_encoder": trained.clip, "text_encoder_2": trained.t5}
                save(part[name], out / name)
            clock(step=step, right=agreement(trained, vae, tokens_of, out))


def write_index(out: Path) -> None:
    """Writes what makes the folder a diffusers pipeline, and how to train on it and sample from it."""
    index = {
        "_class_name": "FluxPipeline",
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "text_encoder_2": ["transformers", "T5EncoderModel"],
        "tokenizer": ["transformers", "PreTrainedTokenizerFast"],
        "tokenizer_2": ["transformers", "PreTrainedTokenizerFast"],
        "transformer": ["diffusers", "FluxTransformer2DModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    (out / "model_index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    profile = {"timestep_type": "shift", "sampling": {"width": 64, "height": 64, "steps": 16, "guidance": 4.0}}
    (out / "foundry.json").write_text(json.dumps(profile, indent=2) + "\n", encoding="utf-8")


def agreement(
    painter: nn.Module, vae: Any, tokens_of: Callable[[list[str]], Tensor], out: Path, count: int = 140
) -> dict[str, float]:
    """Share of held-out captions on which the judge agrees: in shape, colour, background, and in all three."""
    rng = random.Random(4)
    scenes: list[Scene] = []
    while len(scenes) < count:
        scene = random_scene(rng)
        if scene.held_out:
            scenes.append(scene)
    verdicts = load_judge(out / "judge.safetensors").verdicts(
        paint(painter, vae, tokens_of([scene.caption() for scene in scenes]), seed=5)
    )
    pairs = list(zip(scenes, verdicts, strict=True))
    right = {
        name: sum(getattr(s, name) == getattr(v, name) for s, v in pairs) / count
        for name in ("shape", "colour", "background")
    }
    right["all"] = sum((s.shape, s.colour, s.background) == (v.shape, v.colour, v.background) for s, v in pairs) / count
    return {name: round(value, 3) for name, value in right.items()}
