"""Which products with the quantized base are computed on units for 8-bit numbers: measured when a run starts.

They change what the base computes a little, so a run that goes on takes what was chosen when it began.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ..families.conditioning import MAIN
from ..files import write_atomically
from ..memory.packed_linear import PackedLinear, use_products
from ..memory.products import products_of
from ..reading import read_json
from ..runs.events import Listener, Phase
from .parallel import ALONE, Ranks

if TYPE_CHECKING:
    from ..config import JobConfig
    from ..families.base import Base
    from .experts import Experts

FILE = "products.json"
"""In the run folder."""


def choose_products(
    folder: Path, job: JobConfig, base: Base, experts: Experts, emit: Listener, ranks: Ranks = ALONE
) -> None:
    """Measures on the device what pays, or reads what was chosen before, and has the denoisers compute so.

    Args:
        ranks: all do as rank 0 has measured; none computes in 8 bits where their GPUs are not of one kind.
    """
    layers = [one for expert in experts for one in expert.denoiser.modules() if isinstance(one, PackedLinear)]
    if not layers:
        return
    chosen: Mapping[str, bool] = {}
    alike = len({tuple(units) for units in ranks.exchange(_units(base.device))}) == 1
    if ranks.leads and alike:
        known = _read(folder / FILE)
        chosen = _measured(job, base, layers) if known is None else known
        if chosen and known is None:
            write_atomically(folder / FILE, json.dumps(chosen, indent=1).encode(), inside=folder)
    chosen = json.loads(ranks.tell(json.dumps(dict(chosen))))
    for expert in experts:
        use_products(expert.denoiser, chosen)
    base.products = chosen
    if taken := [weight for weight, fast in chosen.items() if fast]:
        emit(Phase(f"products in 8 bits: {', '.join(taken)}", 1, 1))


def _units(device: torch.device) -> list[int]:
    """What a GPU can compute, as its maker counts it."""
    return list(torch.cuda.get_device_capability(device)) if device.type == "cuda" else [0, 0]


def _measured(job: JobConfig, base: Base, layers: Sequence[PackedLinear]) -> dict[str, bool]:
    size = max(job.datasets[0].resolutions)
    rows = base.tokens(base.latent_shapes(size, size)[MAIN]) * job.train.batch_size
    weights = [(one.format, (one.out_features, one.in_features)) for one in layers]
    return products_of(base.device, weights, base.dtype, rows)


def _read(file: Path) -> Mapping[str, bool] | None:
    try:
        found = read_json(file)
    except (OSError, ValueError):
        return None
    return {str(weight): fast is True for weight, fast in found.items()} if isinstance(found, dict) else None
