"""How the parts of a base are held: what is quantized, and what that comes to. Loads no weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..memory.packing import Packing, described

if TYPE_CHECKING:
    from .loads import Loads
    from .spec import Part


def quantization_of(base: Loads, part: Part) -> str:
    """The format of a part's layers; none for what is not quantized, as a VAE is not."""
    config = base.config
    formats = {"denoiser": config.quantization, "text_encoder": config.text_encoder_quantization}
    return formats.get(part.role, "none")


def packing_of(base: Loads, part: Part) -> Packing | None:
    """How a part's layers are packed; None: not."""
    name = quantization_of(base, part)
    if name == "none":
        return None
    mark = base.source.fingerprint(part.name) if base.packed_cache else ""
    rank = base.config.low_rank if part.role == "denoiser" else 0
    return Packing(name, mark, base.packed_cache, rank, base.packs_on)


def precision_of(base: Loads) -> str:
    """What the denoiser is held in and computes in, such as "6bit, computed in bfloat16"."""
    computed = str(base.dtype).removeprefix("torch.")
    held, rank = base.config.quantization, base.config.low_rank
    if held == "none":
        return computed
    fast = ", products in 8 bits" if any(base.products.values()) else ""
    return f"{held}{f' + rank {rank}' if rank else ''}, computed in {computed}{fast}"


def precision_told(base: Loads) -> list[str]:
    """A line for each part that is quantized: how many of its weights, and its size before and after."""
    lines, source = [], base.source.without_weights()
    for part in base.spec.parts:
        name = quantization_of(base, part)
        if name != "none":
            dtype = base.dtype if part.role == "denoiser" else base.text_encoder_dtype
            model = source.load(part.name, part.load_class(), dtype, base.device)
            packing = Packing(name, low_rank=base.config.low_rank if part.role == "denoiser" else 0)
            lines.append(f"{part.name}: {described(model, packing, dtype)}")
    return lines
