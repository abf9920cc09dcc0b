"""diffusers' FLUX.1 blocks with functions that keep little for the backward pass (`parts.elementwise`).

A model's modules stay what they are, with their names and weights; only what they compute between their products is
done in another way. What is not FLUX.1's usual case is left to diffusers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from diffusers.models.activations import GELU
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.normalization import AdaLayerNormContinuous, AdaLayerNormZero, AdaLayerNormZeroSingle
from diffusers.models.transformers import transformer_flux as flux
from torch import Tensor, nn

from ..parts.attention import by_products, is_of_few
from ..parts.elementwise import gated, gelu, modulated, norm_rotated
from ..parts.linear import outputs

Rope = tuple[Tensor, Tensor]
"""Cosines and sines (T, D), each twice."""


def install(model: nn.Module) -> None:
    """Has a FluxTransformer2DModel's blocks compute so."""
    for module in model.modules():
        own = _OWN.get(type(module))
        if own is not None:
            module.__class__ = own
        if type(getattr(module, "processor", None)) is flux.FluxAttnProcessor:
            cast(Any, module).set_processor(Attention())
    blocks = cast(Any, model).single_transformer_blocks
    if len(blocks) and type(blocks[-1]) is Single:
        blocks[-1].is_last = True


class Attention(flux.FluxAttnProcessor):
    """Queries and keys are normed, rotated and put behind the text's in one go."""

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Any = None,
        attention_mask: Tensor | None = None,
        image_rotary_emb: Any = None,
    ) -> Any:
        if image_rotary_emb is None or encoder_hidden_states is None:
            return super().__call__(attn, hidden_states, encoder_hidden_states, attention_mask, image_rotary_emb)
        text = outputs((attn.add_q_proj, attn.add_k_proj, attn.add_v_proj), encoder_hidden_states)
        image = outputs((attn.to_q, attn.to_k, attn.to_v), hidden_states)
        norms = (attn.norm_added_q, attn.norm_added_k), (attn.norm_q, attn.norm_k)
        found = self.attended(attn, (text, image), norms, image_rotary_emb, attention_mask)
        sizes = [encoder_hidden_states.shape[1], hidden_states.shape[1]]
        of_text, of_image = (one.contiguous() for one in found.split_with_sizes(sizes, dim=1))
        return attn.to_out[1](attn.to_out[0](of_image)), attn.to_add_out(of_text)

    def attended(
        self,
        attn: Any,
        streams: Sequence[Sequence[Tensor]],
        norms: Sequence[tuple[Any, Any]],
        rope: Rope,
        mask: Tensor | None = None,
    ) -> Tensor:
        """What attention gives (N, T_q, H · D).

        Args:
            streams: queries (N, T_q, H · D), keys and values (N, T, H · D), of the text and then the picture or of both
                in one. Queries may be those of the last tokens alone.
            norms: of the queries and keys of each stream.
        """
        queries, keys, values = (
            [one.unflatten(-1, (-1, attn.head_dim)) for one in each] for each in zip(*streams, strict=True)
        )
        turns = torch.stack([one[:, ::2] for one in rope], -1)
        query, key = (
            norm_rotated(parts, [norm.weight for norm in own], own[0].eps, turns[-sum(one.shape[1] for one in parts) :])
            for parts, own in zip((queries, keys), zip(*norms, strict=True), strict=True)
        )
        value = values[0] if len(values) == 1 else torch.cat(values, dim=1)
        if mask is None and is_of_few(query, key):
            return by_products(query, key, value).flatten(2, 3)
        found = dispatch_attention_fn(
            query,
            key,
            value,
            attn_mask=mask,
            backend=self._attention_backend,
            parallel_config=self._parallel_config,
        )
        return found.flatten(2, 3).to(query.dtype)


class Double(flux.FluxTransformerBlock):
    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        temb: Tensor,
        image_rotary_emb: Rope | None = None,
        joint_attention_kwargs: dict[str, Any] | None = None,
    ) -> tuple[Tensor, Tensor]:
        if joint_attention_kwargs or hidden_states.dtype == torch.float16:
            return super().forward(hidden_states, encoder_hidden_states, temb, image_rotary_emb, joint_attention_kwargs)
        image, *of_image = self.norm1(hidden_states, emb=temb)
        text, *of_text = self.norm1_context(encoder_hidden_states, emb=temb)
        image, text = self.attn(image, text, image_rotary_emb=image_rotary_emb)
        streams = (
            (hidden_states, image, of_image, self.norm2, self.ff),
            (encoder_hidden_states, text, of_text, self.norm2_context, self.ff_context),
        )
        image, text = (_after_attention(*stream) for stream in streams)
        return text, image


