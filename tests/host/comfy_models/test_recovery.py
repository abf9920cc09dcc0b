"""Recovery adapters of ComfyUI's models: made of a MODEL, and put beside its copy's layers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ..pack import module
from .hosted import opened, relative, states, training
from .test_packing import packed_of, predicted
from .test_quantized import inputs, sample_of, text_of
from .zoo import MODELS

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.host


def test_one_is_made_of_a_model_and_read_again(tmp_path: Path) -> None:
    recovery, files = module("trainer_core.memory.recovery"), module("trainer_core.memory.recovery_file")
    probe = module("trainer_core.memory.calibration").Probe
    model = MODELS["flux1"].make()
    before = states(model)
    base, whole = opened(model, quantization="2bit"), opened(model)
    noisy, t, _ = inputs()
    probes = [probe(noisy, t, base.collate([sample_of(text_of(model, seed)) for seed in (1, 2)]))]

    def silent(*_: Any) -> None:
        pass

    with training(base) as packed, training(whole) as full:
        plain = predicted(model, base, packed).detach()
        wanted = predicted(model, whole, full).detach()
        made = recovery.recover(base, packed, whole, full, probes, probes, 4, 2, 2, silent)
        found = predicted(model, base, packed).detach()
    assert made.after < made.before
    assert relative(found, wanted) < 0.8 * relative(plain, wanted)
    facts = files.Facts("2bit", 0, 4, base.denoiser_fingerprint(), made.before, made.after)
    path = files.write_recovery(tmp_path, "made", made.branches, base, facts)
    with training(opened(model, quantization="2bit", recovery_adapter=str(path))) as again:
        layers = packed_of(again)
        assert all(torch.equal(layers[name].low_rank_down, down) for name, (down, _) in made.branches.items())
    after = states(model)
    assert all(after[key][0] == before[key][0] and torch.equal(after[key][1], before[key][1]) for key in before)
