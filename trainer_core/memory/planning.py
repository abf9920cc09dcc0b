"""The memory plan of a job before there is anything of it: from configurations and headers alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch

from ..families.device import free_memory
from ..families.registry import job_with_family, open_base
from ..sampling.sampler import SamplerSettings
from ..units import GB
from .imitation import imitating
from .inputs import described, largest_batches
from .plan import CONTEXT, Plan, Row
from .prediction import outline_of, step_use
from .tracker import Tracker

if TYPE_CHECKING:
    from ..config import JobConfig
    from ..families.base import Base
    from ..families.conditioning import TextEmbedding


@dataclass(frozen=True)
class Planned:
    """A job's plan, as it is told."""

    rows: list[Row]
    """The fastest first."""
    chosen: dict[float, Row | None]
    """GB of memory → the setting that is chosen."""
    phases: dict[str, float]
    """What else takes the device's memory, one after the other and before training: bytes at the peak."""

    on_card: bool
    """Whether the GB are those of a whole card, of which its driver takes a part."""

    def fits(self, row: Row, card: float) -> bool:
        """Whether a setting does in so many GB."""
        return row.fits(card * GB - CONTEXT * self.on_card)

    def as_dict(self) -> dict[str, Any]:
        """It as JSON holds it, in GB."""

        def told(row: Row) -> dict[str, Any]:
            return {
                "setting": row.label,
                "settings": asdict(row.settings),
                "peak_gb": row.peak / GB,
                "memory_gb": {kind: value / GB for kind, value in row.memory.items()},
                "host_gb": row.host / GB,
                "relative_time": row.time,
            }

        return {
            "rows": [told(row) for row in self.rows],
            "chosen": [{"memory_gb": card, "row": row and told(row)} for card, row in self.chosen.items()],
            "phases_gb": {name: value / GB for name, value in self.phases.items()},
        }


def plan_job(job: JobConfig, cards: Sequence[float] = ()) -> Planned:
    """The plan of a job; its data is looked at as far as sizes go, and no weights are loaded.

    Args:
        cards: GB of memory of the cards that are planned for; if none, what is free here or `memory.limit_gb`.

    Raises:
        FoundryError: what is wrong with the job's base or its data.
    """
    job = job_with_family(job)
    base = open_base(job.model)
    twin = base.imitated()
    texts: dict[str, TextEmbedding | None] = {}
    phases: dict[str, float] = {}

    def text(_: str) -> TextEmbedding | None:
        if job.adapter.text_encoders:
            return None
        if not texts:
            peak, texts["any"] = _peak(lambda: _embedded(twin))
            phases["encoding captions"] = peak
        return texts["any"]

    batches = largest_batches(job, twin, described(job, twin, text))
    expert = base.spec.experts[0].name
    outline = outline_of(twin, expert)
    plan = Plan(
        lambda settings: step_use(job, twin, batches, settings, outline, expert),
        outline,
        may_recompute=job.train.gradient_checkpointing,
        may_stream=bool(cards) or base.device.type == "cuda",
    )
    free = free_memory(base.device) if job.memory.limit_gb is None else job.memory.limit_gb * GB
    budgets = {card: card * GB - CONTEXT for card in cards} or {free / GB: free}
    with suppress(NotImplementedError, RuntimeError, AttributeError, TypeError):  # a host's own, which it moves itself
        phases |= _pixel_phases(job, twin)
    return Planned([*plan.rows()], {card: plan.chosen(budget) for card, budget in budgets.items()}, phases, bool(cards))


def _embedded(base: Base) -> TextEmbedding:
    base.load_text_encoders()
    with torch.no_grad():
        (found,) = base.encode_prompts([""])
    base.free_text_encoders()
    return found


def _pixel_phases(job: JobConfig, base: Base) -> dict[str, float]:
    """Encoding the largest picture, and decoding a preview beside nothing else."""
    settings = SamplerSettings.of(job.sample, base)
    moves = [] if base.spec.frame_rate is None else [settings.frames]
    shapes = base.latent_shapes(settings.width, settings.height, *moves)
    size = (1, 3, *moves, settings.height, settings.width)

    def encode() -> None:
        base.load_vae()
        base.encode_pixels(torch.zeros(size))
        base.free_vae()

    def decode() -> None:
        base.load_vae()
        base.decode_latents({name: torch.zeros(1, *shape) for name, shape in shapes.items()})
        base.free_vae()

    return {"encoding images": _peak(encode)[0], "decoding previews, beside the model": _peak(decode)[0]}


def _peak(action: Callable[[], Any]) -> tuple[int, Any]:
    """Bytes at the peak of what is done with fake tensors, and its result."""
    with imitating(), Tracker() as tracker:
        found = action()
    return tracker.peak, found
