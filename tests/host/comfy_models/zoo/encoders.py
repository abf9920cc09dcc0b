"""CLIP, VAE and sound VAE of a model: ComfyUI's own classes, around encoders that are next to nothing.

All that ComfyUI does with such objects is real (tokens with pictures among them, schedules, patchers, cropping,
batches, devices); only the networks are not: text becomes noise that depends on the words, pixels become the mean of
each patch.
"""

from __future__ import annotations

import math
import zlib
from types import SimpleNamespace
from typing import Any

import comfy.model_patcher
import comfy.sd
import torch
from torch import Tensor, nn

from .record import Draw, Model

_PICTURE_TOKENS = 4
_SOUND_RATE = 25
"""Latents of sound in a second."""


def clip(model: Model) -> comfy.sd.CLIP:
    """The model's text encoder. Prompts of other words give other tensors; longer ones longer ones, unless the real
    encoder pads; pictures (`tokenize(text, images=[…])`) add tokens."""
    target = SimpleNamespace(params={"model": model}, clip=_TextEncoder, tokenizer=_Tokenizer)
    return comfy.sd.CLIP(target, parameters=64)


def vae(model: Model) -> comfy.sd.VAE:
    """The model's VAE for pixels: real channels and factors, in time too. Decoding gives each patch's mean."""
    made = comfy.sd.VAE(sd={"pixel_space_vae": torch.tensor(1.0)}, dtype=torch.float32)
    latents = model.found().latent_format
    channels, dimensions = model.latents[0][1], len(model.latents[0]) - 2
    factor, time = latents.spacial_downscale_ratio, latents.temporal_downscale_ratio
    made.latent_channels, made.latent_dim = channels, dimensions
    if dimensions == 3:
        made.downscale_ratio = (lambda frames: max(0, math.floor((frames + time - 1) / time)), factor, factor)
        made.upscale_ratio = (lambda frames: max(0, frames * time - time + 1), factor, factor)
        made.downscale_index_formula = made.upscale_index_formula = (time, factor, factor)
    else:
        made.downscale_ratio = made.upscale_ratio = factor
    return _with(made, _Patches(channels, factor, time))


def sound_vae(model: Model) -> comfy.sd.VAE:
    """The model's VAE for sound: stereo at 44100 Hz to (N, 8, 25 a second, 16), as LTX-2's."""
    made = comfy.sd.VAE(sd={"pixel_space_vae": torch.tensor(1.0)}, dtype=torch.float32)
    made.latent_channels, made.latent_dim, made.output_channels = model.latents[1][1], 2, 2
    made.pad_channel_value, made.crop_input, made.extra_1d_channel = "replicate", False, model.latents[1][3]
    made.process_input = made.process_output = lambda sound: sound
    made.memory_used_encode = made.memory_used_decode = lambda shape, dtype: 1
    return _with(made, _Sound(made.latent_channels, made.extra_1d_channel, made.audio_sample_rate))


def _with(made: comfy.sd.VAE, network: nn.Module) -> comfy.sd.VAE:
    made.first_stage_model = network.eval()
    made.patcher = comfy.model_patcher.CoreModelPatcher(network, made.device, made.patcher.offload_device)
    return made


class _Tokenizer:
    """A number for each word; a picture stands before the words, as it is."""

    def __init__(self, embedding_directory: Any = None, tokenizer_data: Any = None) -> None: ...

    def tokenize_with_weights(self, text: str, return_word_ids: bool = False, **options: Any) -> dict[str, Any]:
        pictures = [({"type": "image", "data": one}, 1.0) for one in options.get("images", [])]
        words = [(1 + zlib.crc32(word.encode()) % 9999, 1.0) for word in text.split()]
        tokens = [*pictures, *words, (0, 1.0)]
        return {"tiny": [[(*one, number) for number, one in enumerate(tokens)] if return_word_ids else tokens]}

    def state_dict(self) -> dict[str, Any]:
        return {}


