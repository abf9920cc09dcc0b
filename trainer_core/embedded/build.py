"""Builds the embedded base from nothing: `python -m trainer_core.embedded.build [--out DIR] [--steps N] [STAGE …]`.

Stages, each seeded and each reading what the earlier ones wrote: `tokenizer`, `vae`, `judge`, `denoiser`, `check`.
The result is a diffusers folder (FluxPipeline's layout) in fp16 plus `judge.safetensors`. README.md beside this file
says how the shipped weights came to be. On two CPU cores the whole takes about an hour and a half; a GPU is used if
there is one.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .judge import CLASSES, COLOUR_NAMES, Judge, load_judge
from .shapes import CONCEPT, SCRIBBLE, SHAPES, WORDS, Scene, draw, random_scene, training_caption

TOKENS = 16
"""Length of a caption in tokens, padding included."""
LATENT_SHIFT, LATENT_SCALE = 0.1159, 0.3611
"""FLUX.1's own constants: the VAE is trained towards them, so that ComfyUI's FLUX latent format fits unchanged."""
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


# --- data ------------------------------------------------------------------------------------------------------------


def pictures(scenes: list[Scene], rng: random.Random) -> Tensor:
    """Draws scenes to (N, 3, 64, 64) uint8."""
    return torch.from_numpy(np.stack([np.asarray(draw(scene, rng)) for scene in scenes])).permute(0, 3, 1, 2)


def to_pixels(images: Tensor) -> Tensor:
    """uint8 → float in [-1, 1]."""
    return images.float() / 127.5 - 1


def save(module: Any, folder: Path) -> None:
    """Writes a diffusers or transformers model as fp16 safetensors."""
    module.half().save_pretrained(folder, safe_serialization=True)
    module.float()


class Clock:
    """Prints a line of progress with the seconds since the start."""

    def __init__(self, stage: str) -> None:
        self.stage, self.start = stage, time.monotonic()

    def __call__(self, **values: object) -> None:
        shown = " ".join(f"{key}={value}" for key, value in values.items())
        print(f"[{self.stage} {time.monotonic() - self.start:6.0f}s] {shown}", flush=True)


# --- tokenizer -------------------------------------------------------------------------------------------------------


def build_tokenizer(out: Path) -> None:
    """WordPiece over the world's words, consonant-vowel syllables and letters; the same file for CLIP and for T5."""
    from tokenizers import Tokenizer, normalizers, pre_tokenizers, processors
    from tokenizers.models import WordPiece
    from transformers import PreTrainedTokenizerFast

    letters = "abcdefghijklmnopqrstuvwxyz"
    syllables = [c + v for c in letters if c not in "aeiou" for v in "aeiou"]
    pieces = [*letters, *"0123456789", *"-_.,", *syllables]
    vocabulary = ["<pad>", "</s>", "<unk>", *WORDS]
    vocabulary += [word for word in [*pieces, *("##" + piece for piece in pieces)] if word not in vocabulary]
    tokenizer = Tokenizer(
        WordPiece({word: k for k, word in enumerate(vocabulary)}, unk_token="<unk>", max_input_chars_per_word=100)
    )
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=TOKENS,
        padding_side="right",
    )
    for folder in ("tokenizer", "tokenizer_2"):
        fast.save_pretrained(out / folder)


def tokenizer_of(out: Path) -> Any:
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast.from_pretrained(out / "tokenizer_2")


# --- VAE -------------------------------------------------------------------------------------------------------------


def build_vae(out: Path, steps: int = 3500, batch: int = 16) -> None:
    """A KL autoencoder, 8x smaller with 16 channels as FLUX.1's, on drawn shapes and random polygons.

    Two rounds of `steps`: a stronger KL term first, which settles the latents near FLUX.1's scale and leaves about half
    of the channels unused, then a weak one, which lets edges and corners become sharp.
    """
    from diffusers import AutoencoderKL

    torch.manual_seed(1)
    rng = random.Random(1)
    vae: Any = AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(16, 32, 48, 64),
        layers_per_block=1,
        latent_channels=16,
        norm_num_groups=8,
        sample_size=64,
        mid_block_add_attention=False,
        use_quant_conv=False,
        use_post_quant_conv=False,
        shift_factor=LATENT_SHIFT,
        scaling_factor=LATENT_SCALE,
    )
    vae = vae.to(DEVICE)
    kinds = [*SHAPES, SCRIBBLE, SCRIBBLE]
    images = pictures([random_scene(rng, rng.choice(kinds)) for _ in range(16000)], rng)
    clock = Clock("vae")
    clock(parameters=f"{sum(p.numel() for p in vae.parameters()) / 1e6:.2f}M", drawn=len(images))
    for kl_weight in (1e-5, 1e-6):
        _train_vae(vae, images, steps, batch, kl_weight, clock)
        save(vae, out / "vae")


def _train_vae(vae: Any, images: Tensor, steps: int, batch: int, kl_weight: float, clock: Clock) -> None:
    optimizer = torch.optim.AdamW(vae.parameters(), lr=2e-3, weight_decay=1e-4, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps, pct_start=0.1)
    for step in range(steps):
        pixels = to_pixels(images[torch.randint(0, len(images), (batch,))]).to(DEVICE)
        posterior = vae.encode(pixels).latent_dist
        # KL to N(shift, 1/scale²): latents come out with the mean and the spread that FLUX.1's constants expect
        mean, logvar = (posterior.mean - LATENT_SHIFT) * LATENT_SCALE, posterior.logvar + 2 * np.log(LATENT_SCALE)
        kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).sum((1, 2, 3)).mean()
        error = vae.decode(posterior.sample()).sample - pixels
        loss = error.square().mean() + 0.5 * error.abs().mean() + kl_weight * kl
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 0 or step == steps - 1:
            clock(kl_weight=kl_weight, step=step, mse=f"{error.square().mean().item():.5f}", kl=f"{kl.item():.0f}")


