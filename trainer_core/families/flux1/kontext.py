"""FLUX.1 Kontext: FLUX.1 with control images, which it edits as the prompt says.

The control images' tokens follow the noisy image's, at rotary places 1, 2, …; the weights are laid out as FLUX.1's.
Every FLUX.1 opens as one (the embedded base too), but only a model trained for it makes sense of the control images.
In ComfyUI, one control image is a ReferenceLatent; several need its method set to `index`, which is this numbering.
"""

from __future__ import annotations

from dataclasses import replace

from ..registry import register_family
from .model import SPEC as FLUX
from .model import Flux

SPEC = replace(
    FLUX,
    name="flux1_kontext",
    title="FLUX.1 Kontext",
    category="edit",
    default_repo="black-forest-labs/FLUX.1-Kontext-dev",
    vram_gb="24 GB at least, 48 GB for high resolutions",
    max_controls=3,
    sampling=replace(FLUX.sampling, guidance=2.5),
)


class FluxKontext(Flux):
    """One opened FLUX.1 Kontext."""

    spec = SPEC


register_family(FluxKontext)
