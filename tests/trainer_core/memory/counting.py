"""A real step under the tracker, and the same on fake tensors, for any base. `core` is the trainer's package."""

from __future__ import annotations

import gc
from collections.abc import Callable
from importlib import import_module
from typing import Any


def counted(job: Any, base: Any, batches: Any, settings: Any, core: str = "trainer_core") -> Any:
    """The tracker over the second update of a job under some settings, real tensors and all."""
    import torch

    experts = import_module(f"{core}.training.experts").Experts(job, base, lambda _: None, settings)
    updater = experts.active.updater
    updater.update(batches, 0)
    gc.collect()
    with import_module(f"{core}.memory.tracker").Tracker() as tracker:
        for root in experts.active.adapter.roots.values():
            tracker.name("weights", (*root.parameters(), *root.buffers()))
        tracker.name("LoRA", experts.active.adapter.parameters())
        states = [one for values in updater.optimizer.state.values() for one in values.values()]
        tracker.name("optimizer", [one for one in states if isinstance(one, torch.Tensor)])
        tracker.name("gradients", [flat.gradient for flat in updater.flats])
        tracker.name("moving average", updater.ema.averages if updater.ema else ())
        tracker.start_over()
        updater.update(batches, 1)
    return tracker


def predicted(job: Any, base: Any, batches: Any, settings: Any, core: str = "trainer_core") -> Any:
    """What the same step is said to take."""
    prediction = import_module(f"{core}.memory.prediction")
    twin = base.imitated()
    return prediction.step_use(job, twin, batches, settings, prediction.outline_of(twin))


def batches_of(job: Any, base: Any, text: Callable[[str], Any], core: str = "trainer_core") -> Any:
    """The largest micro-batches of a job, of nothing."""
    inputs = import_module(f"{core}.memory.inputs")
    return inputs.largest_batches(job, base, inputs.described(job, base, text))
