"""What a base predicts of one stream, for tests that need no conditioning of samples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from trainer_core.families.conditioning import MAIN, Collated

if TYPE_CHECKING:
    from torch import Tensor, nn

    from trainer_core.families.base import Base


def predicted(
    base: Base,
    denoiser: nn.Module,
    x: Tensor,
    t: Tensor,
    text: dict[str, Tensor],
    guidance: float | Tensor | None = None,
    controls: Sequence[Tensor] = (),
    time_ids: Tensor | None = None,
) -> Tensor:
    """The prediction (N, C, H, W) for noisy latents of the main stream."""
    return base.predict(denoiser, {MAIN: x}, t, Collated(text, tuple(controls), time_ids, guidance))[MAIN]