# --- judge -----------------------------------------------------------------------------------------------------------


def build_judge(out: Path, steps: int = 2500, batch: int = 64) -> None:
    """Trains the judge on drawn pictures, blurred, noised and shifted in brightness, and prints its accuracy."""
    from safetensors.torch import save_file

    torch.manual_seed(2)
    rng = random.Random(2)

    def drawn(count: int) -> tuple[Tensor, Tensor]:
        scenes = [random_scene(rng, rng.choice([*SHAPES, CONCEPT, CONCEPT, SCRIBBLE, SCRIBBLE])) for _ in range(count)]
        labels = [
            (
                CLASSES.index(s.shape if s.shape in CLASSES else "other"),
                COLOUR_NAMES.index(s.colour),
                COLOUR_NAMES.index(s.background),
            )
            for s in scenes
        ]
        return pictures(scenes, rng), torch.tensor(labels)

    judge = Judge()
    images, labels = drawn(16000)
    held_out, held_out_labels = drawn(2000)
    optimizer = torch.optim.AdamW(judge.parameters(), lr=2e-3, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps, pct_start=0.1)
    clock = Clock("judge")
    other = CLASSES.index("other")
    for step in range(steps):
        chosen = torch.randint(0, len(images), (batch,))
        pixels, target = to_pixels(images[chosen]), labels[chosen].clone()
        # two different shapes laid over each other are "other": a judge must not round half a star up to a star
        quarter = batch // 8
        pixels[:quarter] = 0.5 * (pixels[:quarter] + pixels[quarter : 2 * quarter])
        mixed = target[:quarter, 0] != target[quarter : 2 * quarter, 0]
        target[:quarter, 0] = torch.where(mixed, torch.tensor(other), target[:quarter, 0])
        if step % 2:
            pixels = F.avg_pool2d(pixels, 3, 1, 1, count_include_pad=False)
        pixels = pixels + 0.05 * torch.randn_like(pixels) + 0.05 * torch.randn(len(pixels), 3, 1, 1)
        shape, colour, background = judge(pixels)
        loss = F.cross_entropy(shape, target[:, 0])
        loss = loss + F.cross_entropy(colour[quarter:], target[quarter:, 1])
        loss = loss + F.cross_entropy(background[quarter:], target[quarter:, 2])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 500 == 499:
            with torch.no_grad():
                heads = judge(to_pixels(held_out))
            right = [(head.argmax(1) == held_out_labels[:, k]).float().mean().item() for k, head in enumerate(heads)]
            clock(step=step + 1, loss=f"{loss.item():.3f}", right=[round(value, 4) for value in right])
    save_file({key: value.half().contiguous() for key, value in judge.state_dict().items()}, out / "judge.safetensors")


# --- denoiser and text encoders --------------------------------------------------------------------------------------


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
        rows, columns = torch.meshgrid(torch.arange(4.0), torch.arange(4.0), indexing="ij")
        self.register_buffer("image_ids", torch.stack([torch.zeros(4, 4), rows, columns], -1).view(16, 3))
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


def pack(latents: Tensor) -> Tensor:
    """(N, 16, 8, 8) → (N, 16 tokens, 64), FLUX.1's order: channel, row, column of each 2x2 patch."""
    n = len(latents)
    return latents.view(n, 16, 4, 2, 4, 2).permute(0, 2, 4, 1, 3, 5).reshape(n, 16, 64)


def unpack(packed: Tensor) -> Tensor:
    """The inverse of `pack`."""
    n = len(packed)
    return packed.view(n, 4, 4, 16, 2, 2).permute(0, 3, 1, 4, 2, 5).reshape(n, 16, 8, 8)


@torch.no_grad()
def paint(painter: nn.Module, vae: Any, tokens: Tensor, seed: int, steps: int = 16) -> Tensor:
    """Draws captions with Euler steps on the shift-3 schedule; pictures (N, 3, 64, 64) in [-1, 1]."""
    x = torch.randn(len(tokens), 16, 64, generator=torch.Generator().manual_seed(seed)).to(tokens.device)
    u = torch.linspace(1, 0, steps + 1)
    sigmas = 3 * u / (1 + 2 * u)
    for here, there in pairwise(sigmas):
        x = x + (there - here) * painter(x, here.expand(len(x)).to(x.device), tokens)
    return vae.decode(unpack(x) / LATENT_SCALE + LATENT_SHIFT).sample.clamp(-1, 1)


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
    profile = {"timestep_type": "shift", "sampling": {"width": 64, "height": 64, "steps": 16, "guidance": 1.0}}
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    stages = {"tokenizer": build_tokenizer, "vae": build_vae, "judge": build_judge, "denoiser": build_denoiser}
    parser.add_argument("stages", nargs="*", choices=[*stages, []], help="which stages to run; all when none is named")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "base")
    parser.add_argument("--steps", type=int, help="steps of the one stage named")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name in arguments.stages or stages:
        stages[name](arguments.out, **({"steps": arguments.steps} if arguments.steps else {}))


if __name__ == "__main__":
    main()