def _after_attention(x: Tensor, attended: Tensor, modulation: list[Tensor], norm: Any, feed_forward: Any) -> Tensor:
    gate, shift, scale, last_gate = (one.unsqueeze(1) for one in modulation)
    x = gated(x, gate, attended)
    return gated(x, last_gate, feed_forward(modulated(x, scale, shift, norm.eps)))


class Single(flux.FluxSingleTransformerBlock):
    is_last = False
    """Whether nobody reads the text that it gives: then it is what it was given, and only keys and values see it."""

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        temb: Tensor,
        image_rotary_emb: Rope | None = None,
        joint_attention_kwargs: dict[str, Any] | None = None,
    ) -> tuple[Tensor, Tensor]:
        attn: Any = self.attn
        usual = image_rotary_emb is not None and isinstance(attn.processor, Attention)
        if joint_attention_kwargs or hidden_states.dtype == torch.float16 or not usual:
            return super().forward(hidden_states, encoder_hidden_states, temb, image_rotary_emb, joint_attention_kwargs)
        length = encoder_hidden_states.shape[1]
        x = _joined(encoder_hidden_states, hidden_states)
        normed, gate = self.norm(x, emb=temb)
        if self.is_last:
            inner, query = outputs((self.proj_mlp, attn.to_q), normed[:, length:])
            key, value = outputs((attn.to_k, attn.to_v), normed)
            x = hidden_states
        else:
            inner, query, key, value = outputs((self.proj_mlp, attn.to_q, attn.to_k, attn.to_v), normed)
        norms = [(attn.norm_q, attn.norm_k)]
        attended = attn.processor.attended(attn, [(query, key, value)], norms, image_rotary_emb)
        x = gated(x, gate.unsqueeze(1), self.proj_out(gelu(inner, attended)))
        return (encoder_hidden_states, x) if self.is_last else _halves(x, length)


def _halves(x: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """Text and picture, as views that `_joined` knows."""
    text, image = x[:, :length], x[:, length:]
    if not torch.compiler.is_compiling():
        image.foundry_whole = (x, text)  # type: ignore[attr-defined]
    return text, image


def _joined(text: Tensor, image: Tensor) -> Tensor:
    """Text and picture one behind the other; nothing is copied if the block before made them so."""
    whole = None if torch.compiler.is_compiling() else getattr(image, "foundry_whole", None)
    if whole is not None and whole[1] is text:
        x: Tensor = whole[0]
        return x
    return torch.cat([text, image], dim=1)


class NormZero(AdaLayerNormZero):
    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        emb = kwargs.get("emb")
        if getattr(self, "emb", None) is not None or args or emb is None or type(self.norm) is not nn.LayerNorm:
            return super().forward(x, *args, **kwargs)
        shift, scale, *rest = self.linear(self.silu(emb)).chunk(6, dim=1)
        return modulated(x, scale[:, None], shift[:, None], self.norm.eps), *rest


class NormZeroSingle(AdaLayerNormZeroSingle):
    def forward(self, x: Tensor, emb: Any = None) -> Any:
        shift, scale, gate = self.linear(self.silu(emb)).chunk(3, dim=1)
        return modulated(x, scale[:, None], shift[:, None], self.norm.eps), gate


class NormLast(AdaLayerNormContinuous):
    def forward(self, x: Tensor, conditioning_embedding: Tensor) -> Tensor:
        if getattr(self.norm, "weight", None) is not None or not hasattr(self.norm, "bias"):
            return super().forward(x, conditioning_embedding)
        scale, shift = self.linear(self.silu(conditioning_embedding).to(x.dtype)).chunk(2, dim=1)
        return modulated(x, scale[:, None], shift[:, None], self.norm.eps)


class Gelu(GELU):
    def forward(self, hidden_states: Tensor) -> Tensor:
        if self.approximate != "tanh":
            return super().forward(hidden_states)
        return gelu(self.proj(hidden_states))


_OWN: dict[type, type] = {
    flux.FluxTransformerBlock: Double,
    flux.FluxSingleTransformerBlock: Single,
    AdaLayerNormZero: NormZero,
    AdaLayerNormZeroSingle: NormZeroSingle,
    AdaLayerNormContinuous: NormLast,
    GELU: Gelu,
}
"""By diffusers' class."""
