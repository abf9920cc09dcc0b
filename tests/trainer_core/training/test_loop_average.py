"""Raw weights and their moving average: which of them files and previews hold, and what the average is."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from PIL import Image
from safetensors.torch import load

from trainer_core.training.previews import draw_samples
from trainer_core.training.state import lora_file, state_file

if TYPE_CHECKING:
    from trainer_core.training.loop import Trainer


def test_files_and_previews_hold_the_weights_asked_for(made: Callable[..., Trainer]) -> None:
    """Raw ones are those of a run without a moving average; averaged ones those that the state holds."""
    prompts = {"prompts": ("a [trigger]",), "steps": 2, "guidance": 1.0}
    plain = {"train": {"learning_rate": 0.05}, "sample": prompts}
    averaging = {"learning_rate": 0.05, "ema_decay": 0.5, "ema_warmup": False}
    trainers = {
        which: made(stirred=False, train=averaging, sample={**prompts, "weights": which}, save={"weights": which})
        for which in ("raw", "ema", "auto")
    }
    expected = {"raw": made(stirred=False, **plain)}
    for trainer in (*trainers.values(), *expected.values()):
        for _ in range(2):
            trainer.update()
            trainer.step += 1
    assert trainers["ema"].ema is not None
    names = list(trainers["ema"].adapter.state())
    expected["ema"] = made(stirred=False, **plain)
    expected["ema"].adapter.load(dict(zip(names, trainers["ema"].ema.averages, strict=True)))
    expected["ema"].step = 2
    expected["auto"] = expected["ema"]
    for which, trainer in trainers.items():
        before, stored = trainer.adapter.state(), state_file(trainer)
        draw_samples(trainer)
        draw_samples(expected[which])
        ours, theirs = (Image.open(one.run.sample_folder(2) / "00.png") for one in (trainer, expected[which]))
        assert ours.tobytes() == theirs.tobytes(), which
        assert ours.info["weights"] == trainer.which(which) == ("raw" if which == "raw" else "ema")
        file = lora_file(trainer)
        one, other = load(file), load(lora_file(expected[which]))
        assert all(torch.equal(value, other[name]) for name, value in one.items()), which
        header = json.loads(file[8 : 8 + int.from_bytes(file[:8], "little")])
        assert header["__metadata__"]["lora_foundry.weights"] == trainer.which(which)
        assert all(torch.equal(value, before[name]) for name, value in trainer.adapter.state().items())
        assert stored == state_file(trainer)
        kept, same = load(stored), load(state_file(trainers["raw"]))
        assert kept.keys() == same.keys()
        assert all(torch.equal(value, same[name]) for name, value in kept.items())
    raw, averaged = (load(lora_file(trainers[which])) for which in ("raw", "ema"))
    assert any(not torch.equal(value, averaged[name]) for name, value in raw.items())


def test_the_moving_average_of_a_run(made: Callable[..., Trainer]) -> None:
    """After two updates from w0 with a decay of 3/4: 9/16 w0 + 3/16 w1 + 1/4 w2."""
    trainer = made(train={"ema_decay": 0.75, "ema_warmup": False})
    assert trainer.ema is not None
    trainer.ema.restart()  # from the stirred weights
    steps = [trainer.adapter.state()]
    for _ in range(2):
        trainer.update()
        trainer.step += 1
        steps.append(trainer.adapter.state())
    for average, *weights in zip(trainer.ema.averages, *(step.values() for step in steps), strict=True):
        expected = sum(share * weight for share, weight in zip((9 / 16, 3 / 16, 1 / 4), weights, strict=True))
        torch.testing.assert_close(average, expected)
