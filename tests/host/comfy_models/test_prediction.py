"""What is predicted for a batch is what is predicted for each of its samples, however the model takes batches."""

from __future__ import annotations

from typing import Any

import pytest

from ..pack import module
from .running import predict
from .zoo import MODELS
from .zoo.record import Draw

STREAMS = ("main", "audio")


@pytest.mark.parametrize("name", ["sdxl", "qwen_image", "lumina2", "qwen_edit_3", "wan21_i2v", "ltx2", "minimax_h3"])
def test_samples_at_different_noise_levels_with_different_texts(name: str) -> None:
    """Expected is what ComfyUI's own model says of each, asked as its sampler does."""
    import torch

    model, loading, schedules = (
        MODELS[name],
        module("nodes.comfy_models.loading"),
        module("nodes.comfy_models.schedule"),
    )
    patcher = model.make()
    schedule = schedules.ComfySchedule(loading.sampling_of(patcher))
    samples, t = [model.streams(seed) for seed in (2, 12, 22)], torch.tensor([0.9, 0.3, 0.6])
    given: list[dict[str, Any]] = [
        {"pooled_output": None} | model.text(Draw(seed, tokens)) | model.given(Draw(seed))
        for seed, tokens in ((3, 5), (4, 9), (5, 5))
    ]
    noisy = {key: torch.cat(stream) for key, stream in zip(STREAMS, zip(*samples, strict=True), strict=False)}
    expected = [
        predict(patcher.model, sample, [[options["cross_attn"], options]], float(schedule.sigma(one[None])))
        for sample, options, one in zip(samples, given, t, strict=True)
    ]

    trained = loading.TrainedModel(patcher)
    trained.load()
    with torch.no_grad():
        found = module("nodes.comfy_models.prediction").predicted(trained, schedule, noisy, t, given)
    assert found.keys() == noisy.keys()
    for value, stream in zip(found.values(), zip(*expected, strict=True), strict=True):
        assert torch.allclose(value, torch.cat(stream), rtol=1e-4, atol=1e-4)
