"""The learning rate. It is a function of the step, so there is nothing to save and nothing that resuming could lose."""

from __future__ import annotations

import math

from ..config import TrainConfig


def learning_rate(step: int, config: TrainConfig) -> float:
    """The rate of the update that follows `step` updates.

    It rises linearly over `warmup_steps`: the first update has 1 / warmup_steps of it (0 would waste an update), the
    last of them all of it. Then it stays (constant) or falls from `learning_rate` to `lr_final_share` of it, which is
    reached after the last update:

    - linear: in a straight line; polynomial: with what is left of the way to the power of `lr_power`;
    - cosine: along half a cosine (SGDR, Loshchilov & Hutter 2017); cosine_with_restarts: so, `lr_cycles` times over
      equal parts.

    Args:
        step: Updates made, 0 or more; beyond `steps` the rate stays where the fall ends.
    """
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    if config.lr_scheduler == "constant":
        return config.learning_rate
    length = max(1, config.steps - config.warmup_steps)
    done = min(step - config.warmup_steps, length)
    left = 1 - done / length
    if config.lr_scheduler == "linear":
        factor = left
    elif config.lr_scheduler == "polynomial":
        factor = left**config.lr_power
    elif config.lr_scheduler == "cosine":
        factor = _half_cosine(left)
    else:
        # In whole numbers: 1/3 three times must be a full turn, or a restart would come a step late.
        part = done * config.lr_cycles % length
        factor = _half_cosine(1 - part / length) if done < length else 0.0
    return config.learning_rate * (config.lr_final_share + (1 - config.lr_final_share) * factor)


def _half_cosine(left: float) -> float:
    """1 at the start of a fall (`left` = 1), 0 at its end."""
    return 0.5 * (1 - math.cos(math.pi * left))
