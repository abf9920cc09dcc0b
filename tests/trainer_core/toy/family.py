"""A family that nothing outside this folder knows: all that the contract allows and the real families do not need.

Two streams of different rank, texts of unequal length, text encoders that look at a control image, two experts, and a
denoiser whose layers are no nn.Linear. Everything is computed from seeds; there are no files.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from trainer_core.config import ModelConfig
from trainer_core.families.base import Base
from trainer_core.families.conditioning import MAIN, Conditioning, Stream, Streams, TextEmbedding
from trainer_core.families.names import Place
from trainer_core.families.sources.source import Source
from trainer_core.families.spec import Expert, FamilySpec, Part, SamplingDefaults
from trainer_core.objective.flow import FlowSchedule

AUDIO = "audio"
WIDTH = 16
SPEC = FamilySpec(
    name="toy",
    title="Toy",
    category="edit",
    default_repo="nobody/toy",
    gated=False,
    vram_gb="none",
    streams=(Stream(MAIN, channels=4, factor=8), Stream(AUDIO, channels=2, factor=8, weight=0.5)),
    bucket_divisor=16,
    default_timestep_type="linear",
    sampling=SamplingDefaults(width=64, height=64, steps=4, guidance=2.0),
    parts=(Part("high", "denoiser", "toy.Denoiser"), Part("low", "denoiser", "toy.Denoiser")),
    targets=dict.fromkeys(("attention", "attention_mlp", "all"), (r"blocks\.\d+\.(q|k|v|out|up|down)",)),
    experts=(Expert("high_noise", 0.6, 1.0), Expert("low_noise", 0.0, 0.6)),
    max_controls=1,
    text_sees_controls=True,
)


class PackedLinear(nn.Module):
    """A linear layer that keeps its weight (out, in) as 4-bit numbers, two in a byte, with a scale for each row."""

    def __init__(self, inputs: int, outputs: int, source: torch.Generator) -> None:
        super().__init__()
        self.in_features, self.out_features = inputs, outputs
        levels = torch.randint(0, 16, (outputs, inputs), generator=source, dtype=torch.uint8)
        self.register_buffer("packed", levels[:, ::2] * 16 + levels[:, 1::2])
        self.register_buffer("row_scale", torch.rand(outputs, 1, generator=source) * 0.2 / math.sqrt(inputs) + 0.01)

    def dequantize(self) -> Tensor:
        """(out, in), fp32"""
        packed: Any = self.packed
        levels = torch.stack([packed // 16, packed % 16], dim=-1).flatten(1)
        return (levels.float() - 7.5) * self.row_scale  # type: ignore[operator]

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.dequantize().to(x.dtype))


class Block(nn.Module):
    """Attention over all tokens that are there, and a feed-forward layer."""

    def __init__(self, source: torch.Generator) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = (PackedLinear(WIDTH, WIDTH, source) for _ in range(4))
        self.up, self.down = PackedLinear(WIDTH, 2 * WIDTH, source), PackedLinear(2 * WIDTH, WIDTH, source)

    def forward(self, x: Tensor, there: Tensor) -> Tensor:
        mixed = functional.scaled_dot_product_attention(
            self.q(x)[:, None], self.k(x)[:, None], self.v(x)[:, None], attn_mask=there[:, None, None, :]
        )[:, 0]
        x = x + self.out(mixed)
        return x + self.down(functional.gelu(self.up(x)))


class Denoiser(nn.Module):
    """Tokens of both streams, of the control image and of the text, all in one row."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        source = torch.Generator().manual_seed(seed)
        self.enter = nn.ModuleDict({name: PackedLinear(size, WIDTH, source) for name, size in ((MAIN, 4), (AUDIO, 2))})
        self.leave = nn.ModuleDict({name: PackedLinear(WIDTH, size, source) for name, size in ((MAIN, 4), (AUDIO, 2))})
        self.blocks = nn.ModuleList(Block(source) for _ in range(2))

    def forward(
        self, streams: Streams, t: Tensor, text: Tensor, text_there: Tensor, controls: Sequence[Tensor]
    ) -> Streams:
        rows = {name: value.flatten(2).transpose(1, 2) for name, value in streams.items()}
        time = torch.sin(t[:, None] * torch.arange(1, WIDTH + 1, device=t.device))[:, None]
        parts = [self.enter[name](row) + time for name, row in rows.items()]
        seen = [self.enter[MAIN](one.flatten(2).transpose(1, 2)) for one in controls]
        x = torch.cat([*parts, *seen, text], dim=1)
        there = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
        there[:, -text.shape[1] :] = text_there
        for block in self.blocks:
            x = block(x, there)
        out, start = {}, 0
        for name, row in rows.items():
            flat = self.leave[name](x[:, start : start + row.shape[1]]).transpose(1, 2)
            out[name], start = flat.reshape(streams[name].shape), start + row.shape[1]
        return out