class _TextEncoder(nn.Module):
    def __init__(self, model: Model, dtype: Any, device: Any, model_options: Any) -> None:
        super().__init__()
        self.dtypes = {dtype}
        width = model.text(Draw(0))["cross_attn"].shape[-1]
        self.scale = nn.Parameter(torch.ones(width, dtype=dtype, device=device), requires_grad=False)
        self._text = model.text

    def set_clip_options(self, options: dict[str, Any]) -> None: ...

    def reset_clip_options(self) -> None: ...

    def encode_token_weights(self, tokens: dict[str, Any]) -> tuple[Tensor, Tensor | None, dict[str, Any]]:
        (batch,) = tokens["tiny"]
        seed, length = 0, 3
        for token, *_ in batch:
            if isinstance(token, dict):
                seed = zlib.crc32(token["data"].float().cpu().contiguous().numpy().tobytes(), seed)
                length += _PICTURE_TOKENS
            else:
                seed = zlib.crc32(str(token).encode(), seed)
                length += 1
        found = self._text(Draw(seed, tokens=length))
        return found.pop("cross_attn") * self.scale.float(), found.pop("pooled_output", None), found

    def load_sd(self, state: dict[str, Tensor]) -> Any:
        return self.load_state_dict(state, strict=False)


class _Patches(nn.Module):
    """The mean colour of each patch, spread over the channels by a matrix whose columns are orthonormal."""

    def __init__(self, channels: int, factor: int, time: int) -> None:
        super().__init__()
        mix = torch.linalg.qr(Draw(channels)(channels, 3))[0] if channels > 3 else torch.eye(3)
        self.mix = nn.Parameter(mix * max(1, channels // 3) ** 0.5, requires_grad=False)
        self._factor, self._time = factor, time

    def encode(self, pixels: Tensor) -> Tensor:
        """(N, 3, H, W) or (N, 3, T, H, W), T = n * time factor + 1, in [-1, 1]."""
        if pixels.dim() == 5:
            first, rest = pixels[:, :, :1], pixels[:, :, 1:]
            rest = rest[:, :, : rest.shape[2] // self._time * self._time]
            rest = rest.unflatten(2, (-1, self._time)).mean(3)
            pixels = torch.cat([first, rest], 2)
        small = pixels.unflatten(-1, (-1, self._factor)).mean(-1).unflatten(-2, (-1, self._factor)).mean(-2)
        return torch.einsum("cp,np...->nc...", self.mix, small)

    def decode(self, latents: Tensor) -> Tensor:
        scale = self.mix.square().sum(0)[:, None]
        small = torch.einsum("pc,nc...->np...", self.mix.T / scale, latents)
        pixels = small.repeat_interleave(self._factor, -1).repeat_interleave(self._factor, -2)
        if pixels.dim() == 5:
            pixels = torch.cat([pixels[:, :, :1], pixels[:, :, 1:].repeat_interleave(self._time, 2)], 2)
        return pixels


class _Sound(nn.Module):
    """Short means of both channels, in the order that they have in time."""

    def __init__(self, latent_channels: int, bins: int, rate: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(()), requires_grad=False)
        self.latent_channels, self.latent_frequency_bins, self.output_sample_rate = latent_channels, bins, rate
        self._parts, self._hop = latent_channels * bins // 2, rate // _SOUND_RATE

    def num_of_latents_from_frames(self, frames_number: int, frame_rate: float) -> int:
        return math.ceil(frames_number / frame_rate * _SOUND_RATE)

    def encode(self, sound: Tensor) -> Tensor:
        """(N, 2, samples) to (N, channels, latents, bins)."""
        sound = nn.functional.pad(sound, (0, -sound.shape[-1] % self._hop))
        means = nn.functional.adaptive_avg_pool1d(sound, sound.shape[-1] // self._hop * self._parts)
        packed = means.unflatten(-1, (-1, self._parts)).permute(0, 2, 1, 3).flatten(2)
        return packed.unflatten(-1, (self.latent_channels, -1)).movedim(2, 1) * self.gain

    def decode(self, latents: Tensor) -> Tensor:
        means = (latents / self.gain).movedim(1, 2).flatten(2).unflatten(-1, (2, -1)).permute(0, 2, 1, 3).flatten(2)
        return nn.functional.interpolate(means, size=latents.shape[2] * self._hop)