@dataclass(frozen=True)
class Batch:
    """What `collate` gives."""

    text: Tensor
    """(N, longest, WIDTH), padded with zeros"""
    there: Tensor
    """(N, longest): whether a token is one"""
    controls: tuple[Tensor, ...]


class Toy(Base):
    """One opened toy."""

    spec = SPEC

    @classmethod
    def open(cls, model: ModelConfig) -> Base:
        return cls(Source("toy", Path(), {}), model)

    def check_parts(self) -> None:
        """Nothing can be missing."""

    def settings(self) -> dict[str, Any]:
        return {}

    def denoiser_fingerprint(self) -> str:
        return "toy"

    @property
    def schedule(self) -> FlowSchedule:
        return FlowSchedule()

    @property
    def guidance_distilled(self) -> bool:
        return False

    def tokens(self, shape: Sequence[int]) -> int:
        return math.prod(shape[1:])

    def latent_shapes(self, width: int, height: int) -> dict[str, tuple[int, ...]]:
        return {MAIN: (4, height // 8, width // 8), AUDIO: (2, width // 8)}

    def lora_place(self, path: str) -> Place:
        return Place(path)

    # text

    def load_text_encoders(self) -> None:
        """It is a hash."""

    def free_text_encoders(self) -> None:
        """See above."""

    def text_fingerprint(self) -> str:
        return "toy words:"

    def embed(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        raise NotImplementedError("the toy's text encoder is not trained")

    def encode_prompts(self, prompts: Sequence[str], pictures: Sequence[Sequence[Tensor]] = ()) -> list[TextEmbedding]:
        """A token for each word, and one for each picture: (L, WIDTH). Nothing is padded."""
        found = []
        for number, prompt in enumerate(prompts):
            seen = pictures[number] if pictures else ()
            tokens = [_token(word) for word in prompt.split() or ["(nothing)"]]
            tokens += [_token("picture") * float(picture.mean()) for picture in seen]
            found.append({"tokens": torch.stack(tokens)})
        return found

    def collate(self, samples: Sequence[Conditioning], guidance: Tensor | float | None = None) -> Batch:
        texts = [one.text["tokens"] for one in samples if one.text is not None]
        assert len(texts) == len(samples)
        there = [torch.ones(len(text), dtype=torch.bool) for text in texts]
        pad = torch.nn.utils.rnn.pad_sequence
        controls = tuple(torch.stack(group) for group in zip(*(one.controls for one in samples), strict=True))
        return Batch(pad(texts, batch_first=True), pad(there, batch_first=True), controls)

    # pixels and sound

    def load_vae(self) -> None:
        """It is an average."""

    def free_vae(self) -> None:
        """See above."""

    def pixel_fingerprint(self) -> str:
        return "toy averages:"

    def encode_pixels(self, pixels: Tensor) -> tuple[Streams, Streams]:
        small = functional.avg_pool2d(pixels.float(), 8)
        main = torch.cat([small, small.mean(1, keepdim=True)], dim=1)
        mean = {MAIN: main, AUDIO: small[:, :2].mean(2)}
        return mean, {name: torch.full_like(value, 0.1) for name, value in mean.items()}

    def decode_latents(self, latents: Streams) -> Tensor:
        return functional.interpolate(latents[MAIN][:, :3], scale_factor=8).clamp(-1, 1)

    # the denoisers

    def load_denoiser(self, expert: str = "") -> nn.Module:
        return Denoiser({"high_noise": 1, "low_noise": 2}[expert]).requires_grad_(False).eval()

    def predict(self, denoiser: nn.Module, noisy: Streams, t: Tensor, conditioning: Batch) -> Streams:
        found: Streams = denoiser(noisy, t, conditioning.text, conditioning.there, conditioning.controls)
        return found


class Provider:
    """Offers the toy."""

    def names(self) -> Sequence[str]:
        return ["toy"]

    def family(self, name: str) -> type[Base] | None:
        return Toy if name == "toy" else None


def _token(word: str) -> Tensor:
    seed = int.from_bytes(hashlib.sha256(word.encode()).digest()[:4], "little")
    return torch.randn(WIDTH, generator=torch.Generator().manual_seed(seed))
